"""How should a small network be told its condition? Every conditioning scheme, on synthetic cells whose counterfactuals are known.

    python analysis/conditioning_ablation.py --out DIR             everything; the same command again continues
    python analysis/conditioning_ablation.py --out DIR --table     the Markdown table of what is there

One set of plates, one classifier. Each scheme × seed is a joint model of all conditions, trained from scratch on the same number of
images (of which the slowest scheme sees as many as it can in `--seconds` of processor time), and judged on control cells of plates
that no model has seen, translated to every condition by DDIB, without guidance and with a little. A run that was done is skipped; one
that was stopped is started anew. The seed is that of the training alone: plates, classifier and judged cells are the same for all.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditioning_table import draw, markdown, summary
from numpy.typing import NDArray
from synthetic_world import make_world
from torch import Tensor

import cellbridge  # noqa: F401  (before diffusers)
from cellbridge import assembly
from cellbridge.conditions import Condition
from cellbridge.config import ConditioningConfig, DitConfig, NetworkConfig, SolverConfig, TrainingConfig
from cellbridge.data.balance import draw_evenly
from cellbridge.data.store import Store, open_store
from cellbridge.diffusion.objective import diffusion_loss
from cellbridge.metrics.classification import target_hits
from cellbridge.metrics.content import best_possible, cell_squared_error, channel_deviation
from cellbridge.networks.classifier import logits_of
from cellbridge.runs import write_json
from cellbridge.runtime import derive_seed, generator
from cellbridge.stages import pretrain, synthesize
from cellbridge.typing import CellBatch

Floats = NDArray[np.floating]

CONTROL = "DMSO"
CONDITIONS = ("taxol@1", "taxol@0.1", "latrunculin@1", "tunicamycin@5")
PLATES = tuple(f"SY00000{number}" for number in range(1, 7))
HELD_OUT = PLATES[-2:]
BATCH, JUDGED, LOSS_CELLS = 32, 128, 1000
GUIDANCE = 1.5
"""Away from the control, as in the demo."""


def network(scheme: str, *, backbone: str = "unet", **told: Any) -> NetworkConfig:
    """Describe a network of the ablation: all alike but for the scheme and what it needs."""
    conditioning = ConditioningConfig(scheme=scheme, width=32, token_dropout=0.0, **told)
    sizes = {"widths": (16, 32), "attention_levels": (1,), "dit": DitConfig(width=64, depth=3)}
    return NetworkConfig(backbone=backbone, conditioning=conditioning, zero_out=True, **sizes)


BOTH = ("compound", "dose")
CROSS: dict[str, Any] = {"backbone": "cross_attention_unet", "tokens": BOTH}
SCHEMES = {
    "UNet: one-hot": network("one_hot", tokens=BOTH),
    "UNet: a row per condition, added": network("added"),
    "UNet: compound and dose, added": network("added", tokens=BOTH),
    "UNet: attend, then project": network("attend_then_project", tokens=BOTH),
    "UNet: late": network("late", tokens=BOTH),
    "cross UNet: compound and dose, added": network("added", **CROSS),
    "cross UNet: concatenated": network("concatenated", **CROSS),
    "cross UNet: cross-attention": network("cross_attention", **CROSS),
    "cross UNet: cross-attention, fingerprint": network("cross_attention", compound="fingerprint", **CROSS),
    "cross UNet: cross-attention, name": network("cross_attention", compound="characters", **CROSS),
    "DiT: a row per condition, added": network("added", backbone="dit"),
}


def slug(scheme: str) -> str:
    """Return a scheme's name as `--schemes` and file names have it."""
    return "_".join("".join(c if c.isalnum() else " " for c in scheme.lower()).split())


