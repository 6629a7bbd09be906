"""What each way of inverting an image is worth on a trained network: how Gaussian x_T is, how far the round trip ends, and at what cost.

    python analysis/inversion_table.py --out DIR                        five-channel synthetic control cells, rendered here
    python analysis/inversion_table.py --out DIR --data bbbc021 --root CROPS   DMSO cells of BBBC021, three channels

Each trains a network of 0.4 million parameters (v, cosine schedule) on control cells, inverts control cells of a plate that it has not
seen, and decodes them with the same solver. What is done already is not done again. Prints Markdown and writes DIR/DATA/inversion_table.json.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cellbridge.assembly import CONTROL_ROW, Base, build_inversion, build_sampler, load_base
from cellbridge.config import NetworkConfig, ScheduleConfig, SolverConfig, TrainingConfig
from cellbridge.data.preparation import SplitConfig
from cellbridge.data.store import Store, open_store
from cellbridge.diffusion.round_trip import RoundTrip, round_trip
from cellbridge.diffusion.samplers import estimate, signal_and_noise
from cellbridge.runs import RunDir, is_taken, write_json
from cellbridge.runtime import noise_per_image
from cellbridge.stages import prepare, pretrain, synthesize

MANIFEST = Path(__file__).parents[1] / "data_manifests/bbbc021_cells/manifest.yaml"
TEST_PLATES = {"synthetic": "SY000003", "bbbc021": "Week4_27821"}
NETWORK = NetworkConfig(widths=(16, 32, 48), attention_levels=())
TRAINING = TrainingConfig(steps=1500, batch_size=16, learning_rate=2e-3, checkpoint_every=500)
REFERENCE = "DDIM 100"

SOLVERS = {
    "DDIM 50": SolverConfig(method="ddim", steps=50, grid="uniform"),
    REFERENCE: SolverConfig(method="ddim", steps=100, grid="uniform"),
    "DDIM 50 + fixed point 2": SolverConfig(method="ddim", steps=50, grid="uniform", fixed_point=2),
    **{
        f"order 2, {grid}, {steps}": SolverConfig(steps=steps, grid=grid)
        for grid in ("uniform", "log_snr", "quadratic")
        for steps in (13, 25)
    },
    **{
        f"order 2, {grid}, {steps}, start noise": SolverConfig(steps=steps, grid=grid, start_noise=True)
        for grid in ("log_snr", "quadratic")
        for steps in (13, 25)
    },
}


def main() -> None:
    """Fill in the rows that are missing, and print them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", choices=tuple(TEST_PLATES), default="synthetic")
    parser.add_argument("--root", type=Path, help="where the crops of BBBC021 lie")
    parser.add_argument("--cells", type=int, default=64)
    asked = parser.parse_args()
    out = asked.out / asked.data
    if asked.data == "bbbc021":
        store = prepared(out, manifest=MANIFEST, root=asked.root, test=TEST_PLATES["bbbc021"], crop_px=64)
    else:
        store = synthetic_store(out, size_px=32)
    base = trained_base(store, out / "base", schedule=ScheduleConfig())
    images, cells = held_out(open_store(store), asked.cells)
    file = out / "inversion_table.json"
    found: dict[str, Any] = (
        json.loads(file.read_text()) if file.is_file() else {"data": spread(images, cells), "rows": {}}
    )
    for name, solver in SOLVERS.items():
        if name not in found["rows"]:
            found["rows"][name] = measure(base, images, cells, solver=solver)
            write_json(file, found)
    found["noise_found"] = noise_found(base, images, cells)
    write_json(file, found)
    print(f"{len(images)} cells; {found['data']}\n\n{markdown(found['rows'])}\n\n{noise_table(found['noise_found'])}")


def synthetic_store(out: Path, *, size_px: int) -> Path:
    """Render three synthetic plates of the control and two compounds, and cut out their cells: the last plate is for testing."""
    plates = out / "plates"
    if not is_taken(plates):
        config = synthesize.Config(
            seed=5,
            plates=("SY000001", "SY000002", TEST_PLATES["synthetic"]),
            conditions=("taxol@1", "tunicamycin@5"),
            wells=(8,),
            truth=False,
        )
        synthesize.run(config, out=plates)
    return prepared(
        out, manifest=plates / "manifest.yaml", root=None, test=TEST_PLATES["synthetic"], crop_px=32, size_px=size_px
    )


def prepared(out: Path, *, manifest: Path, root: Path | None, test: str, crop_px: int, size_px: int = 32) -> Path:
    """Return the store of a data set whose plate `test` is held out."""
    store = out / "store.zarr"
    if not is_taken(store):
        split = SplitConfig(by="plate", test=(test,))
        config = prepare.Config(manifest=manifest, root=root, size_px=size_px, crop_px=crop_px, split=split)
        prepare.run(config, out=store)
    return store


