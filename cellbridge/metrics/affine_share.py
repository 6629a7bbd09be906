"""How much of what a model changes is an affine map of its source's intensities."""

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.intervals import Blocks, Estimate, bootstrap

Floats = NDArray[np.floating]


def affine_share(
    outputs: Floats, imitations: Floats, sources: Floats, blocks: Blocks, *, resamples: int, seed: int
) -> Estimate | None:
    """Estimate 1 - Σ |output - imitation|² / Σ |output - source|²: 1 where outputs are an affine map of their sources, 0 where none of it is.

    Parameters
    ----------
    outputs, sources : (n, channel, height, width), row by row.
    imitations : the affine map per channel of the sources that comes nearest to the outputs.

    Returns
    -------
    None where nothing was changed.
    """
    left = _squared(outputs, imitations)
    changed = _squared(outputs, sources)
    if not changed.any():
        return None

    def explained(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(1 - means[:, 0] / np.where(means[:, 1] > 0, means[:, 1], np.nan))

    return bootstrap(np.stack([left, changed], axis=1), explained, blocks, resamples=resamples, seed=seed)


def _squared(images: Floats, others: Floats) -> NDArray[np.float64]:
    return np.asarray(((images.astype(np.float64) - others) ** 2).mean(axis=(1, 2, 3)))
