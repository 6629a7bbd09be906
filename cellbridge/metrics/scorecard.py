"""The table of one target: every arm (model, null row, bound) scored in every column, at one n.

An arm is a set of images that are said to show the target, with what extractors and classifier see in them. Arms over the same source
cells are compared cell by cell; real cells of the target are other cells, and have no error per cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellbridge.metrics import classification, content
from cellbridge.metrics.contrasts import paired_difference
from cellbridge.metrics.fid import Distances, distances, gap_closed
from cellbridge.metrics.intervals import Blocks, Estimate, ratio, share

Kind = Literal["model", "null", "real", "bound"]
"""A method under judgement; what it must beat; real cells of the target; the truth and the best that can be known of it."""


@dataclass(frozen=True)
class Arm:
    """Images that are said to show the target.

    Parameters
    ----------
    key : a short name for programs, such as "copy" or "model:ddib".
    images : (n, channel, height, width).
    features : of the images, by extractor: (n, feature) each.
    logits : of the classifier, (n, condition).
    blocks : the cells that are resampled together.
    paired : whether row i belongs to source cell i.
    of_target : whether the images are real cells of the target though the arm is a null row: their hits and distances are those of the
        row of real cells.
    """

    key: str
    name: str
    kind: Kind
    images: Tensor
    features: Mapping[str, Tensor]
    logits: NDArray[np.floating]
    blocks: Blocks
    paired: bool = True
    of_target: bool = False


@dataclass(frozen=True)
class Truth:
    """What is known of the source cells' counterfactuals.

    Parameters
    ----------
    known : (n,), true where the error can be measured; not in a cell whose mask is empty.
    responds : (n,), true where the cell does respond.
    counterfactual : (n, channel, height, width).
    best : the best possible prediction, of the same shape; None where it is not known.
    masks : (n, height, width), true inside the cell.
    deviation : (channel,), standard deviation of real images.
    """

    known: NDArray[np.bool_]
    responds: NDArray[np.bool_]
    counterfactual: NDArray[np.floating]
    best: NDArray[np.floating] | None
    masks: NDArray[np.bool_]
    deviation: NDArray[np.float64]

    def errors(self, images: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the squared error of the cells where it can be measured: (known,)."""
        rows = self.known
        return content.cell_squared_error(
            images[rows], self.counterfactual[rows], self.masks[rows], deviation=self.deviation
        )


@dataclass(frozen=True)
class Sample:
    """Features of some cells, by extractor, and which of the cells are resampled together."""

    features: Mapping[str, Tensor]
    blocks: Blocks


@dataclass(frozen=True)
class Draws:
    """The real cells that distances are measured against, in disjoint draws of one size.

    Parameters
    ----------
    rows : which cells of an arm are scored: as many as each draw has.
    reference : of the real target, that arms are scored against.
    floor : two further draws of the real target.
    ceiling : real control cells that are not among the scored sources; measured against the second draw of the floor.
    """

    rows: NDArray[np.int64]
    reference: Sample
    floor: tuple[Sample, Sample]
    ceiling: Sample


@dataclass(frozen=True)
class Judge:
    """How arms are scored: in which extractors' features (the first gives the table's columns), and as which condition of the classifier."""

    extractors: Sequence[str]
    target: int | None
    """Row of the target among the classifier's conditions; None where the classifier does not know it."""
    control: int
    resamples: int
    seed: int


def score_target(arms: Sequence[Arm], draws: Draws | None, *, truth: Truth | None, judge: Judge) -> dict[str, Any]:
    """Score every arm of one target.

    Parameters
    ----------
    draws : None where there are too few real cells, so that no distance is computed.

    Returns
    -------
    rows : one plain dictionary per arm, in order; what cannot be computed is `{"not_computed": why}`.
    distances : floor and ceiling, per extractor.
    """
    bounds = [] if draws is None else [_bounds(draws, name) for name in judge.extractors]
    hits = _hit_columns(arms, judge)
    errors = _error_columns(arms, truth, judge) if truth is not None else {}
    rows = []
    for arm in arms:
        row: dict[str, Any] = {"key": arm.key, "name": arm.name, "kind": arm.kind, "n": len(arm.images)}
        if draws is None:
            row |= dict.fromkeys(("frechet", "kernel", "gap_closed", "gap_closed_kernel"), _TOO_FEW)
        for index, (extractor, bound) in enumerate(zip(judge.extractors, bounds, strict=False)):
            assert draws is not None
            columns = _distance_columns(arm, draws, extractor, bound)
            row |= columns if index == 0 else {"others": {**row.get("others", {}), extractor: columns}}
        rows.append(row | hits[arm.key] | errors.get(arm.key, {}))
    found = {name: bound.to_dict() for name, bound in zip(judge.extractors, bounds, strict=False)}
    return {"rows": rows, "distances": found}


