"""Can a classifier tell x_T from fresh noise? A two-sample test that needs no idea of what is wrong.

Logistic regression on what each image of noise shows: its low modes, means, the power of its bands, its moments and the correlation of
its channels, with the squares of the first two. Raw pixels would drown it: 20,480 weights for a few hundred images.

References
----------
Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests", arXiv:1610.06545.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from cellbridge.metrics.gaussianity import Test
from cellbridge.metrics.intervals import Blocks, percentile_interval, resampled_means
from cellbridge.metrics.spectrum import band_energy, low_modes

FEWEST = 20
"""Images below which nothing is learnt."""
_GATE = (0.0, 0.60)
Floats = NDArray[np.float64]


def noise_features(x_T: NDArray[np.floating], *, foreground: NDArray[np.bool_] | None = None) -> Floats:
    """Describe each image of noise by what may go wrong with it: (n, feature).

    Per channel the low modes and their squares, the log power of radial bands, skewness and kurtosis; the correlations of channels; and
    where the foreground is known, the log variances of both regions.
    """
    x = np.asarray(x_T, dtype=np.float64)
    n, channels = x.shape[:2]
    flat = x.reshape(n, channels, -1)
    modes = low_modes(x).reshape(n, -1)
    bands = np.concatenate([np.log(band_energy(x[:, [c]])[0] + 1e-12) for c in range(channels)], axis=1)
    centred = flat - flat.mean(axis=2, keepdims=True)
    deviation = centred.std(axis=2) + 1e-12
    squares = centred * centred
    moments = [
        (squares * centred).mean(axis=2) / deviation**3,
        (squares * squares).mean(axis=2) / deviation**4,
    ]
    upper = np.triu_indices(channels, 1)
    covariance = np.einsum("ncp,ndp->ncd", centred, centred) / flat.shape[2]
    correlation = (covariance / (deviation[:, :, None] * deviation[:, None, :]))[:, upper[0], upper[1]]
    parts = [modes, modes**2, np.log(deviation), bands, *moments, correlation]
    if foreground is not None:
        parts += [_log_variances(x, np.asarray(foreground, dtype=bool))]
    return np.concatenate(parts, axis=1)


def told_from_noise(
    x_T: NDArray[np.floating],
    *,
    foreground: NDArray[np.bool_] | None = None,
    blocks: Blocks | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Test | None:
    """Train on half of the wells and judge on the other half, both ways, as many images of fresh noise as of x_T.

    In each half the number of right answers is Bin(2 n, 1/2) at most as spread under N(0, I); the smaller p of both halves counts twice.

    Parameters
    ----------
    foreground : (n, height, width), true inside cells; fresh noise gets the same masks.
    blocks : images of one block lie in one half; without them, or with a single block, images are divided as they come.
    seed : of the fresh noise and of the halves.

    Returns
    -------
    The effect is the accuracy over all images (chance: 0.5), its interval a bootstrap over blocks; None below `FEWEST` images.
    """
    n = len(x_T)
    if n < FEWEST:
        return None
    rng = np.random.default_rng([seed, 11])
    fresh = rng.standard_normal(x_T.shape)
    features = [noise_features(x, foreground=foreground) for x in (x_T, fresh)]
    first = halves(blocks, n, rng)
    right = np.zeros((n, 1))
    p_values = []
    for test in (first, ~first):
        answers = _answers([part[~test] for part in features], [part[test] for part in features])
        right[test, 0] = answers.mean(axis=0)
        p_values.append(float(binom.sf(answers.sum() - 1, answers.size, 0.5)))
    p = min(1.0, 2 * min(p_values))
    draws = None if blocks is None else resampled_means(right, blocks, resamples=resamples, seed=seed)
    low, high = (None, None) if draws is None else percentile_interval(draws[:, 0])
    return Test("classifier", "share of images told from fresh noise", p, p, float(right.mean()), low, high, _GATE)


def _answers(train: list[Floats], test: list[Floats]) -> NDArray[np.bool_]:
    """Return whether each test image is recognised as x_T (row 0) or as fresh noise (row 1)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.repeat([1, 0], [len(part) for part in train])
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=200))
    model.fit(np.concatenate(train), labels)
    return np.stack([model.predict(part) == label for part, label in zip(test, (1, 0), strict=True)])


def halves(blocks: Blocks | None, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which images lie in the first half: whole blocks, drawn until it holds half of the images."""
    codes = np.arange(n) if blocks is None or blocks.count < 2 else np.asarray(blocks.codes)
    first = np.zeros(n, dtype=bool)
    for code in rng.permutation(np.unique(codes))[:-1]:
        if first.any() and first.sum() + (codes == code).sum() / 2 > n / 2:
            break
        first |= codes == code
    return first


def _log_variances(x: Floats, foreground: NDArray[np.bool_]) -> Floats:
    inside = foreground[:, None].astype(float)
    pixels = np.stack([inside.sum(axis=(1, 2, 3)), (1 - inside).sum(axis=(1, 2, 3))], axis=1) * x.shape[1]
    energy = np.stack([(x**2 * inside).sum(axis=(1, 2, 3)), (x**2 * (1 - inside)).sum(axis=(1, 2, 3))], axis=1)
    # An image without a background (or a cell) says nothing of it: the variance of noise stands in.
    return np.log(np.where(pixels > 0, energy / np.maximum(pixels, 1), 1.0) + 1e-12)
