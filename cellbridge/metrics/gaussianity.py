"""Is x_T standard normal noise? A battery of tests whose null distributions are known in closed form, and their effect sizes.

With millions of pixels every p-value rejects in the end, so the gates are on effect sizes, with a bootstrap over wells; the p-values
stand beside them, Holm-corrected. Random projections and a Kolmogorov-Smirnov test over all pixels are left out: neither finds
what goes wrong in practice (a weak common factor, a low-frequency leak, another variance in the background).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.stats import chi2, kstest, norm

from cellbridge.metrics.intervals import Blocks, percentile_interval, resampled_means

LOW_MODES = 4
"""Low frequencies are the first 4 x 4 modes of the discrete cosine transform of each channel."""


@dataclass(frozen=True)
class Test:
    """One property of x_T: its p-value under N(0, I), and how large the deviation is.

    Parameters
    ----------
    effect : the size of the deviation in the units that `meaning` names.
    low, high : bootstrap interval of the effect (None where it has none).
    gate : the range of effects that is harmless; None where the effect is only described.
    """

    name: str
    meaning: str
    p: float
    p_holm: float
    effect: float
    low: float | None
    high: float | None
    gate: tuple[float, float] | None

    __test__ = False  # not a test case, whatever pytest takes the name for

    @property
    def state(self) -> Literal["inside", "outside", "unclear", "described"]:
        """Whether the effect is harmless; outside only where its whole interval is (or the effect, where it has none)."""
        if self.gate is None:
            return "described"
        low, high = (self.effect if end is None else end for end in (self.low, self.high))
        if high < self.gate[0] or low > self.gate[1]:
            return "outside"
        return "inside" if self.gate[0] <= self.effect <= self.gate[1] else "unclear"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "state": self.state}


def battery(
    x_T: NDArray[np.floating],
    *,
    x_0: NDArray[np.floating] | None = None,
    foreground: NDArray[np.bool_] | None = None,
    blocks: Blocks | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> list[Test]:
    """Test whether x_T (n, channel, height, width) is N(0, I), independent over images, pixels and channels and of x_0.

    Parameters
    ----------
    x_0 : the images that x_T was inverted from; without them its independence of x_0 is not tested.
    foreground : (n, height, width), true inside cells; without it foreground and background are not compared.
    blocks : the images that the bootstrap draws together; without them effects have no interval.

    Returns
    -------
    One `Test` per property, in a fixed order, with Holm's correction over all of them.

    Raises
    ------
    ValueError : fewer than two images, or x_T is not finite.
    """
    x = np.asarray(x_T, dtype=np.float64)
    if len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(
            f"x_T of {len(x)} image(s), finite: {bool(np.isfinite(x).all())}; two or more finite images are needed"
        )
    found = [_variance(x), _scale_spread(x), _shared_mean(x), _low_frequency(x), _kurtosis(x)]
    if x.shape[1] > 1:
        found.append(_channel_correlation(x))
    if foreground is not None and foreground.any() and not foreground.all():
        found += _foreground(x, np.asarray(foreground, dtype=bool))
    if x_0 is not None:
        found.append(_correlation_with_source(x, np.asarray(x_0, dtype=np.float64)))
    corrected = holm([part.p for part in found])
    tests = []
    for part, p_holm in zip(found, corrected, strict=True):
        low, high = _interval(part, blocks, resamples=resamples, seed=seed)
        tests.append(Test(part.name, part.meaning, part.p, p_holm, part.effect, low, high, part.gate))
    return tests


def holm(p_values: list[float]) -> list[float]:
    """Return Holm's step-down correction: the family-wise error rate holds under any dependence.

    References
    ----------
    Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6:65.
    """
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in corrected]


def radial_spectrum(
    x: NDArray[np.floating], *, bands: int = 12
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return radial frequency (cycles per pixel), mean power (white noise: 1) and the standard error that white noise has.

    Power is |FFT(x)|² / pixels, averaged over images, channels and the frequencies of a band; each is exponential with mean 1
    under N(0, I), and real images count every frequency twice. The constant term is left out.
    """
    height, width = x.shape[-2:]
    power = (np.abs(np.fft.fft2(np.asarray(x, dtype=np.float64))) ** 2 / (height * width)).mean(axis=(0, 1))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    edges = np.linspace(0, 0.5, bands + 1)
    band = np.digitize(radius, edges, right=True)
    frequency, mean, error = [], [], []
    for index in range(1, bands + 1):
        inside = band == index
        if inside.any():
            frequency.append(float(radius[inside].mean()))
            mean.append(float(power[inside].mean()))
            error.append(float(np.sqrt(2 / (inside.sum() * x.shape[0] * x.shape[1]))))
    return np.asarray(frequency), np.asarray(mean), np.asarray(error)


