"""Do distances to the control grow in the order that is known? Real BBBC021 cells: halves of one plate's DMSO < DMSO of other plates <
cyclohexamide 5 < 15 < 50 µM, at one n in every arm.

    cellbridge prepare --manifest data_manifests/bbbc021_cells/manifest.yaml --root CROPS --out STORE \\
        --config pipelines/studies/bbbc021_cyclohexamide/prepare.yaml --set 'split={by: plate, test: [Week4_27801, Week4_27481, Week4_27521]}'
    cellbridge train-classifier --store STORE --out CLASSIFIER --config pipelines/studies/bbbc021_cyclohexamide/train_classifier.yaml \\
        --set 'plates=[Week4_27821]' --set 'conditions=[DMSO, cyclohexamide@15, cyclohexamide@50]'
    python analysis/dose_order.py --store STORE --classifier CLASSIFIER --weights resnet20-12fca82f.th --out DIR

Images are seen twice: each plate under its own intensity map, which takes out what differs between plates' controls, and all under one map,
which leaves it in. Plate Week4_27801 is the only one with three doses, so its DMSO is the reference; no extractor has seen a cell of it. Each draw takes 108
cells of every arm without replacement: of 5 µM that is every cell there is (one site of one well), of the other plates' DMSO 36 of each.
Draws of one set of cells overlap, so the interval of a share is over draws, not over wells: there is one well per plate and condition.
Prints Markdown and writes DIR/dose_order.json.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cellbridge.assembly import load_classifier
from cellbridge.data.store import Store, open_store
from cellbridge.metrics.features import Extractor, extract, standardised
from cellbridge.metrics.fid import frechet_and_kernel
from cellbridge.metrics.intervals import wilson
from cellbridge.metrics.morphology import morphology_extractor
from cellbridge.runs import file_sha256, write_json

PLATE, OTHERS = "Week4_27801", ("Week4_27481", "Week4_27521", "Week4_27821")
STANDARD = "Week4_27821"
"""Features are standardised on this plate's cells: no arm but a third of the other plates' DMSO is of it."""
DOSES = ("5", "15", "50")
ORDER = ("halves", "other plates", "5 µM", "15 µM", "50 µM")
N = 108


def main() -> None:
    """Draw, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, help="a classifier that was trained on another plate")
    parser.add_argument("--weights", type=Path, help="CIFAR-10 ResNet-20 of akamaster/pytorch_resnet_cifar10")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    store = open_store(asked.store)
    arms = arms_of(store)
    standard = torch.from_numpy(np.flatnonzero(store.plates == STANDARD))
    found = []
    for extractor in extractors(asked, store.info.channels):
        for maps, plate in (("own map per plate", None), ("one map for all plates", PLATE)):
            images = seen(store, plate)
            scaled = standardised(extractor, images[standard], name=f"cells of {STANDARD}")
            features = extract(scaled, images).double().numpy()
            words = {"extractor": extractor.name, "maps": maps}
            found.append(words | study(features, arms, draws=asked.draws, seed=asked.seed))
            print(table(found[-1]), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = {"n": N, "draws": asked.draws, "seed": asked.seed, "store": file_sha256(asked.store / "manifest.json")}
    write_json(asked.out / "dose_order.json", settings | {"extractors": found})


def seen(store: Store, plate: str | None) -> Tensor:
    """Return all images, under each plate's own intensity map or all under one plate's."""
    rows = np.arange(len(store.obs))
    if plate is None:
        return torch.from_numpy(store.images(rows))
    parts = [torch.from_numpy(store.counts(some).astype(np.int32)) for some in np.array_split(rows, 8)]
    return torch.cat([store.intensity.forward(counts, [plate] * len(counts)) for counts in parts])


def arms_of(store: Store) -> dict[str, np.ndarray]:
    """Return the rows of each arm: the control and the doses of one plate, and the control of the others."""
    names, plates = store.condition_names, store.plates

    def rows(plate: str, condition: str) -> np.ndarray:
        return np.flatnonzero((plates == plate) & (names == condition))

    arms = {"control": rows(PLATE, "DMSO")} | {plate: rows(plate, "DMSO") for plate in OTHERS}
    return arms | {f"{dose} µM": rows(PLATE, f"cyclohexamide@{dose}") for dose in DOSES}


def drawn(arms: Mapping[str, np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the reference, and one draw of N cells of every arm: the five of the order, and each other plate by itself."""
    control = rng.permutation(arms["control"])
    taken = {name: rng.permutation(rows) for name, rows in arms.items()}
    each = N // len(OTHERS)
    parts = {"halves": control[N : 2 * N], "other plates": np.concatenate([taken[plate][:each] for plate in OTHERS])}
    return control[:N], parts | {name: taken[name][:N] for name in (*(f"{dose} µM" for dose in DOSES), *OTHERS)}


def study(features: np.ndarray, arms: Mapping[str, np.ndarray], *, draws: int, seed: int) -> dict[str, Any]:
    """Return, per distance, the values of every arm and in how many draws they are in order."""
    rng = np.random.default_rng(seed)
    values: dict[str, list[list[float]]] = {"Fréchet": [], "kernel": []}
    names: list[str] = []
    for _ in range(draws):
        reference, parts = drawn(arms, rng)
        names = list(parts)
        both = [frechet_and_kernel(features[reference], features[rows]) for rows in parts.values()]
        values["Fréchet"].append([frechet for frechet, _ in both])
        values["kernel"].append([kernel for _, kernel in both])
    return {"distances": {name: _summary(np.array(found), names) for name, found in values.items()}}


def _summary(found: np.ndarray, names: list[str]) -> dict[str, Any]:
    in_order = found[:, [names.index(name) for name in ORDER]]
    steps = np.diff(in_order, axis=1) > 0
    halves, dose = found[:, names.index("halves")], found[:, names.index("5 µM")]
    plates = {plate: found[:, names.index(plate)] for plate in OTHERS}
    return {
        "median": dict(zip(names, np.median(found, axis=0).tolist(), strict=True)),
        "central 95 % of draws": dict(zip(names, np.percentile(found, [2.5, 97.5], axis=0).T.tolist(), strict=True)),
        "steps": {f"{a} < {b}": _share(hit) for a, b, hit in zip(ORDER, ORDER[1:], steps.T, strict=False)},
        "order": _share(steps.all(axis=1)),
        "halves < each plate": {plate: _share(halves < value) for plate, value in plates.items()},
        "each plate < 5 µM": {plate: _share(value < dose) for plate, value in plates.items()},
    }


def _share(hits: np.ndarray) -> dict[str, float]:
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high}


def extractors(asked: argparse.Namespace, channels: tuple[str, ...]) -> list[Extractor]:
    """Return every extractor that is at hand; none of them has seen a cell of the plate."""
    found = [morphology_extractor(channels)]
    if asked.classifier is not None:
        network, _ = load_classifier(asked.classifier, device=torch.device("cpu"))
        found.append(Extractor("own classifier", "", network.features))
    return found if asked.weights is None else [resnet20(asked.weights), *found]


def resnet20(weights: Path) -> Extractor:
    """Return CIFAR-10's ResNet-20 (He et al. 2016, sec. 4.2), its last 64 features of each channel as a grey image, put side by side."""
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def features(images: Tensor) -> Tensor:
        grey = ((images + 1) / 2).clamp(0, 1)
        channels = [grey[:, [c]].expand(-1, 3, -1, -1) for c in range(grey.shape[1])]
        return torch.cat([_resnet20((one - mean) / deviation, state) for one in channels], dim=1)

    return Extractor("ResNet-20 (CIFAR-10), per channel", file_sha256(weights), features)


def _resnet20(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    normed = _normed(state)
    x = functional.relu(normed(functional.conv2d(x, state["conv1.weight"], padding=1), "bn1"))
    for layer in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = functional.relu(
                normed(functional.conv2d(x, state[f"{name}.conv1.weight"], padding=1, stride=stride), f"{name}.bn1")
            )
            y = normed(functional.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            added = (
                y.shape[1] - x.shape[1]
            ) // 2  # the shortcut without weights: every second pixel, new channels zero
            x = functional.relu(y + functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, added, added)))
    return x.mean(dim=(2, 3))


def _normed(state: Mapping[str, Tensor]) -> Callable[[Tensor, str], Tensor]:
    def normed(x: Tensor, name: str) -> Tensor:
        return functional.batch_norm(
            x, *(state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        )

    return normed


def table(found: Mapping[str, Any]) -> str:
    """Return one extractor's rows as Markdown: median of every arm, and shares of draws in order."""
    lines = [
        f"\n{found['extractor']}, {found['maps']}\n",
        f"| distance | {' | '.join(ORDER)} | all in order | weakest step |",
        "|---" * 8 + "|",
    ]
    beside = []
    for name, part in found["distances"].items():
        weakest = min(part["steps"], key=lambda step: part["steps"][step]["value"])
        medians = " | ".join(f"{part['median'][arm]:.3g}" for arm in ORDER)
        lines.append(
            f"| {name} | {medians} | {_percent(part['order'])} | {weakest}: {_percent(part['steps'][weakest])} |"
        )
        each = [f"{plate} {_percent(share)}" for plate, share in part["halves < each plate"].items()]
        beside.append(f"Halves below the DMSO of one other plate, {name}: {', '.join(each)}.")
    return "\n".join([*lines, "", *beside])


def _percent(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


if __name__ == "__main__":
    main()
