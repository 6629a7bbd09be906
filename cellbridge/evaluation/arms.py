"""From rows of stores to what an evaluation scores: the arms of one target, its truth, and its draws of real cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellbridge.baselines.imitation import imitate
from cellbridge.baselines.one_change import own_change
from cellbridge.baselines.panel import TrainingCells, null_translators
from cellbridge.conditions import Condition
from cellbridge.data.comparison import Comparison, Rows, by_name
from cellbridge.data.store import Store
from cellbridge.evaluation.sight import Judges, Seen, Sight
from cellbridge.metrics.content import best_possible, channel_deviation
from cellbridge.metrics.intervals import Blocks, blocks_of
from cellbridge.metrics.scorecard import Arm, Draws, Kind, Sample, Truth
from cellbridge.translators.translator import Translator
from cellbridge.typing import CellBatch

TRAINING_CELLS = 1000
"""Training cells of a condition that a null row is fitted on, at most."""


@dataclass(frozen=True)
class Sights:
    """The stores of an evaluation, each seen through its judges.

    Parameters
    ----------
    translated : model → the store that holds its outputs; models may share one.
    round_trips, x_T_references, trajectories : model → what was made beside its store, where it was.
    generated : stores of new cells.
    """

    judges: Judges
    reference: Sight
    translated: Mapping[str, Sight]
    truth: Sight | None = None
    unconditional: Sight | None = None
    round_trips: Mapping[str, Store] = field(default_factory=dict)
    x_T_references: Mapping[str, Store] = field(default_factory=dict)
    trajectories: Mapping[str, Sight] = field(default_factory=dict)
    generated: tuple[Sight, ...] = ()

    def store_of(self, model: str) -> Store:
        """Return the store of a model's outputs."""
        return self.translated[model].store


def arms_of(sights: Sights, comparison: Comparison, truth: Truth | None, *, seed: int) -> tuple[list[Arm], list[str]]:
    """Return the arms of one target in the order of the table, and in words what could not be made.

    Parameters
    ----------
    truth : as `truth_of` gives it.
    seed : of the draws of training cells and of cells without a condition.
    """
    reference = sights.reference
    blocks = blocks_of_rows(reference.store, comparison.sources)
    models = [
        _arm(f"model:{model}", f"translated ({model})", "model", sights.translated[model], rows, blocks)
        for model, rows in comparison.outputs.items()
    ]
    nulls, notes = _nulls(sights, comparison, models, blocks, seed=seed)
    lot, unmade = _random_targets(sights, comparison, blocks, seed=seed)
    others, missing = _other_conditions(sights, comparison, blocks, seed=seed)
    arms = [*models, *nulls, *lot, *others]
    notes += [*unmade, *missing]
    if len(comparison.real):
        real_blocks = blocks_of_rows(reference.store, comparison.real)
        name = f"real {comparison.target} (floor)"
        arms.append(_arm("real", name, "real", reference, comparison.real, real_blocks, paired=False))
    else:
        notes.append(f"real {comparison.target}: not computed: there is no real cell of it in this split.")
    return [*arms, *_bounds(sights, comparison, truth, blocks)], notes


def _bounds(sights: Sights, comparison: Comparison, truth: Truth | None, blocks: Blocks) -> list[Arm]:
    """Return the truth itself, and the best that can be known of it."""
    if truth is None or sights.truth is None:
        return []
    bounds = [
        _arm("counterfactual", "counterfactual", "bound", sights.truth, comparison.counterfactual, blocks),
    ]
    if truth.best is not None:
        best = torch.from_numpy(truth.best)
        seen = sights.judges.look(best)
        bounds.append(Arm("best", "best possible", "bound", best, seen.features, seen.logits, blocks))
    return bounds


def _other_conditions(
    sights: Sights, comparison: Comparison, blocks: Blocks, *, seed: int
) -> tuple[list[Arm], list[str]]:
    """Return what the models make of the same cells under other conditions, and under none."""
    arms, notes = [], []
    for model, rows in comparison.unchanged.items():
        if rows is not None:
            name = f"translated to {comparison.source} ({model})"
            arms.append(_arm(f"control:model:{model}", name, "null", sights.translated[model], rows, blocks))
    for model, shuffled in comparison.shuffled.items():
        name = f"shuffled condition ({model})"
        if shuffled is None:
            notes.append(f"{name}: not computed: no cell was translated to another target.")
        else:
            arms.append(_arm(f"shuffled:model:{model}", name, "null", sights.translated[model], shuffled, blocks))
    if sights.unconditional is None:
        notes.append("unconditional: not computed: no store of cells without a condition was given (unconditional).")
    else:
        everything = np.arange(sights.unconditional.store.info.n_cells)
        rows = drawn_rows(sights.unconditional.store, everything, seed=seed)[: len(comparison.sources)]
        of_rows = blocks_of_rows(sights.unconditional.store, rows)
        arms.append(_arm("unconditional", "unconditional", "null", sights.unconditional, rows, of_rows, paired=False))
    return arms, notes


def _random_targets(
    sights: Sights, comparison: Comparison, blocks: Blocks, *, seed: int
) -> tuple[list[Arm], list[str]]:
    """Return, in place of each source cell, a real cell of the target on its plate: right in law, and of another cell."""
    name = f"random {comparison.target} cell of the plate"
    pool = np.unique(np.concatenate([comparison.real, comparison.reference, *comparison.floor]))
    plates = sights.reference.store.plates
    rows = by_lot(plates[comparison.sources], by_name(sights.reference.store, pool), plates, seed=seed)
    if (rows < 0).any():
        where = sorted(set(map(str, plates[comparison.sources[rows < 0]])))
        return [], [
            f"{name}: not computed: there is no real {comparison.target} cell on {', '.join(where)} in this split."
        ]
    arm = _arm("random_target", name, "null", sights.reference, rows, blocks)
    return [replace(arm, of_target=True)], []


