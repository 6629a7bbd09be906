"""Is the condition used? Other targets of the same cells, asked and seen conditions, and the drug swap on effects."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from cellbridge.evaluation.sections import Column, Section, absent, matrix, share, table
from cellbridge.evaluation.target import Part, Target
from cellbridge.metrics.condition_use import Asked, ShuffledGap, cross_condition, shuffled_gap, swap
from cellbridge.metrics.effects import Effect, against_control, real_effect
from cellbridge.metrics.intervals import corrected_level
from cellbridge.metrics.scorecard import Arm

_SWAP = (
    "Two conditions asked for of the same cells, and the real effects beside them: two doses of one compound should be near 1 in both. Excess: cosine "
    "of the mean effects less that of the real ones. Norm: length of an effect over the real one's. Contrast: what of the real difference "
    "between the two conditions is in the outputs; 0 where the condition is ignored, 1 where it is used as in real cells."
)
_SWAP_COLUMNS = (
    Column("cell_cosine", "cosine, cell by cell"),
    Column("cosine", "cosine"),
    Column("real_cosine", "real cells"),
    Column("excess", "excess"),
    Column("norm_a", "norm of the first / real"),
    Column("norm_b", "norm of the second / real"),
    Column("contrast", "contrast"),
    Column("against", "effects against"),
)


def judge_condition(target: Target) -> Part:
    """Judge every model by what its outputs gain over outputs of the same cells for other targets."""
    title = "What another condition would have scored"
    if target.label is None:
        return Part(absent("shuffled", title, "the classifier was not trained on this condition"))
    part, rows = Part({}), []
    for arm in target.models:
        shuffled = target.arm(f"shuffled:{arm.key}")
        if shuffled is None:
            continue
        gap = shuffled_gap(arm.logits, shuffled.logits, arm.blocks, target=target.label, control=target.control_label)
        part.evidence[arm.key] = _plain(gap) | {"plates": _by_plate(target, arm, shuffled)}
        rows.append({"key": arm.key, "name": arm.name, "kind": arm.kind, "hits": gap.hits, "odds": gap.log_odds})
    if not rows:
        return Part(absent("shuffled", title, "nothing was translated to another target"))
    about = "What outputs for the target gain over outputs of the same cells for other targets; 0 where the condition is ignored."
    columns = (share("hits", "hits gained"), Column("odds", "log odds gained"))
    part.section = table("shuffled", title, about, columns=columns, rows=rows)
    return part


def _by_plate(target: Target, arm: Arm, shuffled: Arm) -> list[dict[str, Any]]:
    """Return the gap on each plate, at a level corrected for their number: a model may use its condition on some of them."""
    names, label = np.unique(target.plates), target.label
    found: list[dict[str, Any]] = []
    if label is None or len(names) < 2:
        return found
    for plate in names:
        rows = np.flatnonzero(target.plates == plate)
        gap = shuffled_gap(
            arm.logits[rows],
            shuffled.logits[rows],
            arm.blocks.take(rows),
            target=label,
            control=target.control_label,
            level=corrected_level(len(names)),
        )
        found.append({"plate": str(plate)} | _plain(gap))
    return found


def _plain(gap: ShuffledGap) -> dict[str, Any]:
    return {"hits": gap.hits.to_dict(), "log_odds": gap.log_odds.to_dict()}


def judge_conditions(targets: list[Target]) -> list[Section]:
    """Judge every model over all targets: the matrix of asked and seen conditions, and the drug swap."""
    models = sorted({arm.key for target in targets for arm in target.models})
    sections = [_matrix(targets, key) for key in models]
    rows = [row for key in models for pair in combinations(targets, 2) for row in _swaps(pair, key)]
    title = "Drug swap"
    if rows:
        sections.append(table("swap", title, _SWAP, columns=_SWAP_COLUMNS, rows=rows))
    else:
        sections.append(absent("swap", title, "no model was asked for two conditions of the same cells"))
    return sections


def _matrix(targets: list[Target], key: str) -> Section:
    """Return what the outputs of a model look like, by the condition that was asked for; real cells of it underneath."""
    arms = {target.comparison.target: target.arm(key) for target in targets}
    asked: dict[str, Arm] = {name: arm for name, arm in arms.items() if arm is not None}
    unchanged = targets[0].arm(f"control:{key}")
    if unchanged is not None:
        asked[targets[0].comparison.source] = unchanged
    names = targets[0].sights.judges.conditions
    logits = {name: arm.logits for name, arm in asked.items()}
    blocks = {name: arm.blocks for name, arm in asked.items()}
    found = cross_condition(logits, names, blocks, **targets[0].draws.settings)
    model = next(iter(asked.values())).name
    values = [[{"value": float(value)} for value in row] for row in found.shares]
    real = {target.comparison.target: target.arm("real") for target in targets}
    rows = [f"asked for {name}" for name in found.asked]
    for name, arm in real.items():
        if arm is not None:
            shares = np.bincount(arm.logits.argmax(axis=1), minlength=len(names)) / len(arm.logits)
            values.append([{"value": float(value)} for value in shares])
            rows.append(f"real {name}")
    return matrix(
        f"cross_condition:{key.removeprefix('model:')}",
        f"Asked for, and seen: {model}",
        "Share of outputs that the classifier takes for each condition, by the condition that was asked for. A model that ignores it has equal rows.",
        names=(rows, list(names)),
        titles=("asked for", "seen as"),
        values=values,
        column=share("value", ""),
    )


def _swaps(pair: tuple[Target, Target], key: str) -> list[dict[str, Any]]:
    """Return the drug swap of a model on two targets of the same cells; nothing where they are other cells."""
    first, second = pair
    arms = first.arm(key), second.arm(key)
    if arms[0] is None or arms[1] is None or not np.array_equal(first.comparison.sources, second.comparison.sources):
        return []
    name, settings = first.sights.judges.extractors[0].name, first.draws.settings
    controls = first.rows_on(first.comparison.source, first.plates)
    control = first.real_sample(controls, name)
    real = [_real(target, name, settings) for target in pair]
    if real[0] is None or real[1] is None:
        return []
    base = first.arm(f"control:{key}") or first.require("copy")
    against = "control" if base.key.startswith("control:") else "source"
    start, *made = (against_control(first.sample(arm, name), control) for arm in (base, arms[0], arms[1]))
    asked = Asked(made[0] - start, made[1] - start, arms[0].blocks, against)
    found = swap(asked, real[0], real[1], **settings)
    both = f"{first.comparison.target} and {second.comparison.target}"
    cells = {column.key: getattr(found, column.key) for column in _SWAP_COLUMNS if column.key != "against"}
    return [{"key": key, "name": f"{arms[0].name}, {both}", "kind": "model", "against": {"text": against}} | cells]


def _real(target: Target, name: str, settings: Mapping[str, int]) -> Effect | None:
    rows = target.rows_on(target.comparison.target, target.plates)
    controls = target.rows_on(target.comparison.source, target.plates)
    if len(rows) < 2 or len(controls) < 2:
        return None
    return real_effect(target.real_sample(rows, name), target.real_sample(controls, name), **settings)
