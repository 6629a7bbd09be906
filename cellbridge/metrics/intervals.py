"""Estimates and their intervals: the well is the unit, since cells of one well are no independent draws."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

LEVEL = 0.95
"""Confidence level of every interval."""

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Means of per-cell values (draw, value) → one number per draw."""

LeftOut = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Values of two-sample statistics, (group, statistic), with one group of cells left out of the first sample, and of the second."""


@dataclass(frozen=True)
class Estimate:
    """A number, the ends of its interval (None where none can be given), its n, and what was resampled."""

    value: float
    low: float | None
    high: float | None
    n: int
    resampled: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an end that is not finite is given as null."""
        return {key: _finite(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Blocks:
    """Which cells are resampled together.

    Parameters
    ----------
    codes : (cell,), number of each cell's block.
    unit : what a block is, in words that stand beside the interval.
    """

    codes: NDArray[np.int64]
    unit: str

    @property
    def count(self) -> int:
        return len(np.unique(self.codes))

    def take(self, rows: NDArray[np.int64]) -> "Blocks":
        """Return the blocks of some of the cells."""
        return Blocks(self.codes[rows], self.unit)


def blocks_of(plates: Sequence[str], wells: Sequence[str], sites: Sequence[str]) -> Blocks:
    """Group cells into wells where there are three or more, else into sites ("within-well only").

    With a single site the unit is "none (one site)", and no interval is given.
    """
    by_well = [f"{plate}\x1f{well}" for plate, well in zip(plates, wells, strict=True)]
    codes = np.unique(by_well, return_inverse=True)[1].astype(np.int64)
    if len(np.unique(codes)) >= 3:
        return Blocks(codes, "wells")
    by_site = [f"{well}\x1f{site}" for well, site in zip(by_well, sites, strict=True)]
    codes = np.unique(by_site, return_inverse=True)[1].astype(np.int64)
    unit = "sites (within-well only)" if len(np.unique(codes)) >= 2 else "none (one site)"
    return Blocks(codes, unit)


def resampled_means(
    values: NDArray[np.floating[Any]], blocks: Blocks, *, resamples: int, seed: int
) -> NDArray[np.float64] | None:
    """Return the means of per-cell values over bootstrap draws of whole blocks.

    Parameters
    ----------
    values : (cell, value).
    resamples : number of draws.

    Returns
    -------
    (resamples, value), or None where there is only one block to draw.
    """
    if blocks.count < 2 or blocks.unit.startswith("none"):
        return None
    codes = np.unique(blocks.codes, return_inverse=True)[1]
    sums = np.zeros((blocks.count, values.shape[1]))
    np.add.at(sums, codes, values)
    sizes = np.bincount(codes).astype(float)
    uniform = np.full(blocks.count, 1 / blocks.count)
    copies = np.random.default_rng(seed).multinomial(blocks.count, uniform, size=resamples)
    return (copies @ sums) / (copies @ sizes)[:, None]


def bootstrap(
    values: NDArray[np.floating[Any]],
    statistic: Statistic,
    blocks: Blocks,
    *,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Estimate:
    """Estimate a function of means, with the percentile interval over draws of whole blocks.

    Parameters
    ----------
    values : (cell, value), or (cell,) for one value per cell.
    statistic : maps means (draw, value) to (draw,).
    level : confidence level; see `corrected_level` where several intervals are looked at.

    References
    ----------
    Davison and Hinkley 1997, "Bootstrap Methods and their Application", §3.8 (hierarchical data).
    """
    table = values[:, None] if values.ndim == 1 else values
    value = float(statistic(table.mean(axis=0, keepdims=True))[0])
    draws = resampled_means(table, blocks, resamples=resamples, seed=seed)
    if draws is None:
        return Estimate(value, None, None, len(table), blocks.unit)
    low, high = percentile_interval(statistic(draws), level=level)
    return Estimate(value, low, high, len(table), blocks.unit)


def percentile_interval(draws: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float]:
    """Return the central `level` of the draws that are finite."""
    low, high = np.nanpercentile(np.where(np.isfinite(draws), draws, np.nan), [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def corrected_level(looks: int, *, level: float = LEVEL) -> float:
    """Return the level of each of several intervals at which all of them hold together at `level`: 1 - (1 - level)/looks.

    References
    ----------
    Bonferroni 1936; Dunn 1961, "Multiple comparisons among means", JASA 56:52.
    """
    return 1 - (1 - level) / max(looks, 1)


def student_mean(values: NDArray[np.floating[Any]], blocks: Blocks, *, level: float = LEVEL) -> Estimate:
    """Estimate a mean of per-cell values, with Student's interval over blocks (G - 1 degrees of freedom).

    se² = G/(G - 1) Σ_g (Σ_{i in g} (x_i - mean))² / n²

    A percentile interval never leaves the range of its blocks: with three wells it excludes the truth in a quarter of the studies, at
    whatever level, so it is of no use where a level is corrected for many looks, or blocks are few. This one is.

    References
    ----------
    Cameron, Gelbach and Miller 2008, "Bootstrap-based improvements for inference with clustered errors", Rev. Econ. Stat. 90:414.
    """
    value, n, groups = float(values.mean()), len(values), blocks.count
    if groups < 2 or blocks.unit.startswith("none"):
        return Estimate(value, None, None, n, blocks.unit)
    codes = np.unique(blocks.codes, return_inverse=True)[1]
    sums = np.bincount(codes, weights=np.asarray(values, dtype=np.float64) - value)
    error = np.sqrt(groups / (groups - 1) * (sums**2).sum()) / n
    half = float(student_t.ppf(0.5 + level / 2, groups - 1) * error)
    return Estimate(value, value - half, value + half, n, blocks.unit)


def wilson(successes: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a share; it has width at 0 and at 1, too.

    (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n)

    References
    ----------
    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22:209.
    """
    z = float(norm.ppf(0.5 + level / 2))
    share = successes / n
    centre = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return float(max(0.0, (centre - half) / scale)), float(min(1.0, (centre + half) / scale))


def share(hits: NDArray[np.bool_], blocks: Blocks, *, resamples: int, seed: int, level: float = LEVEL) -> Estimate:
    """Estimate a share of cells; the interval is the wider, at each end, of the bootstrap's and Wilson's.

    Wilson's takes cells for independent, the bootstrap has no width where all cells agree; neither may narrow the other.
    Without two blocks there is none.
    """
    settings = {"resamples": resamples, "seed": seed}
    estimate = bootstrap(hits.astype(float), lambda means: means[:, 0], blocks, level=level, **settings)
    if estimate.low is None or estimate.high is None:
        return estimate
    low, high = wilson(int(hits.sum()), len(hits), level=level)
    return Estimate(estimate.value, min(low, estimate.low), max(high, estimate.high), len(hits), blocks.unit)


def ratio(
    numerator: NDArray[np.floating[Any]],
    denominator: NDArray[np.floating[Any]],
    blocks: tuple[Blocks, Blocks],
    *,
    resamples: int,
    seed: int,
) -> Estimate | None:
    """Estimate the ratio of two shares, mean(numerator) / mean(denominator), of independent sets of cells; None where the denominator is 0.

    The interval is the bootstrap's; where all cells of the numerator agree, so that no draw differs in it, it is wide enough for Wilson's.

    Parameters
    ----------
    numerator, denominator : 0 or 1 for each cell.
    """
    if denominator.mean() == 0:
        return None
    value = float(numerator.mean() / denominator.mean())
    above = resampled_means(numerator[:, None].astype(float), blocks[0], resamples=resamples, seed=seed)
    below = resampled_means(denominator[:, None].astype(float), blocks[1], resamples=resamples, seed=seed + 1)
    n = min(len(numerator), len(denominator))
    if above is None or below is None:
        return Estimate(value, None, None, n, blocks[0].unit)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = percentile_interval(above[:, 0] / below[:, 0])
    if numerator.min() == numerator.max():
        ends = np.array(wilson(int(numerator.sum()), len(numerator))) / denominator.mean()
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return Estimate(value, low, high, n, blocks[0].unit)


def leave_one_out(
    statistic: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]],
    blocks: tuple[Blocks, Blocks],
    *,
    groups: int = 10,
    fewest: int = 1,
) -> LeftOut | None:
    """Return two-sample statistics with one block at a time left out, of either sample.

    Parameters
    ----------
    statistic : (rows of sample 1, rows of sample 2) → (statistic,).
    groups : blocks beyond this number are merged.
    fewest : cells that the statistic needs of each sample.

    Returns
    -------
    (group of sample 1, statistic) and (group of sample 2, statistic); None where a sample has a single block, or too few cells are left.
    """
    if any(part.count < 2 or part.unit.startswith("none") for part in blocks):
        return None
    everything = [np.arange(len(part.codes)) for part in blocks]
    sides = []
    for side, part in enumerate(blocks):
        codes = np.unique(part.codes, return_inverse=True)[1] % groups
        left_out = []
        for group in np.unique(codes):
            rows = list(everything)
            rows[side] = np.flatnonzero(codes != group)
            if len(rows[side]) < fewest:
                return None
            left_out.append(statistic(rows[0], rows[1]))
        sides.append(np.stack(left_out))
    return sides[0], sides[1]


def jackknife(*samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard errors of statistics of independent samples, from their values with one group of cells left out.

    se² = Σ over the samples of (G - 1)/G Σ_g (θ_(-g) - mean θ_(-g))²

    A bootstrap draws cells twice, and duplicates alone move Fréchet and kernel distances; leaving out does not.

    Parameters
    ----------
    samples : of each, (group, statistic), as `leave_one_out` gives them.

    References
    ----------
    Efron and Stein 1981, "The jackknife estimate of variance", Ann. Statist. 9:586.
    """
    variances = [(len(part) - 1) / len(part) * ((part - part.mean(axis=0)) ** 2).sum(axis=0) for part in samples]
    return np.asarray(np.sqrt(np.sum(variances, axis=0)))


def normal_interval(value: float, standard_error: float | None, *, n: int, resampled: str) -> Estimate:
    """Return value ± z · standard error, or no interval where there is no standard error."""
    if standard_error is None:
        return Estimate(value, None, None, n, resampled)
    half = float(norm.ppf(0.5 + LEVEL / 2)) * standard_error
    return Estimate(value, value - half, value + half, n, resampled)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