@dataclass(frozen=True)
class Judge:
    """What every model is judged by.

    Parameters
    ----------
    sources : held-out control cells that no condition removes.
    counterfactual, best : condition → images of the same cells.
    masks : (n, height, width), true inside the cell.
    deviation : (channel,), of the sources.
    real : condition → real held-out cells.
    """

    classifier: torch.nn.Module
    names: list[str]
    sources: CellBatch
    counterfactual: dict[str, Floats]
    best: dict[str, Floats]
    masks: NDArray[np.bool_]
    deviation: NDArray[np.float64]
    real: dict[str, Floats]

    def hits(self, images: Mapping[str, Floats]) -> dict[str, float]:
        """Return the share of each condition's images that the classifier takes for it."""
        logits = {name: logits_of(self.classifier, torch.as_tensor(images[name])).numpy() for name in CONDITIONS}
        return {name: float(target_hits(found, self.names.index(name)).mean()) for name, found in logits.items()}

    def effects(self, images: Mapping[str, Floats]) -> dict[str, NDArray[np.float64]]:
        """Return T_A(x) - T_control(x) inside the cells, in standard deviations of each stain: condition → (n · d)."""
        inside = self.masks[:, None] / self.deviation[:, None, None]
        return {name: ((images[name] - images[CONTROL]) * inside).ravel() for name in CONDITIONS}

    def rms_error(self, images: Mapping[str, Floats]) -> NDArray[np.float64]:
        """Return the root mean square error against the counterfactual, by condition."""
        truth, masks, deviation = self.counterfactual, self.masks, self.deviation
        errors = [cell_squared_error(images[c], truth[c], masks, deviation=deviation) for c in CONDITIONS]
        return np.sqrt([error.mean() for error in errors])

    def figures(self, images: Mapping[str, Floats]) -> dict[str, Any]:
        """Score the judged cells under every condition, the control included.

        Cosine and norm are pooled over cells: Σ_i a_i·b_i / sqrt(Σ|a_i|² Σ|b_i|²), as the effect on a cell that does not respond
        is nothing, and has no direction. Error: (model - best possible) / (copy - best possible), of root mean squares.
        """
        source = self.sources.images.numpy()
        control = {CONTROL: source}
        own, real = self.effects(images), self.effects(self.counterfactual | control)
        norm = {name: float(np.linalg.norm(effect)) for name, effect in own.items()}
        cosine = {
            f"{a} | {b}": float(own[a] @ own[b] / (norm[a] * norm[b])) if norm[a] * norm[b] else None
            for a, b in combinations(CONDITIONS, 2)
        }
        copy, floor = self.rms_error(dict.fromkeys(CONDITIONS, source)), self.rms_error(self.best)
        error = (self.rms_error(images) - floor) / (copy - floor)
        return {
            "hits": self.hits(images),
            "cosine": cosine,
            "norm": {name: norm[name] / float(np.linalg.norm(real[name])) for name in CONDITIONS},
            "error": dict(zip(CONDITIONS, error.tolist(), strict=True)),
        }


def make_judge(out: Path) -> Judge:
    """Choose the judged cells and read their truth."""
    reference, truth = open_store(out / "store.zarr"), open_store(out / "truth.zarr")
    classifier, card = assembly.load_classifier(out / "classifier")
    controls = reference.select(split="test", conditions=[CONTROL])
    places = {
        (origin, name): _truth_rows(truth, reference, controls, name, origin)
        for origin in ("counterfactual", "responding")
        for name in CONDITIONS
    }
    masks = reference.masks(controls)
    assert masks is not None
    usable = np.all([rows >= 0 for rows in places.values()], axis=0) & (masks > 0).any(axis=(1, 2))
    rows = draw_evenly(controls[usable], reference.plates[controls[usable]], n=JUDGED, seed=0)
    chosen = np.searchsorted(controls, rows)
    sources = _batch(reference, rows)
    source = sources.images.numpy()
    counterfactual = {name: truth.images(places["counterfactual", name][chosen]) for name in CONDITIONS}
    probability = truth.obs["Truth_PResponse"].to_numpy(dtype=float)
    best = {}
    for name in CONDITIONS:
        responding = places["responding", name][chosen]
        best[name] = best_possible(source, truth.images(responding), probability[responding])
    real = {name: reference.images(reference.select(split="test", conditions=[name])) for name in CONDITIONS}
    deviation = channel_deviation(source)
    return Judge(classifier, card["conditions"], sources, counterfactual, best, masks[chosen] > 0, deviation, real)