@dataclass(frozen=True)
class _Found:
    """A test before correction; `per_image` (image, value) and `statistic` rebuild the effect from means, for the bootstrap."""

    name: str
    meaning: str
    p: float
    effect: float
    gate: tuple[float, float] | None
    per_image: NDArray[np.float64] | None = None
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None


def _interval(part: _Found, blocks: Blocks | None, *, resamples: int, seed: int) -> tuple[float | None, float | None]:
    if blocks is None or part.per_image is None or part.statistic is None:
        return None, None
    draws = resampled_means(part.per_image, blocks, resamples=resamples, seed=seed)
    return (None, None) if draws is None else percentile_interval(part.statistic(draws))


def _two_sided(cdf: float) -> float:
    return float(2 * min(cdf, 1 - cdf))


def _variance(x: NDArray[np.float64]) -> _Found:
    """Σ x² ~ chi²(N d)."""
    energy = (x**2).reshape(len(x), -1)
    p = _two_sided(chi2.cdf(energy.sum(), energy.size))
    per_image = energy.mean(axis=1, keepdims=True)
    return _Found(
        "variance",
        "variance of all pixels",
        p,
        float(energy.mean()),
        (0.98, 1.02),
        per_image,
        lambda means: means[:, 0],
    )


def _scale_spread(x: NDArray[np.float64]) -> _Found:
    """F_chi²(d)(|x_i|²) ~ U(0, 1); effect: standard deviation of the images' scales beyond what chance gives, sqrt(var(|x_i|²/d) - 2/d) / 2."""
    norms = (x**2).reshape(len(x), -1).sum(axis=1)
    size = x[0].size
    p = float(kstest(chi2.cdf(norms, size), "uniform").pvalue)
    ratios = norms / size
    spread = float(np.sqrt(max(0.0, ratios.var(ddof=1) - 2 / size)) / 2)
    per_image = np.stack([ratios, ratios**2], axis=1)

    def rebuilt(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(np.maximum(0, means[:, 1] - means[:, 0] ** 2 - 2 / size)) / 2)

    return _Found("scale per image", "spread of the images' scales", p, spread, (0.0, 0.02), per_image, rebuilt)


def _shared_mean(x: NDArray[np.float64]) -> _Found:
    """N |mean image|² ~ chi²(d), and on the low modes ~ chi²(modes); the smaller p counts twice. Effect: rms of the mean beyond chance."""
    n, mean = len(x), x.mean(axis=0)
    low = _low_modes(mean[None])[0]
    p_full = float(chi2.sf(n * (mean**2).sum(), mean.size))
    p_low = float(chi2.sf(n * (low**2).sum(), low.size))
    effect = float(np.sqrt(max(0.0, (mean**2).mean() - 1 / n)))
    return _Found("shared mean", "rms of the image that all share", min(1.0, 2 * min(p_full, p_low)), effect, None)


def _low_frequency(x: NDArray[np.float64]) -> _Found:
    """Energy of the low modes ~ chi²(modes · N); effect: its ratio to that of white noise."""
    energy = (_low_modes(x) ** 2).reshape(len(x), -1)
    p = _two_sided(chi2.cdf(energy.sum(), energy.size))
    per_image = energy.mean(axis=1, keepdims=True)
    return _Found(
        "low frequencies",
        "their power, white noise: 1",
        p,
        float(energy.mean()),
        (0.95, 1.05),
        per_image,
        lambda means: means[:, 0],
    )


def _kurtosis(x: NDArray[np.float64]) -> _Found:
    """Excess kurtosis k; k / sqrt(24 / n) ~ N(0, 1)."""
    flat = x.reshape(len(x), -1)
    squares = flat * flat
    sums = [
        flat.sum(axis=1),
        squares.sum(axis=1),
        np.einsum("np,np->n", squares, flat),
        np.einsum("np,np->n", squares, squares),
    ]
    moments = np.stack(sums, axis=1) / flat.shape[1]

    def excess(means: NDArray[np.float64]) -> NDArray[np.float64]:
        first, second, third, fourth = means.T
        variance = second - first**2
        return np.asarray((fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4) / variance**2 - 3)

    effect = float(excess(moments.mean(axis=0, keepdims=True))[0])
    p = float(2 * norm.sf(abs(effect) / np.sqrt(24 / x.size)))
    return _Found("kurtosis", "excess kurtosis of all pixels", p, effect, (-0.05, 0.05), moments, excess)


