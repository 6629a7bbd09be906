"""Are outputs copies, of training cells or of one another?"""

from typing import Any

import numpy as np

from cellbridge.evaluation.arms import training_rows
from cellbridge.evaluation.sections import Column, absent, share, table
from cellbridge.evaluation.target import Part, Target, images_of
from cellbridge.metrics.intervals import Estimate, wilson
from cellbridge.metrics.memorisation import memorisation
from cellbridge.metrics.variety import repeats

_ABOUT = (
    "Copies: share of cells nearer to one training cell of the target, against the next one, than any of one half of the held-out real cells; the "
    "other half is the row beside it. Flips, turns, gain and fine noise do not hide a copy. Repeats: share of cells that are another one's copy."
)
_COLUMNS = (
    share("copied", "copies of training cells"),
    share("held_out", "real held-out cells"),
    share("excess", "difference"),
    share("repeats", "repeats"),
    Column("distinct", "distinct", digits=0),
)
_TITLE = "Are they copies?"


def judge_copies(target: Target) -> Part:
    """Judge every model's outputs by whether they are training cells, or repeat one another."""
    comparison, real = target.comparison, target.arm("real")
    training = target.sights.reference.images(training_rows(comparison.train_target, seed=target.draws.seed)).numpy()
    if len(comparison.sources) < 2:
        return Part(absent("memorisation", _TITLE, "one cell; two or more are needed"))
    of_sources = _repeats(images_of(target.require("copy")), target)
    part, rows = Part({}), []
    for arm in target.models:
        images = images_of(arm)
        found = None
        if real is not None:
            found = memorisation(
                images,
                training,
                images_of(real),
                (arm.blocks, real.blocks),
                level=target.draws.charge_level,
                **target.draws.settings,
            )
        own = _repeats(images, target)
        row: dict[str, Any] = {"key": arm.key, "name": arm.name, "kind": arm.kind}
        row |= {"repeats": own["share"], "distinct": own["distinct"]}
        evidence: dict[str, Any] = {"repeats": own | {"sources": of_sources["share"]}}
        if found is not None:
            row |= {"copied": found.copied, "held_out": found.held_out, "excess": found.excess}
            evidence["memorisation"] = found.to_dict()
            nearest = comparison.train_target[_places(target)[found.nearest.row]]
            part.cells[arm.key] = {
                "nearest_training_cell": target.reference.obs.index.to_numpy()[nearest],
                "nearest_training_distance": found.nearest.distance,
                "nearest_training_ratio": found.nearest.ratio,
            }
        part.evidence[arm.key] = evidence
        rows.append(row)
    rows.append({"key": "copy", "name": "the source cells", "kind": "null", "repeats": of_sources["share"]})
    notes = [] if len(training) >= 2 else ["There are no training cells of the target to compare with."]
    part.section = table("memorisation", _TITLE, _ABOUT, columns=_COLUMNS, rows=rows, notes=notes)
    return part


def _places(target: Target) -> np.ndarray:
    """Return which of the target's training cells were compared with."""
    everything = np.arange(len(target.comparison.train_target))
    return training_rows(everything, seed=target.draws.seed)


def _repeats(images: np.ndarray, target: Target) -> dict[str, Any]:
    """Return the share of repeated images with Wilson's interval at the level of a charge."""
    found = repeats(images)
    low, high = wilson(round(found.share * found.n), found.n, level=target.draws.charge_level)
    estimate = Estimate(found.share, low, high, found.n, "cells")
    return {"share": estimate.to_dict(), "distinct": found.distinct, "most": found.most}
