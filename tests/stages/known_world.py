"""A small study whose truth is known: discs that a compound shrinks (by chance) or dims, with stores as `prepare` and `translate` write them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cellbridge.data.intensity import IntensityMaps, fit_intensity
from cellbridge.data.store import REQUIRED, open_store, write_store
from cellbridge.networks.classifier import build_classifier, save_classifier
from cellbridge.runs import RunDir, fingerprint, publish_directory

CHANNELS = ("DNA", "ER", "Mito")
SIZE = 16
PLATES = {"P1": "train", "P2": "train", "P3": "test"}
WELLS = {"DMSO": ("A01", "A02", "A03", "A04"), "shrinker@1": ("B01", "B02", "B03"), "dimmer@5": ("C01", "C02", "C03")}
HEAD = {"channels": CHANNELS, "full_scale": 65535, "size_px": SIZE, "pixel_um": 1.2, "control": "DMSO"}


def cells_of(plate: str, well: str, n: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw what a cell is: radius, staining, whether it would respond, and the seed of its noise."""
    rng = np.random.default_rng([ord(plate[-1]), ord(well[0]), int(well[1:]), *([seed] if seed else [])])
    radius = rng.uniform(4.0, 6.0, n)
    probability = np.clip((radius - 3.5) / 3, 0.1, 0.9)
    return {
        "radius": radius,
        "stain": rng.uniform(0.8, 1.2, (n, 3)),
        "probability": probability,
        "responds": rng.random(n) < probability,
        "seed": rng.integers(0, 2**31, n),
    }


