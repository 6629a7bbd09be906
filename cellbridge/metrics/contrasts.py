"""Intervals of differences between two sets of cells, paired or independent, fit for few blocks and for corrected levels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, student_mean, wilson

Floats = NDArray[np.floating]
Pair = tuple[Blocks, Blocks]
Draws = NDArray[np.float64]


def paired_difference(values: NDArray[Any], others: NDArray[Any], blocks: Blocks, *, level: float = LEVEL) -> Estimate:
    """Estimate mean(values - others) of the same cells; the wider, at each end, of Student's intervals over blocks and over cells.

    The one over cells takes them for independent, the one over blocks has no width where all blocks agree, on one hit more each, say;
    neither may narrow the other. Without two blocks there is none.
    """
    difference = values.astype(np.float64) - others
    found = student_mean(difference, blocks, level=level)
    if found.low is None or found.high is None:
        return found
    cells = student_mean(difference, Blocks(np.arange(len(difference)), "cells"), level=level)
    assert cells.low is not None
    assert cells.high is not None
    return Estimate(found.value, min(found.low, cells.low), max(found.high, cells.high), found.n, found.resampled)


def student_difference(values: Floats, others: Floats, blocks: Pair, *, level: float = LEVEL) -> Estimate:
    """Estimate mean(values) - mean(others) of two independent sets of cells, with Welch's interval over blocks.

    se² = se_1² + se_2²; degrees of freedom by Welch and Satterthwaite, se⁴ / Σ se_k⁴/(G_k - 1).

    References
    ----------
    Welch 1947, "The generalization of Student's problem when several different population variances are involved", Biometrika 34:28.
    """
    value, n = float(values.mean() - others.mean()), min(len(values), len(others))
    variances = [_squared_error(part, of) for part, of in zip((values, others), blocks, strict=True)]
    first, second = variances
    if first is None or second is None:
        unit = next(of.unit for of, found in zip(blocks, variances, strict=True) if found is None)
        return Estimate(value, None, None, n, unit)
    total = first + second
    if total == 0:
        return Estimate(value, value, value, n, blocks[0].unit)
    freedom = total**2 / (first**2 / (blocks[0].count - 1) + second**2 / (blocks[1].count - 1))
    half = float(student_t.ppf(0.5 + level / 2, freedom) * np.sqrt(total))
    return Estimate(value, value - half, value + half, n, blocks[0].unit)


def share_difference(
    hits: NDArray[np.bool_], others: NDArray[np.bool_], blocks: Pair, *, level: float = LEVEL
) -> Estimate:
    """Estimate the difference of two shares of independent cells; the wider, at each end, of Welch's interval over blocks and Newcombe's.

    Newcombe's takes cells for independent, Welch's has no width where all cells of both sets agree; neither may narrow the other.
    """
    found = student_difference(hits.astype(float), others.astype(float), blocks, level=level)
    if found.low is None or found.high is None:
        return found
    low, high = _newcombe(hits, others, level=level)
    low, high = max(min(low, found.low), -1.0), min(max(high, found.high), 1.0)
    return Estimate(found.value, low, high, found.n, found.resampled)


def newcombe(hits: NDArray[np.bool_], others: NDArray[np.bool_], *, level: float = LEVEL) -> Estimate:
    """Estimate the difference of two shares by Newcombe's interval alone: for events of single cells, whatever their wells.

    References
    ----------
    Newcombe 1998, "Interval estimation for the difference between independent proportions", Stat. Med. 17:873, method 10.
    """
    low, high = _newcombe(hits, others, level=level)
    return Estimate(float(hits.mean() - others.mean()), low, high, min(len(hits), len(others)), "cells")


def draws_interval(
    value: float,
    draws: Draws | None,
    blocks: Pair,
    *,
    n: int,
    level: float = LEVEL,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Return value ± Student's t · standard deviation of bootstrap draws, cut to the range that the statistic can have.

    A cosine or a rank correlation of noisy vectors falls when noise is added, and a bootstrap draw has more noise than the data: percentile
    intervals may lie wholly below the value. The spread of the draws is still the spread of the value.

    Parameters
    ----------
    draws : (draw,), None where there is nothing to resample; draws that are not finite are left out.
    blocks : of the two samples; the smaller number of blocks, less one, gives the degrees of freedom.
    """
    unit = min(blocks, key=lambda part: part.count).unit
    finite = np.array([]) if draws is None else draws[np.isfinite(draws)]
    if len(finite) < 2 or not np.isfinite(value):
        return Estimate(value, None, None, n, unit)
    freedom = min(part.count for part in blocks) - 1
    half = float(student_t.ppf(0.5 + level / 2, freedom) * finite.std(ddof=1))
    return Estimate(value, max(value - half, within[0]), min(value + half, within[1]), n, unit)


def _newcombe(hits: NDArray[np.bool_], others: NDArray[np.bool_], *, level: float) -> tuple[float, float]:
    (low_1, high_1), (low_2, high_2) = (wilson(int(part.sum()), len(part), level=level) for part in (hits, others))
    share_1, share_2 = float(hits.mean()), float(others.mean())
    below, above = np.hypot(share_1 - low_1, high_2 - share_2), np.hypot(high_1 - share_1, share_2 - low_2)
    return share_1 - share_2 - float(below), share_1 - share_2 + float(above)


def _squared_error(values: Floats, blocks: Blocks) -> float | None:
    found = student_mean(values, blocks)
    if found.low is None:
        return None
    return float(((found.value - found.low) / student_t.ppf(0.5 + LEVEL / 2, blocks.count - 1)) ** 2)
