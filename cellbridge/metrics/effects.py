"""Is the effect right? What a compound does to each feature, in outputs and in real cells, both against the same plate's control."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.contrasts import draws_interval
from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, resampled_means

Floats = NDArray[np.floating]
_MOST_ORDERS = 40_320
"""Orders of doses that are gone through one by one, 8!; beyond, they are drawn."""


@dataclass(frozen=True)
class Sample:
    """Cells by their features.

    Parameters
    ----------
    features : (cell, feature).
    plates : (cell,), name of each cell's plate.
    blocks : the cells that are resampled together.
    """

    features: Floats
    plates: NDArray[Any]
    blocks: Blocks

    def take(self, rows: NDArray[np.int64]) -> "Sample":
        """Return some of the cells."""
        return Sample(self.features[rows], np.asarray(self.plates)[rows], self.blocks.take(rows))


@dataclass(frozen=True)
class Effect:
    """A mean change of every feature, in standard deviations of the same plate's control.

    Parameters
    ----------
    mean : (feature,).
    draws : (draw, feature), over draws of whole blocks; None where there is nothing to resample.
    error : (feature,), standard errors, from the draws; None as they are.
    n : cells.
    """

    mean: NDArray[np.float64]
    draws: NDArray[np.float64] | None
    n: int
    blocks: Blocks

    @property
    def error(self) -> NDArray[np.float64] | None:
        return None if self.draws is None else np.asarray(self.draws.std(axis=0, ddof=1))

    def squared_norm(self) -> float:
        """Return |mean|² less what noise adds to it, Σ se²: zero on average where there is no effect; it may be negative."""
        noise = 0.0 if self.error is None else float((self.error**2).sum())
        return float((self.mean**2).sum()) - noise


@dataclass(frozen=True)
class Agreement:
    """How an effect agrees with the real one; 1 everywhere for the real effect itself.

    Parameters
    ----------
    slope : of the effect on the real one through the origin, <m, r> / |r|², the denominator less its noise: 0 no effect, 1 right size.
    sign : share of the features whose real effect exceeds two standard errors that move in the real direction.
    n_features, n_moved : features, and those that `sign` is about.
    """

    cosine: Estimate | None
    spearman: Estimate | None
    slope: Estimate | None
    sign: Estimate | None
    n_features: int
    n_moved: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not defined says why."""
        missing = {"not_computed": "one of the two effects is zero, or not distinct from noise"}
        parts = {key: getattr(self, key) for key in ("cosine", "spearman", "slope", "sign")}
        found = {key: missing if part is None else part.to_dict() for key, part in parts.items()}
        return found | {"n_features": self.n_features, "n_moved": self.n_moved}


def against_control(sample: Sample, control: Sample) -> NDArray[np.float64]:
    """Return features centred and scaled by the same plate's control cells: (x - mean_plate) / sd_plate, (cell, feature).

    The spread is pooled over plates, since that of one plate may rest on few cells; a feature that is constant in all control cells is 0.

    Raises
    ------
    ValueError : a plate has no control cell.
    """
    lacking = sorted({str(plate) for plate in sample.plates} - {str(plate) for plate in control.plates})
    if lacking:
        raise ValueError(
            f"plate(s) {lacking} have no control cell; effects are measured against the same plate's control"
        )
    own, of_control = np.asarray(sample.plates), np.asarray(control.plates)
    values = sample.features.astype(np.float64)
    residuals = control.features.astype(np.float64)
    for plate in np.unique(of_control):
        rows = of_control == plate
        centre = residuals[rows].mean(axis=0)
        residuals[rows] -= centre
        values[own == plate] -= centre
    spread = np.sqrt((residuals**2).mean(axis=0))
    size = np.abs(control.features).max(axis=0, initial=0.0)
    usable = spread > 1e-9 * np.maximum(size, 1e-300)
    return np.where(usable, values / np.where(usable, spread, 1.0), 0.0)


def real_effect(target: Sample, control: Sample, *, resamples: int, seed: int) -> Effect:
    """Return the effect in real cells: mean of the target less mean of the control, both drawn by their own blocks.

    Every target cell is set against its own plate's control, so plates weigh by their target cells.
    """
    standard, of_control = against_control(target, control), against_control(control, control)
    mean = standard.mean(axis=0)
    above = _drawn(standard, target.blocks, resamples=resamples, seed=seed)
    below = _drawn(of_control, control.blocks, resamples=resamples, seed=seed + 1)
    draws = None if above is None or below is None else above - below
    fewer = min(target.blocks, control.blocks, key=lambda part: part.count)
    return Effect(mean, draws, len(standard), fewer)