def render(cells: dict[str, np.ndarray], condition: str, *, responds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Render cells under a condition; one that does not respond looks as it does under DMSO. Returns counts and masks."""
    counts, masks = [], []
    yy, xx = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    for radius, stain, answer, seed in zip(cells["radius"], cells["stain"], responds, cells["seed"], strict=True):
        nucleus = radius * (0.45 if condition == "shrinker@1" and answer else 0.7)
        gain = 0.45 if condition == "dimmer@5" and answer else 1.0
        distance = np.hypot(xx, yy)
        body, kernel = 1 / (1 + np.exp(2 * (distance - radius))), 1 / (1 + np.exp(3 * (distance - nucleus)))
        signal = (
            np.stack([6000 * kernel, 3000 * gain * body, 2500 * gain * (body - 0.8 * kernel)]) * stain[:, None, None]
        )
        noise = np.random.default_rng(seed).normal(0, 60, signal.shape)
        counts.append(np.clip(np.rint(300 + signal + noise), 0, 65535).astype(np.uint16))
        masks.append((body > 0.5).astype(np.uint8) + (kernel > 0.5))
    return np.stack(counts), np.stack(masks).astype(np.uint8)


def write_study(
    folder: Path, *, per_well: int = 24, seed: int = 0, plates: Mapping[str, str] = PLATES
) -> dict[str, Path]:
    """Write the reference and the truth store; the truth knows the DMSO cells of the test plates under both compounds.

    Parameters
    ----------
    seed : of the cells.
    plates : plate → its split.
    """
    tables, counts, masks, truth = [], [], [], []
    for plate, split in plates.items():
        for condition, wells in WELLS.items():
            for well in wells:
                cells = cells_of(plate, well, per_well, seed=seed)
                table = _table(plate, well, condition, split, per_well)
                image, mask = render(cells, condition, responds=cells["responds"])
                tables.append(table), counts.append(image), masks.append(mask)
                if split == "test" and condition == "DMSO":
                    truth.append((table, cells))
    obs, images = pd.concat(tables, ignore_index=True), np.concatenate(counts)
    is_control = (obs["Metadata_Compound"] == "DMSO").to_numpy()
    control = {plate: images[is_control & (obs["Metadata_Plate"] == plate).to_numpy()] for plate in plates}
    maps = fit_intensity(control, channels=CHANNELS, full_scale=65535)
    paths = {"reference": folder / "store.zarr", "truth": folder / "truth.zarr"}
    write_store(paths["reference"], obs=obs, counts=images, masks=np.concatenate(masks), intensity=maps, **HEAD)
    _write_truth(paths["truth"], truth, maps, attributes={"crops_from_sha256": fingerprint(paths["reference"])})
    return paths


def _table(plate: str, well: str, condition: str, split: str, n: int) -> pd.DataFrame:
    compound, _, dose = condition.partition("@")
    kind = "negcon" if compound == "DMSO" else "trt"
    rows = [(f"{plate}-{well}-{i}", plate, well, str(i % 2), compound, dose, kind, split) for i in range(n)]
    return pd.DataFrame(rows, columns=list(REQUIRED)).astype(str)


def _write_truth(
    path: Path,
    truth: list[tuple[pd.DataFrame, dict[str, np.ndarray]]],
    maps: IntensityMaps,
    *,
    attributes: dict[str, str],
) -> None:
    tables, counts = [], []
    for sources, cells in truth:
        for condition in ("shrinker@1", "dimmer@5"):
            for origin in ("counterfactual", "responding"):
                responds = cells["responds"] if origin == "counterfactual" else np.ones(len(sources), bool)
                table = sources.copy()
                table["Metadata_SourceCell"] = sources["Metadata_Cell"]
                table["Metadata_Cell"] = sources["Metadata_Cell"] + f"/{condition}/{origin}"
                table["Metadata_Compound"], _, table["Metadata_Concentration"] = condition.partition("@")
                table["Metadata_Origin"] = origin
                table["Truth_Responder"] = [str(int(answer)) for answer in cells["responds"]]
                table["Truth_PResponse"] = [f"{p:.5f}" for p in cells["probability"]]
                tables.append(table)
                counts.append(render(cells, condition, responds=responds)[0])
    obs = pd.concat(tables, ignore_index=True)
    write_store(path, obs=obs, counts=np.concatenate(counts), intensity=maps, attributes=attributes, **HEAD)


def write_translated(path: Path, study: dict[str, Path], models: dict[str, dict[str, np.ndarray]]) -> Path:
    """Write a store as `translate` does: every DMSO cell of the test plate, by model and target, given as images in [-1, 1]."""
    reference = open_store(study["reference"])
    rows = reference.select(split="test", conditions=["DMSO"])
    tables, counts = [], []
    for model, by_target in models.items():
        for target, images in by_target.items():
            table = reference.obs.iloc[rows].reset_index(drop=True)
            table["Metadata_SourceCell"] = table["Metadata_Cell"]
            table["Metadata_Cell"] = table["Metadata_Cell"] + f">{target}>{model}"
            table["Metadata_Compound"], _, table["Metadata_Concentration"] = target.partition("@")
            table["Metadata_Origin"], table["Metadata_SourceCondition"] = "generated", "DMSO"
            table["Metadata_TargetCondition"], table["Metadata_Model"], table["Metadata_Seed"] = target, model, "0"
            tables.append(table)
            converted = reference.intensity.to_counts(torch.from_numpy(images), list(reference.plates[rows]))[0]
            counts.append(converted.numpy().astype(np.uint16))
    obs = pd.concat(tables, ignore_index=True)
    x_T = np.random.default_rng(0).standard_normal((len(obs), len(CHANNELS), SIZE, SIZE)).astype(np.float32)
    counted, maps = np.concatenate(counts), reference.intensity
    trained_on = {"base": ["P1", "P2"], "shrinker@1": ["P1"], "dimmer@5": ["P1", "P2"]}
    attributes = {"inputs": {"store": fingerprint(study["reference"])}, "trained_on": trained_on}
    write_store(path, obs=obs, counts=counted, x_T=x_T, intensity=maps, attributes=attributes, **HEAD)
    return path


def write_classifier(run: Path, study: dict[str, Path]) -> Path:
    """Write a `train-classifier` run: a small network, trained for a few seconds on the training plates."""
    store, names = open_store(study["reference"]), list(WELLS)
    rows = store.select(split="train", plates=["P1", "P2"])
    images = torch.from_numpy(store.images(rows))
    labels = torch.tensor([names.index(name) for name in store.condition_names[rows]])
    network = build_classifier(channels=len(CHANNELS), conditions=len(names), widths=(8, 16, 32), seed=0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(120):
        some = torch.randint(len(rows), (64,), generator=draw)
        loss = torch.nn.functional.cross_entropy(network(images[some]), labels[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    card = {
        "kind": "classifier",
        "channels": list(CHANNELS),
        "size_px": SIZE,
        "conditions": names,
        "plates": ["P1", "P2"],
    }
    with publish_directory(RunDir(run).model, manifest={"kind": "classifier"}) as directory:
        save_classifier(network, directory, card=card)
    return run


def truth_images(study: dict[str, Path], target: str, *, origin: str) -> np.ndarray:
    """Return the truth's images of the test plate's DMSO cells under a target, in the reference store's order."""
    reference, truth = open_store(study["reference"]), open_store(study["truth"])
    rows = reference.select(split="test", conditions=["DMSO"])
    chosen = np.flatnonzero((truth.condition_names == target) & (truth.obs["Metadata_Origin"] == origin).to_numpy())
    position = pd.Series(chosen, index=truth.obs["Metadata_SourceCell"].to_numpy()[chosen])
    return truth.images(position.loc[reference.obs.index[rows]].to_numpy())
