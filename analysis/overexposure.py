"""Which predictions, schedules, samplers and scales of guidance give values outside [-1, 1], what confining them does, and what it costs.

    python analysis/overexposure.py --out DIR

Trains four networks of 0.4 million parameters on the same synthetic cells (a control and two compounds, 16 px), which differ in
prediction and schedule alone, and samples from the same noise. What is done already is not done again. Prints Markdown and writes
DIR/overexposure.json and DIR/overexposure.png.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from inversion_table import synthetic_store, trained_base
from torch import Tensor

from cellbridge.assembly import Base, build_sampler, guided, load_classifier
from cellbridge.config import ScheduleConfig, SolverConfig, TrainingConfig
from cellbridge.data.store import Store, open_store
from cellbridge.metrics.features import Extractor, extract, standardised
from cellbridge.metrics.fid import frechet_and_kernel
from cellbridge.networks.classifier import Classifier, extractor_name, logits_of, weights_sha256
from cellbridge.plots.canvas import SERIES, new_axes, quiet
from cellbridge.runs import RunDir, write_json
from cellbridge.runtime import noise_per_image
from cellbridge.stages import train_classifier
from cellbridge.training.events import read

NETWORKS = {
    "epsilon, linear": ScheduleConfig(prediction="epsilon", kind="linear"),
    "epsilon, cosine": ScheduleConfig(prediction="epsilon", kind="cosine"),
    "v, cosine": ScheduleConfig(prediction="v", kind="cosine"),
    "v, linear, zero SNR": ScheduleConfig(prediction="v", kind="linear", zero_terminal_snr=True),
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "DDPM 50": {"method": "ddpm", "steps": 50, "grid": "uniform"},
    "DDIM 50": {"method": "ddim", "steps": 50, "grid": "uniform"},
    "flow 25 x 2": {},
}
SCALES = (1.0, 2.0, 4.0)
THRESHOLDS = {"none": SCALES, "clip": (1.0, 4.0), "dynamic": (1.0, 4.0)}
BEYOND = 1.05
"""An image with any value above this, or below its negative, counts as over-exposed."""


def main() -> None:
    """Fill in the rows that are missing, and print and draw them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-condition", type=int, default=24)
    asked = parser.parse_args()
    path = synthetic_store(asked.out, size_px=16)
    store, names = open_store(path), _names(path)
    classifier = trained_classifier(path, asked.out / "classifier")
    extractor = features_of(classifier, asked.out / "classifier", store)
    first, second = (real_cells(store, names, n=asked.per_condition, skip=skip) for skip in (0, asked.per_condition))
    file = asked.out / "overexposure.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"monitors": {}, "rows": {}}
    found["channels"] = list(store.info.channels)
    found["real"] = score(second, first, classifier=classifier, extractor=extractor)
    for network, schedule in NETWORKS.items():
        run = asked.out / network.replace(", ", "-").replace(" ", "_")
        base = trained_base(path, run, schedule=schedule, conditions="all")
        found["monitors"][network] = monitors(run)
        for name, solver in solvers():
            key = f"{network} | {name}"
            if key not in found["rows"]:
                images = samples(base, names, solver=solver, n=asked.per_condition)
                found["rows"][key] = score(images, first, classifier=classifier, extractor=extractor)
                write_json(file, found)
    write_json(file, found)
    print(f"{len(first)} images a row\n\n{markdown(found)}\n\n{monitor_table(found['monitors'])}")
    draw(found, asked.out / "overexposure.png")


def solvers() -> Iterator[tuple[str, SolverConfig]]:
    """Yield `sampler | threshold | scale` and its settings; guidance is measured from the unconditional row."""
    for (sampler, settings), (threshold, scales) in product(SAMPLERS.items(), THRESHOLDS.items()):
        for scale in scales:
            chosen = {"guidance_scale": scale, "guidance_from": "unconditional", "threshold": threshold}
            yield f"{sampler} | {threshold} | {scale:g}", SolverConfig.model_validate(settings | chosen)


def trained_classifier(store: Path, out: Path) -> Classifier:
    """Return what tells the conditions apart, trained on the training plates."""
    if not RunDir(out).model.is_dir():
        training = TrainingConfig(
            steps=400, batch_size=64, learning_rate=2e-3, weight_decay=0.01, ema_decay=0.99, checkpoint_every=400
        )
        train_classifier.run(train_classifier.Config(store=store, training=training, device="cpu"), out=out)
    return load_classifier(out)[0]


def features_of(classifier: Classifier, run: Path, store: Store) -> Extractor:
    """Return the classifier's features, standardised on training cells."""
    model = RunDir(run).model
    own = Extractor(extractor_name(model), weights_sha256(model), classifier.features)
    training = torch.from_numpy(store.images(store.select(split="train")[::4]))
    return standardised(own, training, name="training cells")


def real_cells(store: Store, names: list[str], *, n: int, skip: int) -> Tensor:
    """Return n cells of the test plate for each condition, spread over its wells; `skip` others make a disjoint draw."""
    rows = []
    for name in names:
        own = store.select(split="test", conditions=[name])
        rows += list(own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0)).numpy()][skip : skip + n])
    return torch.from_numpy(store.images(rows))


def samples(base: Base, names: list[str], *, solver: SolverConfig, n: int) -> Tensor:
    """Draw n images of each condition, from the same noise for every network and solver."""
    labels = torch.tensor([base.card.row(name) for name in names]).repeat_interleave(n)
    seeds = torch.arange(len(labels))
    x_T = noise_per_image(seeds, (len(base.card.channels), base.card.size_px, base.card.size_px), purpose="x_T")
    denoiser = guided(base.denoiser(), solver, base.card)
    return build_sampler(solver).sample(denoiser, x_T, labels, seeds=seeds)


