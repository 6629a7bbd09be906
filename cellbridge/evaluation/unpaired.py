"""The table of images that are no translation of given cells: each row is a pool of its own, and pools are compared as independent samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellbridge.evaluation.pools import Pool, Rows
from cellbridge.metrics.classification import log_odds, target_hits
from cellbridge.metrics.contrasts import share_difference, student_difference
from cellbridge.metrics.fid import Distances, bias_warning, distances, gap_closed
from cellbridge.metrics.intervals import ratio, share

Kind = Literal["model", "null", "real"]
_GAPS: dict[str, Literal["frechet", "kernel"]] = {"gap_closed": "frechet", "gap_closed_kernel": "kernel"}
_NO_CONTROL = "no control was given, so there is no gap to close"
_NO_GAP = "the ceiling (control against target) does not lie above the floor (target against target)"
_TOO_FEW = "too few images for three disjoint draws of the target"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Parameters
    ----------
    key, name, kind : as in `metrics.scorecard.Arm`.
    pool : its images.
    """

    key: str
    name: str
    kind: Kind
    pool: Pool


@dataclass(frozen=True)
class Bounds:
    """Disjoint draws of real images, of one size.

    Parameters
    ----------
    reference : of the target; every row is measured against it.
    floor : two further draws of the target.
    ceiling : control images that are in no row, measured against the second draw of the floor; None without a control.
    """

    reference: Pool
    floor: tuple[Pool, Pool]
    ceiling: Pool | None

    def __len__(self) -> int:
        return len(self.reference)


def thirds(n: int, *, seed: int, most: int | None) -> tuple[Rows, Rows, Rows] | None:
    """Draw three disjoint sets of rows, of n // 3 and at most `most` each; None where they would have fewer than four."""
    size = n // 3 if most is None else min(n // 3, most)
    if size < 4:
        return None
    order = np.random.default_rng(seed).permutation(n)
    return order[:size], order[size : 2 * size], order[2 * size : 3 * size]


def score_rows(
    rows: Sequence[Row],
    bounds: Bounds | None,
    *,
    extractors: Sequence[str],
    target: int | None,
    control: int | None,
    draws: Mapping[str, int],
) -> dict[str, Any]:
    """Score every row: distances at the n of `bounds`, and what a classifier says of it.

    Parameters
    ----------
    bounds : None where there are too few real images.
    target, control : columns of the logits; None where there is no such condition.
    draws : `resamples` and `seed`.

    Returns
    -------
    rows, distances : as `metrics.scorecard.score_target` returns them.
    """
    scored: list[dict[str, Any]] = [
        {"key": row.key, "name": row.name, "kind": row.kind, "n": len(row.pool)} for row in rows
    ]
    found: dict[str, Any] = {}
    for index, extractor in enumerate(extractors):
        limits = None if bounds is None else _limits(bounds, extractor)
        for entry, row in zip(scored, rows, strict=True):
            columns = _distance_columns(row, bounds, limits, extractor)
            entry |= columns if index == 0 else {"others": {**entry.get("others", {}), extractor: columns}}
        if bounds is not None and limits is not None:
            found[extractor] = _described(bounds, limits, extractor)
    hits = _hit_columns(rows, target=target, control=control, draws=draws)
    return {"rows": [entry | hits[entry["key"]] for entry in scored], "distances": found}


def bias_notes(scores: Mapping[str, Any]) -> list[str]:
    """Say of each extractor when n is too small for its Fréchet distance to mean much."""
    notes = [] if scores["distances"] else [f"Distances: not computed: {_TOO_FEW}."]
    for name, found in scores["distances"].items():
        words = bias_warning(found["n"], found["features"])
        notes += [f"{name}: {words}"] if words else []
    return notes


Limits = tuple[Distances, Distances | None]
"""Floor and ceiling."""


def _limits(bounds: Bounds, extractor: str) -> Limits:
    first, second = bounds.floor
    floor = _apart(first, second, extractor)
    return floor, None if bounds.ceiling is None else _apart(bounds.ceiling, second, extractor)


