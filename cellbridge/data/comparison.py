"""Which cells are compared: translated outputs with their sources, real target cells and counterfactuals, in disjoint draws.

Cells are drawn from their order by name, so that stores whose rows lie in another order give the same draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.data.store import Store
from cellbridge.data.translations import (
    drawn_samples,
    first_samples,
    outputs_of,
    paired_rows,
    require_columns,
    rows_of,
    shared_sources,
    stores_by_model,
)
from cellbridge.errors import StoreError

Rows = NDArray[np.int64]

_FEWEST_HELD_OUT = 10
_FIELD = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
_TRUTH = ("Metadata_SourceCell", "Metadata_Origin")


@dataclass(frozen=True)
class Comparison:
    """The rows of stores that the table of one target is made from; position i of the paired ones is source cell i.

    Parameters
    ----------
    source : condition of the cells that were translated.
    sources : rows of the reference store, (n,).
    outputs : model → rows of its translated store, (n,); of several draws of a cell, the first.
    shuffled : model → rows of the same cells under other targets, drawn at random, (n,); None where there is no other target.
    unchanged : model → rows of the same cells translated to the condition they are under, (n,); None where that was not a target.
    real : rows of real target cells, for target hits.
    scored : positions in `sources` that distances are computed on, (m,); empty where there are too few real cells.
    reference, floor : three disjoint draws of real target cells, (m,) each.
    ceiling : real cells of the source condition that are not among those scored, (m,).
    counterfactual, responding : rows of the truth store, -1 where there is none, (n,).
    lost : translated cells left out because the compound removes them, so that they have no counterfactual.
    unmatched : translated cells left out because the truth does not know them (no object lay at their place, or it does not show their field).
    train_source, train_target : rows of training cells, for fitting null rows.
    draws : model → rows of every draw of the cells, (n, draw), where it drew each more than once.
    translated : model → how many cells it translated to the target, those that others did not among them.
    """

    target: str
    source: str
    sources: Rows
    outputs: Mapping[str, Rows]
    shuffled: Mapping[str, Rows | None]
    unchanged: Mapping[str, Rows | None]
    real: Rows
    scored: Rows
    reference: Rows
    floor: tuple[Rows, Rows]
    ceiling: Rows
    counterfactual: Rows
    responding: Rows
    lost: int
    unmatched: int
    train_source: Rows
    train_target: Rows
    draws: Mapping[str, Rows] = field(default_factory=dict)
    translated: Mapping[str, int] = field(default_factory=dict)


def compare(
    translated: Sequence[Store], reference: Store, truth: Store | None, *, split: str, n: int | None, seed: int
) -> list[Comparison]:
    """Choose the cells of every target, the same source cells for all targets where they share enough.

    Where the truth knows the target, only cells with a counterfactual are scored: real target cells are survivors, too. Cells that
    were translated to the condition they are under make no target of their own; they stand beside every other target.

    Parameters
    ----------
    translated : stores of outputs, with their source cell, target condition and model; each model lies in one of them. Cells that one
        model did not translate are left out of all rows of the target.
    reference : the store that was translated.
    split : of the reference store; outputs of other cells are left out.
    n : cells per row at most.
    seed : of every draw.

    Raises
    ------
    StoreError : a translated store does not say what its cells were made from, or not from cells of `reference` in `split`; two hold the
        same model; they hold no target but the condition of their sources; the truth does not say what its cells are.
    """
    if truth is not None:
        require_columns(
            truth,
            _TRUTH,
            "so it holds no counterfactuals. Give the store that `cellbridge prepare` cut with crops_from.",
        )
    stores_by_model(translated)
    every = paired_rows(translated, reference, split=split)
    paired = first_samples(every)
    moved = paired[(paired["target"] != reference.condition_names[paired["source"]])]
    if moved.empty:
        raise StoreError(
            f"{translated[0].info.path}: every cell was translated to the condition it is under. Translate to another one, too."
        )
    by_target = {target: shared_sources(part) for target, part in moved.groupby("target", sort=True)}
    common = sorted(set.intersection(*map(set, by_target.values())))
    fewest = min(len(sources) for sources in by_target.values())
    comparisons = []
    for target, sources in by_target.items():
        pool = np.array(common if 2 * len(common) >= fewest else sources, dtype=np.int64)
        pool, lost, unmatched = _scorable(truth, reference, pool, target=str(target))
        # The same cells whatever the target, where all are known.
        chosen = _draw(by_name(reference, pool), n, np.random.default_rng([seed, 0]))
        comparison = _compare(str(target), chosen, paired, reference, truth, split=split, seed=seed)
        draws = drawn_samples(every, chosen, target=str(target))
        of_target = moved[moved["target"] == target]["model"].value_counts().sort_index()
        counts = {str(model): int(count) for model, count in of_target.items()}
        comparisons.append(replace(comparison, lost=lost, unmatched=unmatched, draws=draws, translated=counts))
    return comparisons


def _scorable(truth: Store | None, reference: Store, pool: Rows, *, target: str) -> tuple[Rows, int, int]:
    """Return the cells that have a counterfactual, or all where none has; how many the compound removes, and how many the truth lacks."""
    known = pool[_truth_rows(truth, reference, pool, target, "counterfactual") >= 0]
    missing = np.setdiff1d(pool, known) if len(known) else pool[:0]
    lost = _removed(truth, reference, missing)
    return (known if len(known) else pool), lost, len(missing) - lost


def by_name(store: Store, rows: Rows) -> Rows:
    """Return rows in the order of their cells' names, which does not depend on how the store lies."""
    return rows[np.argsort(store.obs.index.to_numpy()[rows].astype(str), kind="stable")]


