"""Plate by plate: what every model is worth on each, and whether it works on all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellbridge.data.comparison import Rows
from cellbridge.evaluation.sections import Column, share, table
from cellbridge.evaluation.target import Part, Target, images_of, take
from cellbridge.metrics.classification import target_hits
from cellbridge.metrics.contrasts import share_difference
from cellbridge.metrics.effects import Sample
from cellbridge.metrics.fid import distances
from cellbridge.metrics.intervals import share as share_of
from cellbridge.metrics.intervals import student_mean
from cellbridge.metrics.plate_gains import PlateGain, plate_gains
from cellbridge.metrics.scorecard import Arm

_ABOUT = (
    "Hits: share of cells that the classifier takes for the target. Gained: of the outputs less those of the same cells copied. "
    "A plate fails where nothing is gained, less than on the others, and there was something to gain. Distances are to real target cells of the "
    "plate, in the first extractor's features, at one n per plate."
)
_COLUMNS = (
    Column("n", "n", digits=0),
    share("hits", "hits"),
    share("gain_hits", "hits gained over copying"),
    Column("gain_error", "squared error taken off the copy's", digits=3),
    share("real_hits", "real cells"),
    Column("n_distance", "n, distances", digits=0),
    Column("frechet", "Fréchet"),
    Column("kernel", "kernel × 10³", digits=0, factor=1e3),
    Column("copy_frechet", "Fréchet, copies"),
    Column("works", "on this plate"),
)
_TITLE = "Plate by plate"
_FEWEST = 4


def judge_places(target: Target) -> Part:
    """Judge every model on each plate."""
    real = _real(target)
    part, rows = Part({}), []
    for arm in target.models:
        found = {name: {gain.plate: gain for gain in gains} for name, gains in _gains(target, arm, real).items()}
        part.evidence[arm.key] = {name: [gain.to_dict() for gain in of.values()] for name, of in found.items()}
        for plate in np.unique(target.plates):
            row: dict[str, Any] = {"key": arm.key, "name": f"{arm.name}, {plate}", "kind": arm.kind}
            row |= _on_plate(target, arm, str(plate), real)
            row |= {f"gain_{name}": of[plate].gain for name, of in found.items() if plate in of}
            states = [of[plate].state for of in found.values() if plate in of]
            rows.append(row | ({"works": {"text": _together(states)}} if states else {}))
    notes = (
        [] if len(np.unique(target.plates)) > 1 else ["There is one plate: whether others are like it is not known."]
    )
    if len(real) == 0:
        notes.append("There are no real target cells to compare with.")
    part.section = table("per_plate", _TITLE, _ABOUT, columns=_COLUMNS, rows=rows, notes=notes)
    return part


def _real(target: Target) -> Rows:
    return target.rows_on(target.comparison.target, target.plates)


def _gains(target: Target, arm: Arm, real: Rows) -> dict[str, list[PlateGain]]:
    """Return what a model gains over copying on each plate, in target hits and, where the truth is known, in squared error."""
    level, copy, label = target.draws.charge_level, target.require("copy"), target.label
    found = {}
    if label is not None:
        hits, copies = (target_hits(part.logits, label) for part in (arm, copy))
        of_real, sample = target_hits(target.sights.reference.seen(real).logits, label), _sample(target, real)
        possible = {}
        for plate in np.unique(sample.plates):
            there, here = (np.flatnonzero(plates == plate) for plates in (sample.plates, target.plates))
            blocks = (sample.blocks.take(there), copy.blocks.take(here))
            possible[str(plate)] = share_difference(of_real[there], copies[here], blocks)
        gains = hits.astype(float) - copies
        found["hits"] = plate_gains(gains, target.plates, arm.blocks, possible=possible, level=level)
    truth = target.truth
    if truth is not None and truth.known.any():
        known = np.flatnonzero(truth.known)
        of_copy, of_model = (truth.errors(images_of(part)) for part in (copy, arm))
        plates, blocks_of_known = target.plates[known], arm.blocks.take(known)
        possible = {}
        for plate in np.unique(plates):
            here = np.flatnonzero(plates == plate)
            possible[str(plate)] = student_mean(of_copy[here], blocks_of_known.take(here))
        found["error"] = plate_gains(of_copy - of_model, plates, blocks_of_known, possible=possible, level=level)
    return found


def _on_plate(target: Target, arm: Arm, plate: str, real: Rows) -> dict[str, Any]:
    here = np.flatnonzero(target.plates == plate)
    there = real[target.reference.plates[real].astype(str) == plate]
    cells: dict[str, Any] = {"n": len(here)}
    if target.label is not None:
        hits = target_hits(arm.logits, target.label)[here]
        cells["hits"] = share_of(hits, arm.blocks.take(here), **target.draws.settings)
    if target.label is not None and len(there):
        of_real = target_hits(target.sights.reference.seen(there).logits, target.label)
        cells["real_hits"] = share_of(of_real, _sample(target, there).blocks, **target.draws.settings)
    if len(there):
        cells |= _distances(target, arm, target.require("copy"), plate, there)
    return cells


def _together(states: Sequence[str]) -> str:
    return "fails" if "fails" in states else "works" if "works" in states else "unclear"


def _sample(target: Target, rows: Rows) -> Sample:
    return target.real_sample(rows, _first(target))


def _first(target: Target) -> str:
    return target.sights.judges.extractors[0].name


def _distances(target: Target, arm: Arm, copy: Arm, plate: str, real: np.ndarray) -> dict[str, Any]:
    """Return the distances of outputs and of copies of one plate to its real target cells, at one n."""
    here = np.flatnonzero(target.plates == plate)
    n = min(len(here), len(real))
    if n < _FEWEST:
        return {"frechet": {"not_computed": f"{n} cells; {_FEWEST} or more are needed"}}
    rng = np.random.default_rng([target.draws.seed, 4])
    own = here[np.sort(rng.choice(len(here), n, replace=False))]
    other = real[np.sort(rng.choice(len(real), n, replace=False))]
    name = _first(target)
    sample = target.real_sample(other, name)
    features = target.sights.reference.seen(other).features[name]
    blocks = (arm.blocks.take(own), sample.blocks)
    found = distances(take(arm.features[name], own), features, blocks=blocks)
    copied = distances(take(copy.features[name], own), features, blocks=blocks)
    return {
        "n_distance": n,
        "frechet": found.frechet,
        "kernel": found.kernel,
        "copy_frechet": copied.frechet,
    }