def _channel_correlation(x: NDArray[np.float64]) -> _Found:
    """N P Σ_{c<c'} r² ~ chi²(C (C - 1) / 2); effect: the correlation that is largest in size."""
    channels = x.shape[1]
    flat = x.reshape(len(x), channels, -1)
    upper = np.triu_indices(channels, 1)
    products = np.einsum("ncp,ndp->ncd", flat, flat) / flat.shape[2]
    means = flat.mean(axis=2)
    table = np.concatenate([products.reshape(len(x), -1), means], axis=1)

    def correlations(draws: NDArray[np.float64]) -> NDArray[np.float64]:
        mean = draws[:, channels**2 :]
        covariance = draws[:, : channels**2].reshape(-1, channels, channels) - mean[:, :, None] * mean[:, None, :]
        deviation = np.sqrt(np.einsum("bcc->bc", covariance))
        return np.asarray((covariance / (deviation[:, :, None] * deviation[:, None, :]))[:, upper[0], upper[1]])

    r = correlations(table.mean(axis=0, keepdims=True))[0]
    p = float(chi2.sf(len(x) * flat.shape[2] * (r**2).sum(), len(r)))
    largest = int(np.abs(r).argmax())
    return _Found(
        "channel correlation",
        "largest between two channels",
        p,
        float(r[largest]),
        (-0.02, 0.02),
        table,
        lambda draws: correlations(draws)[:, largest],
    )


def _foreground(x: NDArray[np.float64], foreground: NDArray[np.bool_]) -> list[_Found]:
    """log(var_b / var_f) / sqrt(2/n_b + 2/n_f) ~ N(0, 1), and each region's Σ x² ~ chi²(its pixels)."""
    inside = np.broadcast_to(foreground[:, None], x.shape)
    energy = {
        name: (x**2 * part).sum(axis=(1, 2, 3)) for name, part in (("background", ~inside), ("foreground", inside))
    }
    pixels = {"background": (~inside).sum(axis=(1, 2, 3)), "foreground": inside.sum(axis=(1, 2, 3))}
    per_image = np.stack(
        [energy["background"], pixels["background"], energy["foreground"], pixels["foreground"]], axis=1
    )

    def contrast(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(means[:, 0] / means[:, 1] * means[:, 3] / means[:, 2])

    effect = float(contrast(per_image.mean(axis=0, keepdims=True))[0])
    deviation = np.sqrt(2 / pixels["background"].sum() + 2 / pixels["foreground"].sum())
    p = float(2 * norm.sf(abs(np.log(effect)) / deviation))
    found = [_Found("background / foreground", "ratio of variances", p, effect, (0.98, 1.02), per_image, contrast)]
    for name, part in energy.items():
        total, size = part.sum(), pixels[name].sum()
        table = np.stack([part, pixels[name]], axis=1)
        found.append(
            _Found(
                f"{name} variance",
                f"variance of {name} pixels",
                _two_sided(chi2.cdf(total, size)),
                float(total / size),
                (0.98, 1.02),
                table,
                lambda means: means[:, 0] / means[:, 1],
            )
        )
    return found


def _correlation_with_source(x: NDArray[np.float64], x_0: NDArray[np.float64]) -> _Found:
    """<x_T, c> / |c| ~ N(0, 1) given c = x_0 minus its channels' means; effect: the correlation."""
    centred = x_0 - x_0.mean(axis=(0, 2, 3), keepdims=True)
    z = float((x * centred).sum() / np.sqrt((centred**2).sum()))
    sums = np.stack(
        [(x * centred).mean(axis=(1, 2, 3)), (centred**2).mean(axis=(1, 2, 3)), (x**2).mean(axis=(1, 2, 3))], axis=1
    )

    def correlation(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(means[:, 0] / np.sqrt(means[:, 1] * means[:, 2]))

    effect = float(correlation(sums.mean(axis=0, keepdims=True))[0])
    return _Found(
        "correlation with x_0",
        "of x_T with the source image",
        float(2 * norm.sf(abs(z))),
        effect,
        (-0.01, 0.01),
        sums,
        correlation,
    )


def _low_modes(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(dctn(x, axes=(-2, -1), norm="ortho")[..., :LOW_MODES, :LOW_MODES])