def _truth_rows(truth: Store, reference: Store, cells: NDArray[Any], name: str, origin: str) -> NDArray[np.int64]:
    """Return the truth's row of each cell, -1 where it has none."""
    rows = np.flatnonzero((truth.condition_names == name) & (truth.obs["Metadata_Origin"] == origin).to_numpy())
    row_of = dict(zip(truth.obs["Metadata_SourceCell"].to_numpy()[rows], rows, strict=True))
    return np.array([row_of.get(cell, -1) for cell in reference.obs["Metadata_Cell"].iloc[cells]])


def _batch(store: Store, rows: NDArray[Any]) -> CellBatch:
    cells = tuple(store.obs["Metadata_Cell"].iloc[rows])
    seeds = torch.tensor([derive_seed("conditioning ablation", cell) for cell in cells])
    names, plates = tuple(store.condition_names[rows]), tuple(store.plates[rows])
    return CellBatch(torch.from_numpy(store.images(rows)), cells, plates, names, seeds)


def train(out: Path, run: Path, scheme: str, *, steps: int, seed: int) -> dict[str, Any]:
    """Train a joint model from scratch, and return its size and the processor time of the whole command."""
    shutil.rmtree(run, ignore_errors=True)
    training = TrainingConfig(
        steps=steps,
        batch_size=BATCH,
        learning_rate=5e-3,
        checkpoint_every=steps,
        precision="fp32",
        seed=seed,
    )
    config = pretrain.Config(
        store=out / "store.zarr", conditions="all", network=SCHEMES[scheme], training=training, device="cpu"
    )
    start = time.process_time()
    summary = pretrain.run(config, out=run)
    return {"cpu_seconds": time.process_time() - start, "parameters": summary["parameters"], "images": steps * BATCH}


def plan(out: Path, seconds: float) -> dict[str, Any]:
    """Return how many steps every scheme takes: as many as the slowest of all can in `seconds` of processor time."""
    file = out / "plan.json"
    if not file.exists():
        train(out, out / "calibration", next(iter(SCHEMES)), steps=2, seed=0)  # what is imported once
        cost = {}
        for scheme in SCHEMES:
            few, many = (train(out, out / "calibration", scheme, steps=steps, seed=0) for steps in (4, 28))
            cost[scheme] = (many["cpu_seconds"] - few["cpu_seconds"]) / 24
        slowest = max(cost.values())
        write_json(file, {"seconds": seconds, "steps": max(2, int(seconds / slowest)), "seconds_per_step": cost})
    found: dict[str, Any] = json.loads(file.read_text())
    if found["seconds"] != seconds:
        raise SystemExit(f"{file}: is of --seconds {found['seconds']:g}, found {seconds:g}. Choose another --out.")
    return found


@torch.inference_mode()
def translate(base: assembly.Base, cells: CellBatch, *, scale: float) -> dict[str, Floats]:
    """Return the cells under every condition and, there and back, under the control."""
    control = Condition.parse(CONTROL)
    models, solver = assembly.load_models(base, []), SolverConfig(steps=13, guidance_scale=scale)
    translator = assembly.build_translator("ddib", models, source=control, solver=solver, x_T="inverted")
    targets = (CONTROL, *CONDITIONS)
    return {name: translator.translate(cells, target=Condition.parse(name)).images.numpy() for name in targets}