_FEWER = {"not_computed": "fewer cells than the other rows; distances are compared at one n only"}
_REAL = {"not_computed": "these are real cells of the target, whose own row says it"}
_TOO_FEW = {"not_computed": "too few real cells for three disjoint draws of the target and one of the control"}


@dataclass(frozen=True)
class _Bounds:
    reference: Tensor
    floor: Distances
    ceiling: Distances

    def to_dict(self) -> dict[str, Any]:
        return {
            "features": self.reference.shape[1],
            "n": len(self.reference),
            "floor": {"frechet": self.floor.frechet.to_dict(), "kernel": self.floor.kernel.to_dict()},
            "ceiling": {"frechet": self.ceiling.frechet.to_dict(), "kernel": self.ceiling.kernel.to_dict()},
        }


def _bounds(draws: Draws, extractor: str) -> _Bounds:
    (first, second), control = draws.floor, draws.ceiling
    seen = [sample.features[extractor] for sample in (first, second, control)]
    return _Bounds(
        draws.reference.features[extractor],
        distances(seen[0], seen[1], blocks=(first.blocks, second.blocks)),
        distances(seen[2], seen[1], blocks=(control.blocks, second.blocks)),
    )


def _distance_columns(arm: Arm, draws: Draws, extractor: str, bounds: _Bounds) -> dict[str, Any]:
    if arm.kind == "real":
        found, closed = bounds.floor, "1 by definition: this row is the floor"
    elif arm.of_target:
        return dict.fromkeys(("frechet", "kernel", "gap_closed", "gap_closed_kernel"), _REAL)
    elif not arm.paired and len(arm.images) < len(draws.rows):
        return dict.fromkeys(("frechet", "kernel", "gap_closed", "gap_closed_kernel"), _FEWER)
    else:
        rows = draws.rows if arm.paired else np.arange(len(draws.rows))
        features = arm.features[extractor][torch.as_tensor(rows)]
        found = distances(features, bounds.reference, blocks=(arm.blocks.take(rows), draws.reference.blocks))
        closed = "the ceiling (control against target) does not lie above the floor (target against target)"
    columns: dict[str, Any] = {
        "n_distance": len(draws.rows),
        "frechet": found.frechet.to_dict(),
        "kernel": found.kernel.to_dict(),
    }
    if arm.kind == "real":
        return columns | {key: {"not_computed": closed} for key in ("gap_closed", "gap_closed_kernel")}
    columns["gap_closed"] = _or_reason(gap_closed(found, bounds.floor, bounds.ceiling, of="frechet"), closed)
    columns["gap_closed_kernel"] = _or_reason(gap_closed(found, bounds.floor, bounds.ceiling, of="kernel"), closed)
    return columns