def paired_effect(output: Sample, source: Sample, control: Sample, *, resamples: int, seed: int) -> Effect:
    """Return the effect in outputs: the mean over cells of output less its own source, row by row; copying has none."""
    change = against_control(output, control) - against_control(source, control)
    draws = _drawn(change, source.blocks, resamples=resamples, seed=seed)
    return Effect(change.mean(axis=0), draws, len(change), source.blocks)


def count_effect(control: Sample, counts: Floats, *, change: float, resamples: int, seed: int) -> Effect:
    """Return the effect that the cell count alone explains: the slope of each feature on the count among control cells, times a change.

    The null row "cell count only": what crowding does to a control cell, had its well lost as many cells as the target's.

    Parameters
    ----------
    counts : (cell,), log of the number of cells in each control cell's well.
    change : log count of the target's wells less that of the control's.
    """
    values = against_control(control, control)
    centred = counts - counts.mean()
    # The slope is a ratio of means, so it can be drawn by blocks: E[x y] - E[x] E[y] over E[x²] - E[x]².
    columns = np.concatenate([centred[:, None], (centred**2)[:, None], values, centred[:, None] * values], axis=1)

    def slopes(means: NDArray[np.float64]) -> NDArray[np.float64]:
        x, xx, y, xy = means[:, :1], means[:, 1:2], *np.split(means[:, 2:], 2, axis=1)
        spread = xx - x**2
        safe = np.where(spread > 1e-12, spread, np.inf)
        return np.asarray((xy - x * y) / safe * change)

    draws = resampled_means(columns, control.blocks, resamples=resamples, seed=seed)
    mean = slopes(columns.mean(axis=0, keepdims=True))[0]
    return Effect(mean, None if draws is None else slopes(draws), len(values), control.blocks)


def agreement(effect: Effect, real: Effect, *, level: float = LEVEL) -> Agreement:
    """Compare an effect with the real one over features; intervals from draws of the blocks of both sides.

    References
    ----------
    Intervals: `contrasts.draws_interval`. Slope: Fuller 1987, "Measurement Error Models", §1.2 (the denominator's noise is taken off).
    """
    moved = _moved(real)
    n, sides = min(effect.n, real.n), (effect.blocks, real.blocks)
    pairs = None if effect.draws is None or real.draws is None else (effect.draws, real.draws)
    noise = 0.0 if real.error is None else float((real.error**2).sum())

    def slope(a: NDArray[np.float64], b: NDArray[np.float64], times: float) -> NDArray[np.float64]:
        below = (b**2).sum(axis=1) - times * noise
        return np.asarray((a * b).sum(axis=1) / np.where(below > 0, below, np.nan))

    def estimate(value: float, draws: NDArray[np.float64] | None, low: float, high: float) -> Estimate | None:
        if not np.isfinite(value):
            return None
        return draws_interval(value, draws, sides, n=n, level=level, within=(low, high))

    mean = (effect.mean[None], real.mean[None])
    found = {}
    for name, statistic, low in (("cosine", cosines, -1.0), ("spearman", spearmans, -1.0), ("sign", _same_sign, 0.0)):
        chosen = moved if name == "sign" else np.ones_like(moved)
        value = float(statistic(mean[0][:, chosen], mean[1][:, chosen])[0]) if chosen.any() else np.nan
        drawn = None if pairs is None or not chosen.any() else statistic(pairs[0][:, chosen], pairs[1][:, chosen])
        found[name] = estimate(value, drawn, low, 1.0)
    # A draw carries the noise of the data and once more its own, so twice as much is taken off.
    found["slope"] = estimate(
        float(slope(*mean, 1.0)[0]), None if pairs is None else slope(*pairs, 2.0), -np.inf, np.inf
    )
    return Agreement(**found, n_features=len(moved), n_moved=int(moved.sum()))


