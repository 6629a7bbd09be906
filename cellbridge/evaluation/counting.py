"""The null row "cell count only": how often counting the cells of real target wells would give the target away."""

from typing import Any

import numpy as np

from cellbridge.data.comparison import Rows
from cellbridge.data.store import Store
from cellbridge.evaluation.target import Target
from cellbridge.metrics.classification import logits_from_count, target_hits
from cellbridge.metrics.intervals import Blocks, share


def wells_of(store: Store, rows: Rows) -> np.ndarray:
    """Return the well of each row, by a name that is unique over plates."""
    place = store.obs.iloc[rows]
    return (place["Metadata_Plate"].astype(str) + "\x1f" + place["Metadata_Well"].astype(str)).to_numpy()


def cells_per_well(store: Store) -> dict[str, int]:
    """Return how many cells the store holds of each well."""
    names, counts = np.unique(wells_of(store, np.arange(len(store.obs))).astype(str), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def count_row(target: Target) -> dict[str, Any]:
    """Return the row: share of the real target's wells that the number of their cells alone takes for the target."""
    row: dict[str, Any] = {"key": "count", "name": "cell count only", "kind": "null", "n": 0}
    store, names = target.reference, target.sights.judges.conditions
    known = np.isin(store.condition_names, names)
    training = np.flatnonzero((store.obs["Metadata_Split"] == "train").to_numpy() & known)
    asked = np.unique(wells_of(store, target.rows_on(target.comparison.target, target.plates)).astype(str))
    if target.label is None or len(training) == 0 or len(asked) == 0:
        return row | {"target_hit": {"not_computed": "no training wells, or no real well of the target"}}
    counts = cells_per_well(store)
    of_well = dict(zip(wells_of(store, training).astype(str).tolist(), store.condition_names[training], strict=True))
    labels = np.array([names.index(str(name)) for name in of_well.values()])
    told = np.array([counts[well] for well in of_well], dtype=float), labels
    logits = logits_from_count(
        np.array([counts[well] for well in asked.tolist()], dtype=float), training=told, conditions=len(names)
    )
    hits = target_hits(logits, target.label)
    found = share(hits, Blocks(np.arange(len(asked)), "wells"), **target.draws.settings)
    return row | {"n": len(asked), "target_hit": found.to_dict()}
