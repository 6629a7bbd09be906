"""Is the effect right? What the compound does to each feature, in outputs and in real cells of the same plates."""

from typing import Any

import numpy as np

from cellbridge.data.comparison import Rows
from cellbridge.evaluation.counting import cells_per_well, wells_of
from cellbridge.evaluation.sections import Column, absent, share, table
from cellbridge.evaluation.target import Part, Target
from cellbridge.metrics.effects import (
    Agreement,
    Sample,
    agreement,
    count_effect,
    effect_agreement,
    real_effect,
    split_half,
)

_ABOUT = (
    "Mean change of every feature against the same plate's control, in outputs and in real cells, in standard deviations of the control. Slope: 1 is "
    "an effect of the right size, 0 none. Sign: of the features whose real effect exceeds two standard errors, those that move in the real direction."
)
_COLUMNS = (
    Column("extractor", "features"),
    Column("cosine", "cosine"),
    Column("spearman", "Spearman"),
    Column("slope", "slope"),
    share("sign", "right direction"),
    Column("moved", "features that move", digits=0),
)
_TITLE = "Is the effect right?"


def judge_effects(target: Target) -> Part:
    """Judge every paired arm by its effect, in the features of every extractor; halves of the real cells and cell counts beside them."""
    comparison = target.comparison
    rows = target.rows_on(comparison.target, target.plates)
    controls = target.rows_on(comparison.source, target.plates)
    if len(rows) < 2 or len(controls) < 2:
        return Part(absent("effects", _TITLE, "too few real cells of the target or of the control on these plates"))
    table_rows: list[dict[str, Any]] = []
    for index, extractor in enumerate(target.sights.judges.extractors):
        real, control = (target.real_sample(part, extractor.name) for part in (rows, controls))
        shown = {"extractor": {"text": extractor.name if index else "classifier"}}
        table_rows += [row | shown for row in _rows(target, extractor.name, real, control, counts=(rows, controls))]
    return Part(table("effects", _TITLE, _ABOUT, columns=_COLUMNS, rows=table_rows))


def _rows(
    target: Target, extractor: str, real: Sample, control: Sample, *, counts: tuple[Rows, Rows]
) -> list[dict[str, Any]]:
    settings = target.draws.settings
    sources = target.sample(target.require("copy"), extractor)
    rows = []
    for arm in target.arms:
        if arm.paired and arm.key != "copy" and not arm.of_target:
            found = effect_agreement(target.sample(arm, extractor), sources, real, control, **settings)
            rows.append({"key": arm.key, "name": arm.name, "kind": arm.kind} | _cells(found))
    halves = split_half(real, control, **settings)
    if halves is not None:
        rows.append({"key": "halves", "name": "real, one half against the other", "kind": "real"} | _cells(halves))
    change = _log_counts(target, counts[0]).mean() - _log_counts(target, counts[1]).mean()
    by_count = count_effect(control, _log_counts(target, counts[1]), change=float(change), **settings)
    found = agreement(by_count, real_effect(real, control, resamples=settings["resamples"], seed=settings["seed"] + 7))
    rows.append({"key": "count", "name": "cell count only", "kind": "null"} | _cells(found))
    return rows


def _cells(found: Agreement) -> dict[str, Any]:
    cells = found.to_dict()
    return {key: cells[key] for key in ("cosine", "spearman", "slope", "sign")} | {"moved": found.n_moved}


def _log_counts(target: Target, rows: Rows) -> np.ndarray:
    """Return the logarithm of the number of cells that the store holds of each cell's well."""
    counts = cells_per_well(target.reference)
    return np.log([counts[well] for well in wells_of(target.reference, rows).astype(str).tolist()])
