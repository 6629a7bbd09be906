"""The table of one target: every arm (model, null row, bound) scored in every column, at one n.

An arm is a set of images that are said to show the target. Arms over the same source cells are compared cell by cell; real cells of the
target are other cells, and have no error per cell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cellbridge.metrics import classification, content
from cellbridge.metrics.features import Extractor, extract
from cellbridge.metrics.fid import Distances, distances, gap_closed
from cellbridge.metrics.intervals import Blocks, Estimate, bootstrap, ratio, share

Kind = Literal["model", "null", "real", "bound"]
"""A method under judgement; what it must beat; real cells of the target; the truth and the best that can be known of it."""


@dataclass(frozen=True)
class Arm:
    """Images that are said to show the target.

    Parameters
    ----------
    images : (n, channel, height, width); row i belongs to source cell i, unless the arm is of kind "real".
    blocks : the cells that are resampled together.
    key : a short name for programs, such as "copy" or "model:ddib".
    """

    key: str
    name: str
    kind: Kind
    images: Tensor
    blocks: Blocks


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
class Draws:
    """The real cells that distances are measured against, in disjoint draws of one size.

    Parameters
    ----------
    rows : which cells of an arm are scored: as many as each draw has.
    reference : (images, blocks) of the real target, that arms are scored against.
    floor : two further draws of the real target.
    ceiling : real control cells that are not among the scored sources; measured against the second draw of the floor.
    """

    rows: NDArray[np.int64]
    reference: tuple[Tensor, Blocks]
    floor: tuple[tuple[Tensor, Blocks], tuple[Tensor, Blocks]]
    ceiling: tuple[Tensor, Blocks]


@dataclass(frozen=True)
class Judge:
    """What scores images: the extractors (the first gives the table's columns), and a classifier of conditions."""

    extractors: Sequence[Extractor]
    logits: Callable[[Tensor], NDArray[np.floating]]
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
    bounds = [] if draws is None else [_bounds(draws, extractor) for extractor in judge.extractors]
    logits = {arm.key: judge.logits(arm.images) for arm in arms}
    hits = _hit_columns(arms, logits, judge)
    errors = _error_columns(arms, truth, judge) if truth is not None else {}
    rows = []
    for arm in arms:
        row: dict[str, Any] = {"key": arm.key, "name": arm.name, "kind": arm.kind, "n": len(arm.images)}
        if draws is None:
            row |= dict.fromkeys(("frechet", "kernel", "gap_closed", "gap_closed_kernel"), _TOO_FEW)
        for index, (extractor, bound) in enumerate(zip(judge.extractors, bounds, strict=False)):
            assert draws is not None
            columns = _distance_columns(arm, draws, extractor, bound)
            row |= columns if index == 0 else {"others": {**row.get("others", {}), extractor.name: columns}}
        rows.append(row | hits[arm.key] | errors.get(arm.key, {}))
    names = [extractor.name for extractor in judge.extractors]
    return {"rows": rows, "distances": {name: bound.to_dict() for name, bound in zip(names, bounds, strict=False)}}


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


def _bounds(draws: Draws, extractor: Extractor) -> _Bounds:
    first, second = (extract(extractor, images) for images, _ in draws.floor)
    control = extract(extractor, draws.ceiling[0])
    return _Bounds(
        extract(extractor, draws.reference[0]),
        distances(first, second, blocks=(draws.floor[0][1], draws.floor[1][1])),
        distances(control, second, blocks=(draws.ceiling[1], draws.floor[1][1])),
    )


def _distance_columns(arm: Arm, draws: Draws, extractor: Extractor, bounds: _Bounds) -> dict[str, Any]:
    if arm.kind == "real":
        found, closed = bounds.floor, "1 by definition: this row is the floor"
    else:
        features = extract(extractor, arm.images[draws.rows])
        found = distances(features, bounds.reference, blocks=(arm.blocks.take(draws.rows), draws.reference[1]))
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


def _hit_columns(
    arms: Sequence[Arm], logits: dict[str, NDArray[np.floating]], judge: Judge
) -> dict[str, dict[str, Any]]:
    target = judge.target
    if target is None:
        reason = {"not_computed": "the classifier was not trained on this condition"}
        return {arm.key: {"target_hit": reason, "hit_relative": reason} for arm in arms}
    settings = {"resamples": judge.resamples, "seed": judge.seed}
    hits = {key: classification.target_hits(values, target) for key, values in logits.items()}
    real = next((arm for arm in arms if arm.kind == "real"), None)
    columns = {}
    for arm in arms:
        estimate = share(hits[arm.key], arm.blocks, **settings)
        odds = classification.log_odds(logits[arm.key], target, judge.control)
        columns[arm.key] = {"target_hit": estimate.to_dict(), "log_odds": float(odds.mean())}
        if real is not None:
            pair = (arm.blocks, real.blocks)
            relative = ratio(hits[arm.key].astype(float), hits[real.key].astype(float), pair, **settings)
            columns[arm.key]["hit_relative"] = _or_reason(relative, "no real cell of the target is recognised")
        if arm.kind != "real":
            columns[arm.key]["hit_against"] = {
                other.key: _more_often(hits[arm.key], hits[other.key], arm.blocks, judge).to_dict()
                for other in arms
                if other.kind != "real" and other.key != arm.key
            }
    return columns


def _more_often(hits: NDArray[np.bool_], others: NDArray[np.bool_], blocks: Blocks, judge: Judge) -> Estimate:
    """Estimate how much more often the target is seen than in another arm's outputs of the same cells."""
    difference = hits.astype(float) - others
    return bootstrap(difference, lambda means: means[:, 0], blocks, resamples=judge.resamples, seed=judge.seed)


def _error_columns(arms: Sequence[Arm], truth: Truth, judge: Judge) -> dict[str, dict[str, Any]]:
    if not truth.known.any():
        return {arm.key: {"error": {"not_computed": "no scored cell has a mask"}} for arm in arms}
    paired = [arm for arm in arms if arm.kind != "real"]
    errors = {arm.key: truth.errors(arm.images.numpy()) for arm in paired}
    responds = truth.responds[truth.known]
    everyone = np.arange(len(responds))
    columns: dict[str, dict[str, Any]] = {}
    for arm in paired:
        blocks = arm.blocks.take(np.flatnonzero(truth.known))
        columns[arm.key] = {"mean_cell_error": content.mean_error(errors[arm.key])}
        for suffix, cells in (("", everyone), ("_responders", np.flatnonzero(responds))):
            part = {key: values[cells] for key, values in errors.items()}
            found = _error_entries(arm.key, part, blocks.take(cells), judge) if len(cells) else {}
            columns[arm.key] |= {f"{name}{suffix}": value for name, value in found.items()}
        if arm.key == "counterfactual":
            reason = {"not_computed": "this row is the truth itself"}
            columns[arm.key] |= dict.fromkeys(("score", "score_responders"), reason)
    return columns


def _error_entries(key: str, errors: dict[str, NDArray[np.float64]], blocks: Blocks, judge: Judge) -> dict[str, Any]:
    settings = {"resamples": judge.resamples, "seed": judge.seed}
    entries: dict[str, Any] = {"error": content.pooled_error(errors[key], blocks, **settings).to_dict()}
    if "best" in errors and "copy" in errors:
        found = content.score(errors[key], errors["best"], errors["copy"], blocks, **settings)
        usable = np.isfinite(found.value) and errors["copy"].mean() > errors["best"].mean()
        entries["score"] = (
            found.to_dict() if usable else {"not_computed": "copying is as good as the best possible here"}
        )
    entries["against"] = {
        other: content.difference(errors[key], errors[other], blocks, **settings).to_dict()
        for other in errors
        if other != key
    }
    return entries


def _or_reason(estimate: Estimate | None, reason: str) -> dict[str, Any]:
    return {"not_computed": reason} if estimate is None else estimate.to_dict()