def _hit_columns(arms: Sequence[Arm], judge: Judge) -> dict[str, dict[str, Any]]:
    target = judge.target
    if target is None:
        reason = {"not_computed": "the classifier was not trained on this condition"}
        return {arm.key: {"target_hit": reason, "hit_relative": reason} for arm in arms}
    settings = {"resamples": judge.resamples, "seed": judge.seed}
    hits = {arm.key: classification.target_hits(arm.logits, target) for arm in arms}
    odds = {arm.key: classification.log_odds(arm.logits, target, judge.control) for arm in arms}
    real = next((arm for arm in arms if arm.kind == "real"), None)
    columns: dict[str, dict[str, Any]] = {}
    for arm in arms:
        if arm.of_target:
            columns[arm.key] = {"target_hit": _REAL, "hit_relative": _REAL}
            continue
        estimate = share(hits[arm.key], arm.blocks, **settings)
        columns[arm.key] = {"target_hit": estimate.to_dict(), "log_odds": float(odds[arm.key].mean())}
        if real is not None:
            pair = (arm.blocks, real.blocks)
            relative = ratio(hits[arm.key].astype(float), hits[real.key].astype(float), pair, **settings)
            columns[arm.key]["hit_relative"] = _or_reason(relative, "no real cell of the target is recognised")
        away = {other.key: _seen_as_control(arm, other, judge) for other in arms if other.key == "copy" and arm.paired}
        columns[arm.key]["control_against"] = {key: found.to_dict() for key, found in away.items()}
        if arm.paired and arm.kind == "model":
            others = [other.key for other in arms if other.paired and not other.of_target and _compared(arm, other)]
            for name, values in (("hit_against", hits), ("odds_against", odds)):
                columns[arm.key][name] = {
                    key: paired_difference(values[arm.key], values[key], arm.blocks).to_dict() for key in others
                }
    return columns


def _seen_as_control(arm: Arm, other: Arm, judge: Judge) -> Estimate:
    """Estimate how much more often outputs are taken for the control than another arm's outputs of the same cells."""
    own, others = (classification.target_hits(part.logits, judge.control) for part in (arm, other))
    return paired_difference(own, others, arm.blocks)


def _error_columns(arms: Sequence[Arm], truth: Truth, judge: Judge) -> dict[str, dict[str, Any]]:
    if not truth.known.any():
        return {arm.key: {"error": {"not_computed": "no scored cell has a mask"}} for arm in arms}
    paired = [arm for arm in arms if arm.paired]
    errors = {arm.key: truth.errors(arm.images.numpy()) for arm in paired}
    responds = truth.responds[truth.known]
    everyone = np.arange(len(responds))
    columns: dict[str, dict[str, Any]] = {}
    for arm in paired:
        blocks = arm.blocks.take(np.flatnonzero(truth.known))
        columns[arm.key] = {"mean_cell_error": content.mean_error(errors[arm.key])}
        for suffix, cells in (("", everyone), ("_responders", np.flatnonzero(responds))):
            part = {key: values[cells] for key, values in errors.items()}
            others = [other.key for other in paired if arm.kind == "model" and _compared(arm, other)]
            found = _error_entries(arm.key, part, others, blocks.take(cells), judge) if len(cells) else {}
            columns[arm.key] |= {f"{name}{suffix}": value for name, value in found.items()}
        if arm.key == "counterfactual":
            reason = {"not_computed": "this row is the truth itself"}
            columns[arm.key] |= dict.fromkeys(("score", "score_responders"), reason)
    return columns


def _compared(arm: Arm, other: Arm) -> bool:
    """Say whether a model is set against another arm: other models, and null rows that are not another model's own."""
    of_model = other.key.partition("model:")[2]
    return other.key != arm.key and (other.kind == "model" or not of_model or other.key.endswith(arm.key))


def _error_entries(
    key: str, errors: dict[str, NDArray[np.float64]], others: Sequence[str], blocks: Blocks, judge: Judge
) -> dict[str, Any]:
    settings = {"resamples": judge.resamples, "seed": judge.seed}
    entries: dict[str, Any] = {"error": content.pooled_error(errors[key], blocks, **settings).to_dict()}
    if "best" in errors and "copy" in errors:
        found = content.score(errors[key], errors["best"], errors["copy"], blocks, **settings)
        usable = np.isfinite(found.value) and errors["copy"].mean() > errors["best"].mean()
        entries["score"] = (
            found.to_dict() if usable else {"not_computed": "copying is as good as the best possible here"}
        )
    entries["against"] = {other: content.difference(errors[key], errors[other], blocks).to_dict() for other in others}
    return entries


def _or_reason(estimate: Estimate | None, reason: str) -> dict[str, Any]:
    return {"not_computed": reason} if estimate is None else estimate.to_dict()
