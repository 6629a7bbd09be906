"""What another origin of x_T changes: cells generated from N(0, I), from a fitted prior and from inverted noise, side by side.

Whether x_T is Gaussian matters as far as this table says so: where all origins give the same distance and hit rate, it is harmless.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cellbridge.data.comparison import Rows
from cellbridge.data.store import Store, StoreInfo
from cellbridge.evaluation.arms import blocks_of_rows, drawn_rows, draws_of
from cellbridge.evaluation.sections import Column, Section, absent, share, table
from cellbridge.evaluation.sight import Sight
from cellbridge.evaluation.target import Target
from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.scorecard import Arm, Judge, score_target

_KEY, _TITLE = "x_T_origin", "Where x_T comes from"
_COLUMNS = ("target_hit", "frechet", "kernel", "gap_closed")


def origin_of(info: StoreInfo) -> str:
    """Return in words where the x_T of a store's images came from, as its attributes say: "N(0, I)", "inverted", "prior (field)" …"""
    config = info.attributes.get("config")
    x_T = config.get("x_T") if isinstance(config, dict) else None
    if isinstance(config, dict) and config.get("method", "ddib") != "ddib":
        return f"none ({config['method']})"
    if x_T is None:
        x_T = "fresh" if "generated" in info.attributes else "inverted" if "share_clipped" in info.attributes else "?"
    if str(x_T).startswith("prior:"):
        return f"prior ({info.attributes.get('prior_kind', 'of an unknown kind')})"
    return {"fresh": "N(0, I)", "inverted": "inverted"}.get(str(x_T), "not known")


def judge_origins(targets: Sequence[Target], generated: Sequence[Sight]) -> Section:
    """Score cells of every origin of x_T against the same real cells, at one n.

    Parameters
    ----------
    targets : as they were evaluated; their own models' outputs are among the rows, by the origin of the translated store.
    generated : stores of `generate`, or of `translate`, of the same conditions.
    """
    if not generated:
        return absent(_KEY, _TITLE, "no store of generated cells was given (generated)")
    rows: list[dict[str, Any]] = []
    notes = []
    for target in targets:
        own = [_own(target, arm) for arm in target.arms if arm.kind in ("model", "real")]
        others = [arm for sight in generated if (arm := _generated(target, sight)) is not None]
        if not others:
            notes.append(f"{target.comparison.target}: no generated store holds cells of it.")
            continue
        rows += _scored(target, [*own, *others])
    about = (
        "Cells of a condition out of noise of each origin, against the same real cells: share taken for the target, and distances in the "
        "first extractor's features at one n. Inverted noise is a source cell's own, so those cells are translations; the others are new."
    )
    columns = [
        Column("n", "cells", digits=0),
        share("target_hit", "hit"),
        Column("n_distance", "n of distances", digits=0),
        Column("frechet", "Fréchet"),
        Column("kernel", "kernel", digits=4),
        Column("gap_closed", "gap closed"),
    ]
    return table(_KEY, _TITLE, about, columns=columns, rows=rows, notes=notes)


def _own(target: Target, arm: Arm) -> Arm:
    """Return an arm of the evaluation, named by the origin of its noise; of the images only their number counts here."""
    name = arm.name
    if arm.kind == "model":
        store = target.sights.store_of(arm.key.removeprefix("model:"))
        name = f"{origin_of(store.info)}: {arm.name}"
    return Arm(arm.key, name, arm.kind, _none(arm.logits), arm.features, arm.logits, arm.blocks, arm.paired)


def _generated(target: Target, sight: Sight) -> Arm | None:
    """Return the cells of a store that show the target, each an independent draw unless it was made from a cell; None where it has none."""
    rows = _rows(sight.store, target.comparison.target, seed=target.draws.seed)
    if len(rows) == 0:
        return None
    seen = sight.seen(rows)
    name = f"{origin_of(sight.store.info)}: {sight.store.info.path.name}"
    made_from_cells = "Metadata_SourceCell" in sight.store.obs
    independent = Blocks(np.arange(len(rows)), "cells (independent draws)")
    blocks = blocks_of_rows(sight.store, rows) if made_from_cells else independent
    key = f"generated:{sight.store.info.path.name}"
    return Arm(key, name, "null", _none(seen.logits), seen.features, seen.logits, blocks, False)


def _rows(store: Store, condition: str, *, seed: int) -> Rows:
    """Return the cells of a condition in an order drawn by lot: distances take as many of the first as they need."""
    return drawn_rows(store, np.flatnonzero(store.condition_names == condition), seed=seed)


def _none(logits: np.ndarray) -> torch.Tensor:
    return torch.empty(len(logits), 0)


def _scored(target: Target, arms: list[Arm]) -> list[dict[str, Any]]:
    judge = Judge(
        extractors=[target.sights.judges.extractors[0].name],
        target=target.label,
        control=target.control_label,
        **target.draws.settings,
    )
    scores = score_target(arms, draws_of(target.sights.reference, target.comparison), truth=None, judge=judge)
    found = []
    for row in scores["rows"]:
        shown: dict[str, Any] = {
            "name": f"{target.comparison.target} · {row['name']}",
            "key": row["key"],
            "kind": row["kind"],
        }
        shown |= {name: {"value": row[name]} for name in ("n", "n_distance") if name in row}
        found.append(shown | {name: row[name] for name in _COLUMNS if name in row})
    return found