def score(images: Tensor, real: Tensor, *, classifier: Classifier, extractor: Extractor) -> dict[str, Any]:
    """Return how far values reach, the share that the classifier takes for what was asked, and the distance to real cells at the same n.

    Images are in equal parts, condition by condition, in the classifier's order.
    """
    logits = logits_of(classifier, images)
    asked = torch.arange(logits.shape[1]).repeat_interleave(len(images) // logits.shape[1])
    per_channel = images.movedim(1, 0).flatten(1)
    return {
        "outside": (images.abs() > 1).float().mean().item(),
        "images_beyond": (images.abs().flatten(1).amax(dim=1) > BEYOND).float().mean().item(),
        "min": per_channel.amin(dim=1).tolist(),
        "max": per_channel.amax(dim=1).tolist(),
        "hit": (logits.argmax(dim=1) == asked).float().mean().item(),
        "frechet": frechet_and_kernel(extract(extractor, images), extract(extractor, real))[0],
    }


def monitors(run: Path) -> dict[str, float]:
    """Return the share of predicted values outside [-1, 1] in each timestep decile, over the last fifth of a training."""
    logged = [event for event in read(RunDir(run).events) if event["event"] == "logged"]
    late = logged[-len(logged) // 5 :]
    keys = [f"x_0/outside/t{band}" for band in range(10)]
    shares = {key: [event[key] for event in late if key in event] for key in keys}
    return {key.rsplit("/", 1)[1]: sum(values) / len(values) for key, values in shares.items()}


def markdown(found: Mapping[str, Any]) -> str:
    """Return a row per network and sampler; three numbers in a cell are for guidance 1, 2 and 4, two for 1 and 4."""
    heads = ("outside, %", f"images beyond {BEYOND}, %", "range at 1", "range at 4", "hit, %", "clip: hit, %")
    heads += ("dynamic: hit, %", "FD", "clip: FD", "dynamic: FD")
    lines = [f"| network | sampler | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for network, sampler in product(NETWORKS, SAMPLERS):

        def of(key: str, threshold: str = "none", *, start: str = f"{network} | {sampler}") -> list[Any]:
            return [found["rows"][f"{start} | {threshold} | {scale:g}"][key] for scale in THRESHOLDS[threshold]]

        lowest, highest = [min(part) for part in of("min")], [max(part) for part in of("max")]
        ranges = [f"{low:.3g} … {high:.3g}" for low, high in zip(lowest, highest, strict=True)]
        cells = [_joined(of("outside"), ".2f", 100), _joined(of("images_beyond"), ".0f", 100), ranges[0], ranges[-1]]
        cells += [_joined(of("hit", threshold), ".0f", 100) for threshold in THRESHOLDS]
        cells += [_joined(of("frechet", threshold), ".3g") for threshold in THRESHOLDS]
        lines.append(f"| {network} | {sampler} | {' | '.join(cells)} |")
    real = found["real"]
    bounds = [f"{min(real['min']):.3g} … {max(real['max']):.3g}", "–", f"{100 * real['hit']:.0f}", "–", "–"]
    bounds += [f"{real['frechet']:.3g}", "–", "–"]
    lines.append(
        f"| real cells | – | {100 * real['outside']:.2f} | {100 * real['images_beyond']:.0f} | {' | '.join(bounds)} |"
    )
    return "\n".join(lines)


def monitor_table(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Return what `x_0/outside` says in training, a row per network and a column per timestep decile."""
    lines = ["| x_0/outside, % | " + " | ".join(f"t{band}" for band in range(10)) + " |", "|---" * 11 + "|"]
    lines += [f"| {name} | {' | '.join(f'{100 * v:.1f}' for v in row.values())} |" for name, row in shares.items()]
    return "\n".join(lines)


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Draw the range of every channel without a threshold at guidance 1 and 4, a colour per network and a group per sampler."""
    channels, axes = found["channels"], new_axes(8.6, 3.2)
    width = len(NETWORKS) * len(channels) + 2
    for (group, sampler), (index, network) in product(enumerate(SAMPLERS), enumerate(NETWORKS)):
        left = group * width + index * len(channels)
        for scale, thickness in ((4.0, 1.2), (1.0, 4.0)):
            row = found["rows"][f"{network} | {sampler} | none | {scale:g}"]
            label = network if group == 0 and scale == 1.0 else None
            places = range(left, left + len(channels))
            axes.vlines(places, row["min"], row["max"], color=SERIES[index], linewidth=thickness, label=label)
    axes.set_yscale("symlog", linthresh=1.5)
    axes.axhspan(-1, 1, color="0.92", zorder=0)
    axes.set_xticks([group * width + width / 2 - 1.5 for group in range(len(SAMPLERS))], list(SAMPLERS))
    axes.set_ylabel(f"values of {', '.join(channels)}\nthick: guidance 1; thin: 4", fontsize=8)
    axes.legend(frameon=False, fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    quiet(axes).figure.savefig(file, dpi=130)


def _joined(values: list[float], form: str, factor: float = 1.0) -> str:
    return " / ".join(format(factor * value, form) for value in values)


def _names(store: Path) -> list[str]:
    """Return the conditions in the classifier's order, the control first."""
    info = open_store(store).info
    return [info.control, *(c.name for c in info.conditions if c.name != info.control)]


if __name__ == "__main__":
    main()
