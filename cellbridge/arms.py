"""From rows of stores to what an evaluation scores: the arms of one target, its truth, and its draws of real cells."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cellbridge.baselines.panel import TrainingCells, null_translators
from cellbridge.conditions import Condition
from cellbridge.data.comparison import Comparison, Rows
from cellbridge.data.store import Store
from cellbridge.metrics.content import best_possible, channel_deviation
from cellbridge.metrics.intervals import Blocks, blocks_of
from cellbridge.metrics.scorecard import Arm, Draws, Truth
from cellbridge.typing import CellBatch

_TRAINING_CELLS = 1000
"""Training cells of a condition that a null row is fitted on, at most."""


def arms_of(
    stores: Mapping[str, Store], comparison: Comparison, truth: Truth | None, *, seed: int
) -> tuple[list[Arm], list[str]]:
    """Return the arms of one target in the order of the table, and in words what could not be made.

    Parameters
    ----------
    stores : "translated" and "reference".
    truth : as `truth_of` gives it.
    seed : of the draw of training cells.
    """
    reference = stores["reference"]
    blocks = blocks_of_rows(reference, comparison.sources)
    arms = [
        Arm(f"model:{model}", f"translated ({model})", "model", images_of(stores["translated"], rows), blocks)
        for model, rows in comparison.outputs.items()
    ]
    nulls, notes = _nulls(reference, comparison, blocks, seed=seed)
    arms += nulls
    for model, shuffled in comparison.shuffled.items():
        name = f"shuffled condition ({model})"
        if shuffled is None:
            notes.append(f"{name}: not computed: no cell was translated to another target.")
        else:
            arms.append(Arm(f"shuffled:model:{model}", name, "null", images_of(stores["translated"], shuffled), blocks))
    if len(comparison.real):
        real_blocks = blocks_of_rows(reference, comparison.real)
        name = f"real {comparison.target} (floor)"
        arms.append(Arm("real", name, "real", images_of(reference, comparison.real), real_blocks))
    else:
        notes.append(f"real {comparison.target}: not computed: there is no real cell of it in this split.")
    if truth is not None:
        arms.append(Arm("counterfactual", "counterfactual", "bound", torch.from_numpy(truth.counterfactual), blocks))
        if truth.best is not None:
            arms.append(Arm("best", "best possible", "bound", torch.from_numpy(truth.best), blocks))
    return arms, notes


def truth_of(stores: Mapping[str, Store], comparison: Comparison) -> tuple[Truth | None, list[str]]:
    """Read the counterfactuals of the source cells; None where there are none to be had, and in words what is left out, and why."""
    if "truth" not in stores or (comparison.counterfactual < 0).any():
        return None, ["error per cell: not computed: the truth is not known."]
    reference, truth = stores["reference"], stores["truth"]
    sources, masks = reference.images(comparison.sources), reference.masks(comparison.sources)
    deviation = channel_deviation(sources)
    constant = [name for name, spread in zip(reference.info.channels, deviation, strict=True) if spread == 0]
    if constant:
        return None, [
            f"error per cell: not computed: {', '.join(constant)} is constant in all {len(sources)} source cells."
        ]
    table = truth.obs.iloc[comparison.counterfactual]
    best = None
    if (comparison.responding >= 0).all() and "Truth_PResponse" in table:
        probability = pd.to_numeric(table["Truth_PResponse"]).to_numpy()
        best = best_possible(sources, truth.images(comparison.responding), probability)
    responds = np.zeros(len(table), dtype=bool)
    if "Truth_Responder" in table:
        responds = pd.to_numeric(table["Truth_Responder"]).to_numpy() > 0
    inside = np.ones((len(sources), *sources.shape[2:]), dtype=bool) if masks is None else masks > 0
    known = np.asarray(inside.any(axis=(1, 2)))
    without = int((~known).sum())
    found = Truth(
        known=known,
        responds=responds,
        counterfactual=truth.images(comparison.counterfactual),
        best=best,
        masks=inside,
        deviation=deviation,
    )
    return found, [
        f"error per cell: {without} of {len(known)} cells have no mask and are left out of it."
    ] if without else []


def draws_of(reference: Store, comparison: Comparison) -> Draws | None:
    """Read the real cells that distances are measured against; None where there are too few."""
    if len(comparison.scored) == 0:
        return None

    def draw(rows: Rows) -> tuple[Tensor, Blocks]:
        return images_of(reference, rows), blocks_of_rows(reference, rows)

    first, second = comparison.floor
    return Draws(comparison.scored, draw(comparison.reference), (draw(first), draw(second)), draw(comparison.ceiling))


def images_of(store: Store, rows: Rows) -> Tensor:
    """Return images (n, channel, height, width) in [-1, 1]."""
    return torch.from_numpy(store.images(rows))


def blocks_of_rows(store: Store, rows: Rows) -> Blocks:
    """Return which of the cells are resampled together."""
    columns = (list(store.obs[f"Metadata_{key}"].astype(str).to_numpy()[rows]) for key in ("Plate", "Well", "Site"))
    return blocks_of(*columns)


def _nulls(reference: Store, comparison: Comparison, blocks: Blocks, *, seed: int) -> tuple[list[Arm], list[str]]:
    rng = np.random.default_rng([seed, 2])
    training = []
    for rows in (comparison.train_source, comparison.train_target):
        some = np.sort(rng.permutation(rows)[:_TRAINING_CELLS])
        training.append(TrainingCells(images_of(reference, some), list(reference.plates[some])))
    condition = Condition.parse(comparison.target)
    translators, missing = null_translators(training[0], training[1], condition=condition)
    batch = CellBatch(
        images=images_of(reference, comparison.sources),
        cell_ids=tuple(reference.obs.index[comparison.sources]),
        plates=tuple(reference.plates[comparison.sources]),
        conditions=(comparison.source,) * len(comparison.sources),
        seeds=torch.zeros(len(comparison.sources), dtype=torch.int64),
    )
    names = {key: part.name for key, part in translators.items()}
    if comparison.source != reference.info.control:
        names["copy"] = f"copy the source ({comparison.source})"
    arms = [
        Arm(key, names[key], "null", part.translate(batch, target=condition).images, blocks)
        for key, part in translators.items()
    ]
    return arms, [f"{name}: not computed: {why}." for name, why in missing.items()]
