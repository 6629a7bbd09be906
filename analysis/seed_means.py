"""Means over training seeds with their standard errors, as the studies' tables show them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """A mean over training seeds, its standard error (NaN of one seed), and how many they were (0 where no model is judged)."""

    value: float
    error: float
    seeds: int


def entry(values: Sequence[float]) -> Entry:
    """Return the mean over seeds."""
    n = len(values)
    return Entry(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else np.nan, n)


def shown(found: Entry, *, digits: int, factor: float = 1.0) -> str:
    """Return the mean, with its standard error where there is one, in the given digits and times `factor`."""
    spread = "" if np.isnan(found.error) else f" ± {factor * found.error:.{max(digits, 1)}f}"
    return f"{factor * found.value:,.{digits}f}{spread}"