def trained_base(store: Path, out: Path, *, schedule: ScheduleConfig, conditions: Any = "control") -> Base:
    """Return the small network that was trained on a store's training plates."""
    if not RunDir(out).model.is_dir():
        config = pretrain.Config(
            store=store, conditions=conditions, network=NETWORK, schedule=schedule, training=TRAINING, device="cpu"
        )
        pretrain.run(config, out=out)
    return load_base(out)


def held_out(store: Store, n: int) -> tuple[Tensor, Tensor]:
    """Return control cells of the test plate, and where they are cell: all but the quarter of all pixels that are darkest.

    Masks of the store tell a cell from its neighbours; here neighbours are no background.
    """
    rows = store.select(split="test", conditions=[store.info.control])
    images = torch.from_numpy(store.images(rows[:: max(1, len(rows) // n)][:n]))
    brightness = images.mean(dim=1)
    return images, brightness > brightness.quantile(0.25)


def spread(images: Tensor, cells: Tensor) -> dict[str, float]:
    """Return the standard deviation of dark pixels and of the difference between dark neighbours over sqrt 2, as solvers meet them."""
    dark = ~cells
    beside = dark[..., 1:] & dark[..., :-1]
    steps = images.diff(dim=3).movedim(1, 0)[:, beside]
    pixels = images.movedim(1, 0)[:, dark]
    return {"background_std": _rms(pixels.std(dim=1)), "background_pixel_noise": _rms(steps.std(dim=1)) / 2**0.5}


def measure(base: Base, images: Tensor, cells: Tensor, *, solver: SolverConfig) -> dict[str, float]:
    """Invert and decode under the control, in float32."""
    trip = round_trip(
        base.denoiser(),
        images,
        torch.full((len(images),), CONTROL_ROW),
        inversion=build_inversion(solver),
        sampler=build_sampler(solver),
        seeds=torch.arange(len(images)),
        masks=cells,
    )
    return figures(trip, images)


def figures(trip: RoundTrip, images: Tensor) -> dict[str, float]:
    """Return a row of the table."""
    noise = trip.x_T.flatten().double()
    centred = noise - noise.mean()
    together = torch.stack([noise, images.flatten().double()])
    return {
        "calls": trip.calls,
        "std_background": trip.std_background,
        "std_cells": trip.std_cells,
        "kurtosis": (centred.pow(4).mean() / centred.square().mean() ** 2 - 3).item(),
        "correlation": together.corrcoef()[0, 1].item(),
        "rmse": trip.rmse,
    }


def noise_found(base: Base, images: Tensor, cells: Tensor) -> dict[str, dict[str, float]]:
    """Return how much of the noise that was added to dark pixels the network predicts at small t: what no solver can make up for.

    For pixels of independent Gaussian values with standard deviation s, the exact prediction has sigma / sqrt(alpha^2 s^2 + sigma^2).
    """
    denoiser, labels = base.denoiser(), torch.full((len(images),), CONTROL_ROW)
    epsilon = noise_per_image(torch.arange(len(images)), tuple(images.shape[1:]), purpose="noise to be found")
    s, found = spread(images, cells)["background_pixel_noise"], {}
    for t in (0, 5, 10, 20, 50, 100, 200):
        alpha, sigma = signal_and_noise(denoiser, t)
        with torch.no_grad():
            predicted = estimate(denoiser, alpha * images + sigma * epsilon, labels, t)[1]
        dark = predicted.movedim(1, 0)[:, ~cells]
        found[str(t)] = {"std": _rms(dark.std(dim=1)), "exact": sigma / math.hypot(alpha * s, sigma)}
    return found


def noise_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return what was predicted and what the exact prediction would be, a column per time."""
    lines = [f"| t | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for name, key in (
        ("std of predicted noise, background", "std"),
        ("exact for independent Gaussian pixels", "exact"),
    ):
        lines.append(f"| {name} | {' | '.join(f'{row[key]:.2f}' for row in rows.values())} |")
    return "\n".join(lines)


def markdown(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table; the last column is the round trip's error as a multiple of this row's, for 100 steps of DDIM."""
    reference = rows[REFERENCE]["rmse"]
    lines = [
        "| inversion, decoded by the same solver | calls | std x_T background / cells | kurtosis | corr(x_T, x_0) | round-trip RMSE | DDIM 100 ÷ it |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        deviations = f"{row['std_background']:.3f} / {row['std_cells']:.3f}"
        shape = f"{row['kurtosis']:.2f} | {row['correlation']:.3f}"
        lines.append(
            f"| {name} | {row['calls']} | {deviations} | {shape} | {row['rmse']:.5f} | {reference / row['rmse']:.1f} |"
        )
    return "\n".join(lines)


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


if __name__ == "__main__":
    main()