def effect_agreement(
    model: Sample,
    source: Sample,
    real_target: Sample,
    real_control: Sample,
    *,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Agreement:
    """Compare the effect in outputs (row i from source cell i) with that in real cells of the same plates.

    Parameters
    ----------
    real_control : all control cells of these plates; features are standardised on them.
    """
    settings = {"resamples": resamples, "seed": seed}
    effect = paired_effect(model, source, real_control, **settings)
    return agreement(effect, real_effect(real_target, real_control, resamples=resamples, seed=seed + 7), level=level)


def split_half(target: Sample, control: Sample, *, resamples: int, seed: int, level: float = LEVEL) -> Agreement | None:
    """Compare the real effect in one half of the target's blocks with that in the other: the most that agreement can show at half the n.

    None with fewer than two blocks.
    """
    codes = np.unique(target.blocks.codes)
    if len(codes) < 2 or target.blocks.unit.startswith("none"):
        return None
    first = np.random.default_rng([seed, 11]).permutation(codes)[: len(codes) // 2]
    rows = np.isin(target.blocks.codes, first)
    halves = [target.take(np.flatnonzero(part)) for part in (rows, ~rows)]
    effects = [
        real_effect(half, control, resamples=resamples, seed=seed + 20 * side) for side, half in enumerate(halves)
    ]
    return agreement(effects[0], effects[1], level=level)


@dataclass(frozen=True)
class Monotonicity:
    """Whether an effect's size grows with dose.

    Parameters
    ----------
    spearman : rank correlation of dose and size of the effect.
    p : share of all orders of the doses with a correlation as high or higher.
    smallest_p : what p is when the order is perfect; 1/k! for k doses.
    exact : whether all orders were gone through.
    """

    spearman: float
    p: float
    smallest_p: float
    exact: bool
    n_doses: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def dose_monotonicity(
    doses_um: Sequence[float], sizes: Sequence[float], *, seed: int, orders: int = 9_999
) -> Monotonicity | None:
    """Test whether the size of the effect grows with dose, by the orders of the doses; None with fewer than three doses or no spread.

    Parameters
    ----------
    sizes : of the effect at each dose, such as its projection on the real effect of the highest dose.
    orders : drawn at random where there are more than eight doses.
    """
    doses, found = _ranks(np.asarray(doses_um, float)[None])[0], _ranks(np.asarray(sizes, float)[None])[0]
    if len(doses) < 3 or np.ptp(doses) == 0 or np.ptp(found) == 0:
        return None
    value = float(cosines((doses - doses.mean())[None], (found - found.mean())[None])[0])
    exact = factorial(len(doses)) <= _MOST_ORDERS
    if exact:
        shuffled = np.array(list(permutations(found)))
    else:
        shuffled = np.random.default_rng(seed).permuted(np.tile(found, (orders, 1)), axis=1)
    null = cosines(np.broadcast_to(doses - doses.mean(), shuffled.shape), shuffled - found.mean())
    above = int((null >= value - 1e-12).sum())
    p = above / len(null) if exact else (above + 1) / (orders + 1)
    return Monotonicity(value, p, 1 / (factorial(len(doses)) if exact else orders + 1), exact, len(doses))


def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each row of one matrix with the same row of another; nan where a row is zero."""
    norms = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.where(norms > 0, norms, np.nan))


def spearmans(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank correlation of each row of one matrix with the same row of another; nan where a row has no spread."""
    ranked = [_ranks(part) for part in (a, b)]
    return cosines(*(part - part.mean(axis=1, keepdims=True) for part in ranked))


def _drawn(values: Floats, blocks: Blocks, *, resamples: int, seed: int) -> NDArray[np.float64] | None:
    """Draw means, their spread widened by G/(G - 1): a bootstrap of G blocks falls short of the variance of a mean by that factor."""
    draws = resampled_means(values, blocks, resamples=resamples, seed=seed)
    if draws is None:
        return None
    mean = values.mean(axis=0)
    return np.asarray(mean + (draws - mean) * np.sqrt(blocks.count / (blocks.count - 1)))


def _ranks(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.asarray(rankdata(rows, axis=1))


def _same_sign(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((np.sign(a) == np.sign(b)).mean(axis=1))


def _moved(real: Effect) -> NDArray[np.bool_]:
    """Return which features' real effect exceeds two standard errors; none where there is no standard error."""
    if real.error is None:
        return np.zeros(len(real.mean), dtype=bool)
    return np.asarray(np.abs(real.mean) > 2 * real.error)
