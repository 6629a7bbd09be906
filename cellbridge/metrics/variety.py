"""Whether images vary: an inception-style score from a classifier of conditions, and the share of images that repeat another.

References
----------
Salimans et al. 2016, "Improved Techniques for Training GANs", arXiv:1606.03498 (the score); Barratt and Sharma 2018, "A Note on the Inception
Score", arXiv:1801.01973 (what it cannot see).
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, xlogy

from cellbridge.metrics.intervals import Blocks, Estimate, bootstrap
from cellbridge.metrics.mmd import squared_distances
from cellbridge.metrics.moments import Rows, float_rows


def classifier_score(
    logits: NDArray[np.floating[Any]], *, blocks: Blocks | None = None, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate exp E_x KL(p(y|x) ‖ p(y)): 1 where all images look alike to the classifier, K where they fall into its K conditions.

    The Inception score, with a classifier that tells the conditions apart in place of one that has never seen a cell. It means something
    only over images of many conditions, and beside the same score of real cells of the same conditions, n each.

    Parameters
    ----------
    logits : (n, condition).
    blocks : the cells that are drawn together; without them there is no interval.

    References
    ----------
    Salimans et al. 2016, arXiv:1606.03498, sec. 4.
    """
    log_p = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
    p = np.exp(log_p)
    table = np.concatenate([p, (p * log_p).sum(axis=1, keepdims=True)], axis=1)

    def score(means: NDArray[np.float64]) -> NDArray[np.float64]:
        marginal = means[:, :-1]
        return np.asarray(np.exp(means[:, -1] - xlogy(marginal, marginal).sum(axis=1)))

    alone = Blocks(np.zeros(len(table), dtype=np.int64), "none (no blocks given)")
    return bootstrap(table, score, blocks or alone, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Repeats:
    """Rows that repeat another.

    Parameters
    ----------
    share : of the rows that have a copy among the others.
    distinct : rows that are left when each is counted once.
    most : how often the commonest row occurs.
    """

    share: float
    distinct: int
    most: int
    n: int


def repeats(rows: NDArray[Any], *, tolerance: float = 1e-5) -> Repeats:
    """Find copies among images, also flipped and turned ones, or among feature vectors.

    Folders that were padded with copies to reach some n have a smaller kernel estimate of themselves and a larger distance to anything
    else; n then means nothing.

    Parameters
    ----------
    rows : images (n, channel, height, width), compared bit by bit under the eight flips and quarter turns; or features (n, feature).
    tolerance : of features: copies are rows nearer than this share of the root mean square distance between two rows, since extractors
        round differently in batches of other sizes.
    """
    array = np.asarray(rows)
    if array.ndim == 4:
        counts = Counter(_fingerprint(image) for image in array)
        sizes = np.array(list(counts.values()), dtype=np.int64)
    elif array.ndim == 2:
        sizes = _clusters(array, tolerance=tolerance)
    else:
        raise ValueError(
            f"rows of shape {array.shape}: expected images (n, channel, height, width) or features (n, feature)"
        )
    if len(array) == 0:
        raise ValueError("no rows: there is nothing that could repeat")
    return Repeats(float(sizes[sizes > 1].sum() / len(array)), len(sizes), int(sizes.max()), len(array))


def duplicates(rows: NDArray[Any]) -> float:
    """Return the share of rows, images or features, that repeat another; see `repeats`."""
    return repeats(rows).share


def _fingerprint(image: NDArray[Any]) -> bytes:
    """Return a hash that an image (channel, height, width) shares with its flips and quarter turns, and with nothing else."""
    image = image + np.zeros((), image.dtype)  # of the two zeros of a float, one
    turned = [np.rot90(image, quarter, axes=(1, 2)) for quarter in range(4)]
    views = [view for each in turned for view in (each, each[:, :, ::-1])]
    return min(
        hashlib.sha256(np.ascontiguousarray(view).tobytes() + bytes(str(view.shape), "ascii")).digest()
        for view in views
    )


def _clusters(features: Rows, *, tolerance: float) -> NDArray[np.int64]:
    """Return the sizes of the groups of feature vectors that are copies of one another."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = float_rows(features)
    rows = rows - rows.mean(axis=0)
    limit = 2 * tolerance**2 * (rows**2).sum(axis=1).mean()  # E|x - y|² = 2 E|x - mean|²
    pairs = [
        np.argwhere(squared_distances(rows[start : start + 2048], rows) <= limit) + [start, 0]
        for start in range(0, len(rows), 2048)
    ]
    near = np.concatenate(pairs)
    graph = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(rows), len(rows)))
    return np.bincount(connected_components(graph, directed=False)[1])