@torch.inference_mode()
def held_out_loss(base: assembly.Base, store: Store) -> dict[str, float]:
    """Return the denoising loss at fixed times and noise, as conditioned, and with every condition hidden."""
    rows = store.select(split="test")
    rows = draw_evenly(rows, store.condition_names[rows], n=LOSS_CELLS, seed=0)
    images = torch.from_numpy(store.images(rows))
    labels = torch.tensor([base.card.row(name) for name in store.condition_names[rows]])
    chance = generator("cpu", "conditioning ablation", "loss")
    order = torch.randperm(len(rows), generator=chance)
    t = (order + 0.5) / len(rows) * (base.schedule.steps - 1)
    epsilon = torch.randn(images.shape, generator=chance)

    def loss(told: Tensor) -> float:
        prediction = base.card.schedule.prediction
        found = diffusion_loss(
            base.network, images, told, schedule=base.schedule, prediction=prediction, t=t, epsilon=epsilon
        )
        return float(found.loss)

    return {"loss": loss(labels), "hidden": loss(torch.zeros_like(labels))}


def ablate(out: Path, schemes: list[str], seeds: list[int], seconds: float) -> None:
    """Train and judge what is not done, all schemes of a seed before the next seed."""
    plates = synthesize.Config(plates=PLATES, test_plates=HELD_OUT, conditions=CONDITIONS, wells=(6,))
    make_world(out, plates, size_px=16, crop_px=32)
    judge, store, steps = make_judge(out), open_store(out / "store.zarr"), plan(out, seconds)["steps"]
    write_json(out / "bounds.json", bounds(judge))
    for seed in seeds:
        for scheme in schemes:
            file = out / "results" / f"{slug(scheme)}-{seed}.json"
            if file.exists():
                continue
            run = out / "runs" / file.stem
            if not (run / "cost.json").exists():
                write_json(run / "cost.json", train(out, run, scheme, steps=steps, seed=seed))
            base, cost = assembly.load_base(run), json.loads((run / "cost.json").read_text())
            plain, guided = (judge.figures(translate(base, judge.sources, scale=scale)) for scale in (1.0, GUIDANCE))
            found = {**plain, "guided": guided, **held_out_loss(base, store), **cost}
            file.parent.mkdir(exist_ok=True)
            write_json(file, {"scheme": scheme, "seed": seed, **found})
            print(f"done: {file}", flush=True)


def bounds(judge: Judge) -> dict[str, Any]:
    """Score what needs no model: copying, what can be known at best, the truth, and (hits alone) other, real cells."""
    source = {CONTROL: judge.sources.images.numpy()}
    return {
        "copy the control": judge.figures(dict.fromkeys((CONTROL, *CONDITIONS), source[CONTROL])),
        "best possible": judge.figures(judge.best | source),
        "counterfactual": judge.figures(judge.counterfactual | source),
        "real cells": {"hits": judge.hits(judge.real)},
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--schemes", help=", ".join(map(slug, SCHEMES)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--seconds", type=float, default=120.0, help="of processor time, for the slowest scheme")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and do nothing else")
    parser.add_argument("--figure", type=Path, help="where to draw the table, too")
    asked = parser.parse_args()
    by_slug = {slug(scheme): scheme for scheme in SCHEMES}
    wanted = list(by_slug) if asked.schemes is None else asked.schemes.split(",")
    if unknown := [name for name in wanted if name not in by_slug]:
        parser.error(f'--schemes: "{unknown[0]}" is none of {", ".join(by_slug)}')
    if not asked.table:
        torch.set_num_threads(1)
        asked.out.mkdir(parents=True, exist_ok=True)
        seeds = [int(seed) for seed in asked.seeds.split(",")]
        ablate(asked.out, [by_slug[name] for name in wanted], seeds, asked.seconds)
    table = summary(asked.out, SCHEMES)
    print(markdown(table))
    if asked.figure is not None:
        draw(table, asked.figure)


if __name__ == "__main__":
    main()