def _described(bounds: Bounds, limits: Limits, extractor: str) -> dict[str, Any]:
    of = {name: part for name, part in zip(("floor", "ceiling"), limits, strict=True) if part is not None}
    described = {
        name: {"frechet": part.frechet.to_dict(), "kernel": part.kernel.to_dict()} for name, part in of.items()
    }
    features = int(bounds.reference.features[extractor].shape[1])
    return {"features": features, "n": len(bounds), "ceiling": {"not_computed": _NO_CONTROL}} | described


def _apart(one: Pool, other: Pool, extractor: str) -> Distances:
    return distances(one.features[extractor], other.features[extractor], blocks=(one.blocks, other.blocks))


def _distance_columns(row: Row, bounds: Bounds | None, limits: Limits | None, extractor: str) -> dict[str, Any]:
    missing = ("frechet", "kernel", "gap_closed", "gap_closed_kernel")
    if bounds is None or limits is None:
        return {key: {"not_computed": _TOO_FEW} for key in missing}
    if row.kind == "real":
        why = {"not_computed": "1 by definition: this row is the floor"}
        return _columns(limits[0], len(bounds)) | dict.fromkeys(missing[2:], why)
    if len(row.pool) < len(bounds):
        why = {
            "not_computed": f"{len(row.pool)} images, the other rows have {len(bounds)}: distances are compared at one n"
        }
        return dict.fromkeys(missing, why)
    found = _apart(row.pool.take(np.arange(len(bounds))), bounds.reference, extractor)
    columns = _columns(found, len(bounds))
    for name, of in _GAPS.items():
        closed = None if limits[1] is None else gap_closed(found, limits[0], limits[1], of=of)
        reason = _NO_CONTROL if limits[1] is None else _NO_GAP
        columns[name] = {"not_computed": reason} if closed is None else closed.to_dict()
    return columns


def _columns(found: Distances, n: int) -> dict[str, Any]:
    return {"n_distance": n, "frechet": found.frechet.to_dict(), "kernel": found.kernel.to_dict()}


def _hit_columns(
    rows: Sequence[Row], *, target: int | None, control: int | None, draws: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Return target hits, relative to real images', and by how much each row is above every other one."""
    if target is None:
        why = {"not_computed": "no classifier knows this condition: there is one condition only, and no control"}
        return {row.key: {"target_hit": why, "hit_relative": why} for row in rows}
    hits = {row.key: target_hits(row.pool.logits, target) for row in rows}
    odds = {row.key: log_odds(row.pool.logits, target, 0 if control is None else control) for row in rows}
    real = next((row for row in rows if row.kind == "real"), None)
    columns: dict[str, dict[str, Any]] = {}
    for row in rows:
        columns[row.key] = {
            "target_hit": share(hits[row.key], row.pool.blocks, **draws).to_dict(),
            "log_odds": float(odds[row.key].mean()),
        }
        if real is not None:
            of = hits[row.key].astype(float), hits[real.key].astype(float)
            relative = ratio(of[0], of[1], (row.pool.blocks, real.pool.blocks), **draws)
            why = {"not_computed": "no real image of the target is recognised"}
            columns[row.key]["hit_relative"] = why if relative is None else relative.to_dict()
        others = [other for other in rows if other.kind != "real" and other.key != row.key]
        if row.kind == "model":
            columns[row.key] |= _against(row, others, hits, odds)
            columns[row.key] |= _less_control(row, others, control)
    return columns


def _against(
    row: Row, others: Sequence[Row], hits: Mapping[str, NDArray[np.bool_]], odds: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    def pair(other: Row) -> Any:
        return row.pool.blocks, other.pool.blocks

    return {
        "hit_against": {o.key: share_difference(hits[row.key], hits[o.key], pair(o)).to_dict() for o in others},
        "odds_against": {o.key: student_difference(odds[row.key], odds[o.key], pair(o)).to_dict() for o in others},
    }


def _less_control(row: Row, others: Sequence[Row], control: int | None) -> dict[str, Any]:
    """Return by how much less often than each other row this one is seen as the control."""
    if control is None:
        return {}
    seen = target_hits(row.pool.logits, control)
    return {
        "control_against": {
            other.key: share_difference(
                seen, target_hits(other.pool.logits, control), (row.pool.blocks, other.pool.blocks)
            ).to_dict()
            for other in others
        }
    }