def held_out(
    reference: Store, conditions: Sequence[str], *, split: str, generated_from: Rows
) -> tuple[Rows, dict[str, str]]:
    """Choose real cells for a classifier's accuracy: of wells that nothing was generated from, where there are any.

    Returns
    -------
    rows, and per condition what was left out, in words.
    """
    wells = (
        reference.obs["Metadata_Plate"].astype(str) + "\x1f" + reference.obs["Metadata_Well"].astype(str)
    ).to_numpy()
    in_split = (reference.obs["Metadata_Split"] == split).to_numpy()
    used_well = np.isin(wells, np.unique(wells[generated_from]))
    used_cell = np.zeros(len(wells), dtype=bool)
    used_cell[generated_from] = True
    choices = (
        (used_well, "wells that cells were translated from are left out"),
        (used_cell, "translated cells are left out, other cells of their wells are not"),
        (np.zeros_like(used_cell), "all cells, translated ones among them: there are too few others"),
    )
    chosen, words = [], {}
    for condition in conditions:
        candidates = in_split & (reference.condition_names == condition)
        options = [(np.flatnonzero(candidates & ~left_out), text) for left_out, text in choices]
        everything = len(options[-1][0])
        fewest = min(_FEWEST_HELD_OUT, everything)  # the words may not speak of translated cells where there are none
        rows, words[condition] = next(option for option in options if len(option[0]) >= fewest)
        chosen.append(rows)
    return by_name(reference, np.concatenate(chosen).astype(np.int64)), words


def _removed(truth: Store | None, reference: Store, missing: Rows) -> int:
    """Return how many cells without a counterfactual were removed by the compound: those that the truth knows under another condition.

    A cell that it knows under none counts as removed, too, where the truth shows its field and no cell at all went unmatched.
    """
    if truth is None or len(missing) == 0:
        return 0
    cells = reference.obs.iloc[missing]
    removed = cells.index.isin(truth.obs["Metadata_SourceCell"])
    if not truth.info.attributes.get("rejected", {"no_object": 1}).get("no_object"):
        fields = [pd.MultiIndex.from_frame(table[list(_FIELD)].astype(str)) for table in (cells, truth.obs)]
        removed |= fields[0].isin(fields[1])
    return int(removed.sum())


def _compare(
    target: str, sources: Rows, paired: pd.DataFrame, reference: Store, truth: Store | None, *, split: str, seed: int
) -> Comparison:
    names = reference.condition_names
    found = sorted(set(names[sources]))
    if len(found) > 1:
        raise StoreError(
            f"cells of several conditions were translated to {target} ({', '.join(found)}); evaluate one source."
        )
    in_split = (reference.obs["Metadata_Split"] == split).to_numpy()
    training = (reference.obs["Metadata_Split"] == "train").to_numpy() & (split != "train")
    rng = np.random.default_rng([seed, 1])
    real = by_name(reference, np.setdiff1d(np.flatnonzero(in_split & (names == target)), sources))
    controls = by_name(reference, np.flatnonzero(in_split & (names == found[0])))
    size = min(len(sources), len(real) // 3, len(controls) // 2)
    size = size if size >= 4 else 0
    scored = np.sort(rng.choice(len(sources), size, replace=False))
    others = controls[~np.isin(controls, sources)]
    others = others if len(others) >= size else controls[~np.isin(controls, sources[scored])]
    thirds = rng.permutation(real)
    outputs = outputs_of(target, sources, paired)
    return Comparison(
        target=target,
        source=found[0],
        sources=sources,
        outputs=outputs,
        shuffled={model: _shuffled(target, found[0], sources, paired, model, rng=rng) for model in outputs},
        unchanged={model: rows_of(found[0], sources, paired, model) for model in outputs},
        real=_draw(real, len(sources), rng),
        scored=scored,
        reference=thirds[:size],
        floor=(thirds[size : 2 * size], thirds[2 * size : 3 * size]),
        ceiling=_draw(others, size, rng),
        counterfactual=_truth_rows(truth, reference, sources, target, "counterfactual"),
        responding=_truth_rows(truth, reference, sources, target, "responding"),
        lost=0,
        unmatched=0,
        train_source=by_name(reference, np.flatnonzero(training & (names == found[0]))),
        train_target=by_name(reference, np.flatnonzero(training & (names == target))),
    )


def _shuffled(
    target: str, source: str, sources: Rows, paired: pd.DataFrame, model: str, *, rng: np.random.Generator
) -> Rows | None:
    """Draw for each source one of the model's outputs for another target; None where one of them has none."""
    names = sorted(set(paired["target"]) - {target, source})
    rows = [rows_of(name, sources, paired, model) for name in names]
    whole = [found for found in rows if found is not None]
    if not whole:
        return None
    return np.stack(whole)[rng.integers(len(whole), size=len(sources)), np.arange(len(sources))]


def _truth_rows(truth: Store | None, reference: Store, sources: Rows, target: str, origin: str) -> Rows:
    """Return the truth's row of each source cell, -1 where it has none."""
    if truth is None:
        return np.full(len(sources), -1, dtype=np.int64)
    chosen = np.flatnonzero((truth.condition_names == target) & (truth.obs["Metadata_Origin"] == origin).to_numpy())
    of_cell = pd.Series(chosen, index=truth.obs["Metadata_SourceCell"].to_numpy()[chosen])
    of_cell = of_cell[~of_cell.index.duplicated()]
    return of_cell.reindex(reference.obs.index[sources]).fillna(-1).to_numpy(dtype=np.int64)


def _draw(rows: Rows, n: int | None, rng: np.random.Generator) -> Rows:
    """Draw n rows, in the order in which they were given."""
    if n is None or n >= len(rows):
        return rows
    return rows[np.sort(rng.choice(len(rows), n, replace=False))]
