"""Is it still this cell? Retrieval of the source, cost of the pairs, what a way to the cell's own condition and back leaves, and nuclei."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cellbridge.data.comparison import Rows
from cellbridge.data.store import Store
from cellbridge.evaluation.sections import Column, absent, share, table
from cellbridge.evaluation.target import Part, Target, images_of
from cellbridge.metrics.content import channel_deviation
from cellbridge.metrics.identity import (
    Scored,
    identity_retrieval,
    null_translation,
    pixel_signature,
    round_trip,
    transport_cost,
)
from cellbridge.metrics.own_variation import own_variation
from cellbridge.metrics.scorecard import Arm

_ABOUT = (
    "Among all sources of its plate, is an output's own the nearest (chance is what an unrelated cell scores)? Cost: of the pairs, 0 as cheap as "
    "the best one-to-one pairing of outputs and sources, 1 as if cells were exchanged at random. Own variation: correlation of output and source, "
    "each less the mean of its plate, which tells degrees where every source is still found. Unchanged and returned: error of a cell translated "
    "to its own condition, and there and back, over the error of another cell of its plate."
)
_COLUMNS = (
    share("top_1", "own source nearest"),
    share("chance", "by chance"),
    share("auc", "others farther"),
    Column("median_rank", "median rank", digits=1),
    Column("cost", "cost of the pairs"),
    Column("own_variation", "own variation kept"),
    Column("unchanged", "unchanged / other cell"),
    Column("returned", "there and back / other cell"),
)


def judge_identity(target: Target) -> Part:
    """Judge every paired arm by whether its outputs are still their sources."""
    if len(target.comparison.sources) < 2:
        return Part(absent("identity", "Is it still this cell?", "one cell; two or more are needed"))
    sources = pixel_signature(images_of(target.require("copy")))
    part = Part({})
    rows = []
    for arm in target.arms:
        if not arm.paired or arm.key.startswith(("imitation:", "template:")):
            continue
        signature = pixel_signature(images_of(arm))
        found = identity_retrieval(signature, sources, plates=target.plates, blocks=arm.blocks, **target.draws.settings)
        cost = transport_cost(signature, sources, arm.blocks, **target.draws.settings).relative
        row: dict[str, Any] = {"key": arm.key, "name": arm.name, "kind": arm.kind, "cost": cost}
        row["own_variation"] = own_variation(
            signature, sources, plates=target.plates, blocks=arm.blocks, **target.draws.settings
        )
        row |= {"top_1": found.top_1, "chance": found.chance, "auc": found.auc, "median_rank": found.median_rank}
        rows.append(row | _returns(target, arm))
        if arm.kind == "model":
            part.evidence[arm.key] = found.to_dict()
    part.section = table("identity", "Is it still this cell?", _ABOUT, columns=_COLUMNS, rows=rows)
    return part


def _returns(target: Target, arm: Arm) -> dict[str, Any]:
    """Return what a model leaves of a cell that it need not change, and of one that it changed and changed back."""
    if arm.kind != "model":
        return {}
    found: dict[str, Any] = {}
    unchanged = target.arm(f"control:{arm.key}")
    if unchanged is not None:
        found["unchanged"] = _relative(target, images_of(unchanged), null_translation)
    back = target.sights.round_trips.get(_model(arm))
    rows = None if back is None else _returned_rows(target, arm, back)
    if back is not None and rows is not None:
        found["returned"] = _relative(target, back.images(rows), round_trip)
    return found


def _relative(target: Target, images: np.ndarray, compare: Callable[..., Any]) -> Any:
    sources, inside = images_of(target.require("copy")), target.inside()
    deviation = channel_deviation(sources)
    known = np.flatnonzero(inside.any(axis=(1, 2)))
    if not (deviation > 0).all() or len(known) < 2:
        return {"not_computed": "a stain is constant in all source cells, or no cell has a mask"}
    scored = Scored(sources[known], inside[known], deviation, target.plates[known], target.blocks.take(known))
    return compare(images[known], scored, **target.draws.settings).relative


def _model(arm: Arm) -> str:
    return arm.key.removeprefix("model:")


def _returned_rows(target: Target, arm: Arm, store: Store) -> Rows | None:
    """Return the rows of the round trip's store that were made from a model's outputs; None where one has none."""
    if "Metadata_SourceCell" not in store.obs:
        return None
    model = _model(arm)
    outputs = target.sights.store_of(model).obs.index[target.comparison.outputs[model]]
    back = np.flatnonzero(store.condition_names == target.comparison.source)
    place = dict(zip(store.obs["Metadata_SourceCell"].to_numpy()[back], back.tolist(), strict=True))
    rows = [place.get(cell, -1) for cell in outputs]
    return None if min(rows) < 0 else np.array(rows, dtype=np.int64)
