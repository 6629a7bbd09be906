"""Cells that were translated several times: how far their draws lie apart, beside how far the truth does where it is known."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.data.comparison import Rows
from cellbridge.evaluation.sections import Column, table
from cellbridge.evaluation.target import Part, Target, images_of
from cellbridge.metrics.content import channel_deviation
from cellbridge.metrics.spread import deviation_estimate, drawn_variance, response_variance, variance_ratio

_AT_ONCE = 64
"""Cells whose draws are in memory together."""
_TITLE = "How far do draws of one cell differ?"
_ABOUT = (
    "Standard deviation among the translations of one cell, in standard deviations of each stain over the cell's mask, beside that of the truth "
    "given the cell, where chance decides who responds. Ratio of variances: 1 is right, 0 a map that leaves nothing to chance."
)
_COLUMNS = (
    Column("draws", "draws of a cell", digits=0),
    Column("spread", "spread", digits=3),
    Column("truth", "of the truth", digits=3),
    Column("ratio", "ratio of variances"),
)


def judge_spread(target: Target) -> Part | None:
    """Judge every model that drew its cells more than once; None where none did."""
    draws = target.comparison.draws
    if not draws:
        return None
    sources, inside = images_of(target.require("copy")), target.inside()
    deviation, known = channel_deviation(sources), np.flatnonzero(inside.any(axis=(1, 2)))
    numbers = ", ".join(f"{model} {rows.shape[1]}" for model, rows in draws.items())
    notes = [f"Draws of each cell: {numbers}. Every other table takes the first of them."]
    if not (deviation > 0).all() or len(known) == 0:
        notes.append("Not computed: a stain is constant in all source cells, or no cell has a mask.")
        return Part(table("spread", _TITLE, _ABOUT, columns=_COLUMNS, rows=[], notes=notes))
    of_truth = _of_truth(target, sources, inside, known, deviation=deviation)
    blocks, settings = target.blocks.take(known), target.draws.settings
    rows = []
    for model, of_model in draws.items():
        parts = _parts(target, model, of_model[known])
        found = np.concatenate([drawn_variance(part, inside[known[at]], deviation=deviation) for at, part in parts])
        row = {"key": f"model:{model}", "name": f"translated ({model})", "kind": "model", "draws": of_model.shape[1]}
        row["spread"] = deviation_estimate(found, blocks, **settings)
        if of_truth is not None:
            row["truth"] = deviation_estimate(of_truth, blocks, **settings)
            row["ratio"] = variance_ratio(found, of_truth, blocks, **settings)
        rows.append(row)
    return Part(table("spread", _TITLE, _ABOUT, columns=_COLUMNS, rows=rows, notes=notes))


def _parts(target: Target, model: str, rows: Rows) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield positions of some cells and all draws of them, (cell, draw, channel, height, width)."""
    store = target.sights.store_of(model)
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        images = store.images(some.ravel())
        yield np.arange(start, start + len(some)), images.reshape(*some.shape, *images.shape[1:])


def _of_truth(
    target: Target,
    sources: NDArray[np.float32],
    inside: NDArray[np.bool_],
    known: NDArray[np.int64],
    *,
    deviation: NDArray[np.float64],
) -> NDArray[np.float64] | None:
    """Return the variance of the truth given each cell; None where it is not known who could have responded."""
    comparison, truth = target.comparison, target.sights.truth
    if truth is None or (comparison.responding < 0).any() or "Truth_PResponse" not in truth.store.obs:
        return None
    rows = comparison.responding[known]
    probability = pd.to_numeric(truth.store.obs["Truth_PResponse"].iloc[rows]).to_numpy()
    responding = truth.store.images(rows)
    return response_variance(sources[known], responding, probability, inside[known], deviation=deviation)
