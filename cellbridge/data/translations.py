"""Which rows of translated stores were made from which cell: one table over several stores, each model in a store of its own."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.data.store import Store
from cellbridge.errors import StoreError

Rows = NDArray[np.int64]

SAMPLE = "Metadata_Sample"
"""Number of the draw, 0 first, where a cell was translated several times."""
_PROVENANCE = ("Metadata_SourceCell", "Metadata_TargetCondition", "Metadata_Model")


def stores_by_model(stores: Sequence[Store]) -> dict[str, Store]:
    """Return the store of each model, which is told from others by its Metadata_Model.

    Raises
    ------
    StoreError : two stores name the same model, or one does not say what its cells were made from.
    """
    found: dict[str, Store] = {}
    for store in stores:
        require_columns(
            store,
            _PROVENANCE,
            "so it does not say what its cells were made from. Give the store that `cellbridge translate` wrote.",
        )
        for model in sorted(map(str, store.obs["Metadata_Model"].unique())):
            if model in found:
                raise StoreError(
                    f'{store.info.path}: holds cells of a model "{model}", and so does {found[model].info.path}. '
                    "Translate one of them again with --set name=…, so that they are told apart."
                )
            found[model] = store
    return found


def paired_rows(stores: Sequence[Store], reference: Store, *, split: str) -> pd.DataFrame:
    """Return one row per output: its row in its model's store, its source's row, target, model and sample.

    Repeats of one (source, target, model, sample) are left out.

    Raises
    ------
    StoreError : a source cell is not in `reference`, or none of a store is in `split`.
    """
    return pd.concat([_pairs(store, reference, split=split) for store in stores], ignore_index=True)


def _pairs(translated: Store, reference: Store, *, split: str) -> pd.DataFrame:
    obs = translated.obs
    source = reference.obs.index.get_indexer(pd.Index(obs["Metadata_SourceCell"].astype(str)))
    if (source < 0).any():
        unknown = obs["Metadata_SourceCell"].iloc[int(np.flatnonzero(source < 0)[0])]
        raise StoreError(
            f'{translated.info.path}: source cell "{unknown}" is not in {reference.info.path}. Give the store that was translated.'
        )
    pairs = pd.DataFrame(
        {
            "row": np.arange(len(obs)),
            "source": source,
            "target": obs["Metadata_TargetCondition"].to_numpy(),
            "model": obs["Metadata_Model"].to_numpy(),
            "sample": _samples(translated),
        }
    )
    pairs = pairs[(reference.obs["Metadata_Split"] == split).to_numpy()[source]]
    if pairs.empty:
        found = sorted(set(reference.obs["Metadata_Split"].iloc[source]))
        raise StoreError(f'{translated.info.path}: no cell was made from split "{split}" (found: {", ".join(found)}).')
    return pairs.drop_duplicates(["source", "target", "model", "sample"])


def first_samples(paired: pd.DataFrame) -> pd.DataFrame:
    """Return of each (source, target, model) the draw of the lowest number, which stands for it wherever cells are paired."""
    first = paired.sort_values("sample", kind="stable").drop_duplicates(["source", "target", "model"])
    return first.sort_index()


def drawn_samples(paired: pd.DataFrame, sources: Rows, *, target: str) -> dict[str, Rows]:
    """Return every draw of the sources under a target, for models that drew each of them as often and more than once.

    Returns
    -------
    model → rows of its store, (source, draw).
    """
    found = {}
    of_target = paired[paired["target"] == target]
    for model, part in of_target.groupby("model", sort=True):
        table = part.pivot(index="source", columns="sample", values="row").reindex(sources)
        if table.shape[1] > 1 and not table.isna().to_numpy().any():
            found[str(model)] = table.to_numpy(dtype=np.int64)
    return found


def shared_sources(paired: pd.DataFrame) -> list[int]:
    """Return the source cells that every model translated.

    Raises
    ------
    StoreError : there is none.
    """
    sets = [set(part["source"]) for _, part in paired.groupby("model")]
    shared = sorted(set.intersection(*sets))
    if not shared:
        names = ", ".join(sorted(paired["model"].unique()))
        raise StoreError(f"the models {names} translated different cells; evaluate them one by one.")
    return shared


def rows_of(target: str, sources: Rows, paired: pd.DataFrame, model: str) -> Rows | None:
    """Return a model's rows of the sources under a target; None where one of them was not translated to it."""
    part = paired[(paired["model"] == model) & (paired["target"] == target)]
    rows = part.set_index("source")["row"].reindex(sources)
    return None if rows.isna().any() else rows.to_numpy(dtype=np.int64)


def outputs_of(target: str, sources: Rows, paired: pd.DataFrame) -> Mapping[str, Rows]:
    """Return each model's rows of the sources under the target, which every one of them has."""
    models = sorted(map(str, paired.loc[paired["target"] == target, "model"].unique()))
    found = {model: rows_of(target, sources, paired, model) for model in models}
    return {model: rows for model, rows in found.items() if rows is not None}


def require_columns(store: Store, columns: Sequence[str], consequence: str) -> None:
    """Refuse a store that lacks a column, and say what follows from that.

    Raises
    ------
    StoreError : naming the column.
    """
    missing = [column for column in columns if column not in store.obs.columns]
    if missing:
        raise StoreError(f"{store.info.path}: has no column {missing[0]}, {consequence}")


def _samples(translated: Store) -> NDArray[np.int64]:
    if SAMPLE not in translated.obs:
        return np.zeros(len(translated.obs), dtype=np.int64)
    numbers = pd.to_numeric(translated.obs[SAMPLE], errors="coerce")
    if numbers.isna().any():
        found = translated.obs[SAMPLE][numbers.isna()].iloc[0]
        raise StoreError(f'{translated.info.path}: {SAMPLE} "{found}" is no number. Translate the cells again.')
    return numbers.to_numpy(dtype=np.int64)