def by_lot(wanted: NDArray[Any], pool: Rows, plates: NDArray[Any], *, seed: int) -> Rows:
    """Draw a row of the pool for each wanted plate, each row of a plate as often as another or once more; -1 where the plate has none.

    Parameters
    ----------
    plates : of every row that the pool may name.
    """
    rng = np.random.default_rng([seed, 16])
    rows = np.full(len(wanted), -1, dtype=np.int64)
    for plate in sorted(set(wanted)):
        places, there = np.flatnonzero(wanted == plate), pool[plates[pool] == plate]
        rounds = [rng.permutation(there) for _ in range(-(-len(places) // len(there)))] if len(there) else []
        if rounds:
            rows[places] = np.concatenate(rounds)[: len(places)]
    return rows


def drawn_rows(store: Store, rows: Rows, *, seed: int) -> Rows:
    """Return rows in an order drawn by lot that does not depend on how the store lies, so that the first of them are a sample of all."""
    return np.random.default_rng([seed, 15]).permutation(by_name(store, rows))


def _arm(key: str, name: str, kind: Kind, sight: Sight, rows: Rows, blocks: Blocks, *, paired: bool = True) -> Arm:
    seen: Seen = sight.seen(rows)
    return Arm(key, name, kind, sight.images(rows), seen.features, seen.logits, blocks, paired)


def truth_of(reference: Store, truth: Store | None, comparison: Comparison) -> tuple[Truth | None, list[str]]:
    """Read the counterfactuals of the source cells; None where there are none to be had, and in words what is left out, and why."""
    if truth is None or (comparison.counterfactual < 0).any():
        return None, ["error per cell: not computed: the truth is not known."]
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


def draws_of(reference: Sight, comparison: Comparison) -> Draws | None:
    """Read the real cells that distances are measured against; None where there are too few."""
    if len(comparison.scored) == 0:
        return None

    def draw(rows: Rows) -> Sample:
        return Sample(reference.seen(rows).features, blocks_of_rows(reference.store, rows))

    first, second = comparison.floor
    return Draws(comparison.scored, draw(comparison.reference), (draw(first), draw(second)), draw(comparison.ceiling))


def blocks_of_rows(store: Store, rows: Rows) -> Blocks:
    """Return which of the cells are resampled together."""
    columns = (list(store.obs[f"Metadata_{key}"].astype(str).to_numpy()[rows]) for key in ("Plate", "Well", "Site"))
    return blocks_of(*columns)


def training_rows(rows: Rows, *, seed: int) -> Rows:
    """Choose training cells that a null row is fitted on."""
    rng = np.random.default_rng([seed, 2])
    return rows[np.sort(rng.permutation(len(rows))[:TRAINING_CELLS])]


def _nulls(
    sights: Sights, comparison: Comparison, models: list[Arm], blocks: Blocks, *, seed: int
) -> tuple[list[Arm], list[str]]:
    """Return the trivial translators' outputs: fitted on training cells, and on each model's own outputs."""
    reference = sights.reference.store
    training = []
    for rows in (comparison.train_source, comparison.train_target):
        some = training_rows(rows, seed=seed)
        training.append(TrainingCells(sights.reference.images(some), list(reference.plates[some])))
    condition = Condition.parse(comparison.target)
    translators, missing = null_translators(training[0], training[1], condition=condition)
    batch = _batch(sights.reference, comparison)
    arms = []
    for key, translator in translators.items():
        if key == "copy":
            of_control = comparison.source == reference.info.control
            name = translator.name if of_control else f"copy the source ({comparison.source})"
            arms.append(_arm(key, name, "null", sights.reference, comparison.sources, blocks))
        else:
            arms.append(_translated(sights.judges, key, translator.name, translator, batch, condition, blocks))
    for model in models:
        imitation = imitate(batch.images, model.images, plates=batch.plates, condition=condition)
        name = f"affine imitation of {model.name}"
        arms.append(_translated(sights.judges, f"imitation:{model.key}", name, imitation, batch, condition, blocks))
        change = own_change(batch.images, model.images, plates=batch.plates, condition=condition)
        name = f"mean change of {model.name}, for every cell"
        arms.append(_translated(sights.judges, f"template:{model.key}", name, change, batch, condition, blocks))
    return arms, [f"{name}: not computed: {why}." for name, why in missing.items()]


def _translated(
    judges: Judges,
    key: str,
    name: str,
    translator: Translator,
    batch: CellBatch,
    target: Condition,
    blocks: Blocks,
) -> Arm:
    images: Tensor = translator.translate(batch, target=target).images
    seen = judges.look(images)
    return Arm(key, name, "null", images, seen.features, seen.logits, blocks)


def _batch(reference: Sight, comparison: Comparison) -> CellBatch:
    rows = comparison.sources
    return CellBatch(
        images=reference.images(rows),
        cell_ids=tuple(reference.store.obs.index[rows]),
        plates=tuple(reference.store.plates[rows]),
        conditions=(comparison.source,) * len(rows),
        seeds=torch.zeros(len(rows), dtype=torch.int64),
    )
