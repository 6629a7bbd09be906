"""How far several translations of one cell lie apart, and how far they should: variance given the cell.

A method that gives one answer for every cell may have the right marginal and no spread at all; where chance decides who responds, the truth
given the cell has one, p (1 - p) |responding - source|².
"""

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.content import cell_squared_error
from cellbridge.metrics.intervals import Blocks, Estimate, bootstrap

Floats = NDArray[np.floating]


def drawn_variance(draws: Floats, masks: NDArray[np.bool_], *, deviation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the variance among the draws of each cell, over its own mask, all channels weighing equally.

    v_i = mean over channels c and pixels p of mask i of Var_k(y_ikcp) / sd_c², the variance without bias.

    Parameters
    ----------
    draws : (n, draw, channel, height, width), two draws or more.
    masks : (n, height, width), true inside the cell, none empty.
    deviation : (channel,), standard deviation of real images.

    Returns
    -------
    (n,), in squared standard deviations.

    Raises
    ------
    ValueError : one draw; an empty mask, or a channel without spread.
    """
    number = draws.shape[1]
    if number < 2:
        raise ValueError("one draw of each cell: a variance needs two or more")
    mean = draws.mean(axis=1, dtype=np.float64)
    errors = [cell_squared_error(draws[:, k], mean, masks, deviation=deviation) for k in range(number)]
    return np.asarray(np.sum(errors, axis=0) / (number - 1))


def response_variance(
    source: Floats,
    responding: Floats,
    probability: Floats,
    masks: NDArray[np.bool_],
    *,
    deviation: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the variance of the truth given the cell, p (1 - p) |responding - source|², where chance decides who responds: (n,).

    Parameters
    ----------
    source, responding : (n, channel, height, width); the cell as it is, and made to respond.
    probability : (n,), p.
    """
    p = np.asarray(probability, dtype=np.float64)
    return np.asarray(p * (1 - p) * cell_squared_error(responding, source, masks, deviation=deviation))


def deviation_estimate(variance: NDArray[np.float64], blocks: Blocks, *, resamples: int, seed: int) -> Estimate:
    """Estimate the root of the mean variance, in standard deviations of each stain."""
    return bootstrap(variance, lambda means: np.sqrt(means[:, 0]), blocks, resamples=resamples, seed=seed)


def variance_ratio(
    drawn: NDArray[np.float64], known: NDArray[np.float64], blocks: Blocks, *, resamples: int, seed: int
) -> Estimate | None:
    """Estimate the mean variance of draws over that of the truth: 1 is right, 0 a deterministic map; None where the truth has none."""
    if not known.mean() > 0:
        return None
    table = np.stack([drawn, known], axis=1)
    return bootstrap(table, lambda means: means[:, 0] / means[:, 1], blocks, resamples=resamples, seed=seed)
