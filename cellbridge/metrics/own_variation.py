"""How much of what is a cell's own is left in its translation: the correlation of both, each less the mean of its plate.

It falls from 1 by degrees where retrieval of the source (`identity`) still finds every cell. What is done to all cells alike counts for
nothing, so that one change for every cell has 1; so has a change of contrast.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, bootstrap

Floats = NDArray[np.floating]


def own_variation(
    outputs: Floats,
    sources: Floats,
    *,
    plates: NDArray[Any],
    blocks: Blocks,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Estimate | None:
    """Estimate Σ_i <a_i, b_i> / sqrt(Σ_i |a_i|² Σ_i |b_i|²), a_i and b_i an output and its source, each less the mean of its plate.

    Parameters
    ----------
    outputs, sources : (n, …), row by row: images, or `identity.pixel_signature` of them.
    plates : (n,).

    Returns
    -------
    within [-1, 1]; None where outputs or sources of a plate are all alike.
    """
    a, b = (_less_mean(values, plates) for values in (outputs, sources))
    table = np.stack([(a * b).sum(axis=1), (a**2).sum(axis=1), (b**2).sum(axis=1)], axis=1)
    if not (table[:, 1:].mean(axis=0) > 0).all():
        return None

    def correlation(means: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(means[:, 0] / np.sqrt(means[:, 1] * means[:, 2]))

    return bootstrap(table, correlation, blocks, resamples=resamples, seed=seed, level=level)


def _less_mean(values: Floats, plates: NDArray[Any]) -> NDArray[np.float64]:
    """Return rows (n, number) less the mean of their plate's rows."""
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    _, group = np.unique(np.asarray(plates).astype(str), return_inverse=True)
    sums = np.zeros((int(group.max()) + 1, flat.shape[1]))
    np.add.at(sums, group, flat)
    return np.asarray(flat - (sums / np.bincount(group)[:, None])[group])
