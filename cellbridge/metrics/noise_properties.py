"""The properties that N(0, I) has, each with its p-value in closed form and the size of the deviation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, kstest, norm

from cellbridge.metrics.spectrum import band_energy, low_modes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Property:
    """A property of x_T and its p-value; `per_image` (image, value) and `statistic` rebuild the effect from means, for the bootstrap."""

    name: str
    meaning: str
    p: float
    effect: float
    gate: tuple[float, float] | None
    per_image: Floats | None = None
    statistic: Callable[[Floats], Floats] | None = None


def _two_sided(cdf: float) -> float:
    return float(2 * min(cdf, 1 - cdf))


def variance(x: Floats) -> Property:
    """Σ x² ~ chi²(N d)."""
    energy = (x**2).reshape(len(x), -1)
    p = _two_sided(chi2.cdf(energy.sum(), energy.size))
    per_image = energy.mean(axis=1, keepdims=True)
    return Property(
        "variance",
        "variance of all pixels",
        p,
        float(energy.mean()),
        (0.98, 1.02),
        per_image,
        lambda means: means[:, 0],
    )


def scale_spread(x: Floats) -> Property:
    """F_chi²(d)(|x_i|²) ~ U(0, 1); effect: standard deviation of the images' scales beyond what chance gives, sqrt(var(|x_i|²/d) - 2/d) / 2."""
    norms = (x**2).reshape(len(x), -1).sum(axis=1)
    size = x[0].size
    p = float(kstest(chi2.cdf(norms, size), "uniform").pvalue)
    ratios = norms / size
    spread = float(np.sqrt(max(0.0, ratios.var(ddof=1) - 2 / size)) / 2)
    per_image = np.stack([ratios, ratios**2], axis=1)

    def rebuilt(means: Floats) -> Floats:
        return np.asarray(np.sqrt(np.maximum(0, means[:, 1] - means[:, 0] ** 2 - 2 / size)) / 2)

    return Property("scale per image", "spread of the images' scales", p, spread, (0.0, 0.02), per_image, rebuilt)


def shared_mean(x: Floats) -> Property:
    """N |mean image|² ~ chi²(d), and on the low modes ~ chi²(modes); the smaller p counts twice. Effect: rms of the mean beyond chance."""
    n, mean = len(x), x.mean(axis=0)
    low = low_modes(mean[None])[0]
    p_full = float(chi2.sf(n * (mean**2).sum(), mean.size))
    p_low = float(chi2.sf(n * (low**2).sum(), low.size))
    effect = float(np.sqrt(max(0.0, (mean**2).mean() - 1 / n)))
    return Property("shared mean", "rms of the image that all share", min(1.0, 2 * min(p_full, p_low)), effect, None)


def low_frequencies(x: Floats) -> Property:
    """Energy of the low modes ~ chi²(modes · N); effect: its ratio to that of white noise."""
    energy = (low_modes(x) ** 2).reshape(len(x), -1)
    p = _two_sided(chi2.cdf(energy.sum(), energy.size))
    per_image = energy.mean(axis=1, keepdims=True)
    return Property(
        "low frequencies",
        "their power, white noise: 1",
        p,
        float(energy.mean()),
        (0.95, 1.05),
        per_image,
        lambda means: means[:, 0],
    )


def kurtosis(x: Floats) -> Property:
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

    def excess(means: Floats) -> Floats:
        first, second, third, fourth = means.T
        variance = second - first**2
        return np.asarray((fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4) / variance**2 - 3)

    effect = float(excess(moments.mean(axis=0, keepdims=True))[0])
    p = float(2 * norm.sf(abs(effect) / np.sqrt(24 / x.size)))
    return Property("kurtosis", "excess kurtosis of all pixels", p, effect, (-0.05, 0.05), moments, excess)


def channel_correlation(x: Floats) -> Property:
    """N P Σ_{c<c'} r² ~ chi²(C (C - 1) / 2); effect: the correlation that is largest in size."""
    channels = x.shape[1]
    flat = x.reshape(len(x), channels, -1)
    upper = np.triu_indices(channels, 1)
    products = np.einsum("ncp,ndp->ncd", flat, flat) / flat.shape[2]
    means = flat.mean(axis=2)
    table = np.concatenate([products.reshape(len(x), -1), means], axis=1)

    def correlations(draws: Floats) -> Floats:
        mean = draws[:, channels**2 :]
        covariance = draws[:, : channels**2].reshape(-1, channels, channels) - mean[:, :, None] * mean[:, None, :]
        deviation = np.sqrt(np.einsum("bcc->bc", covariance))
        return np.asarray((covariance / (deviation[:, :, None] * deviation[:, None, :]))[:, upper[0], upper[1]])

    r = correlations(table.mean(axis=0, keepdims=True))[0]
    p = float(chi2.sf(len(x) * flat.shape[2] * (r**2).sum(), len(r)))
    largest = int(np.abs(r).argmax())
    return Property(
        "channel correlation",
        "largest between two channels",
        p,
        float(r[largest]),
        (-0.02, 0.02),
        table,
        lambda draws: correlations(draws)[:, largest],
    )


def foreground_and_background(x: Floats, foreground: NDArray[np.bool_]) -> list[Property]:
    """log(var_b / var_f) / sqrt(2/n_b + 2/n_f) ~ N(0, 1), and each region's Σ x² ~ chi²(its pixels)."""
    inside = np.broadcast_to(foreground[:, None], x.shape)
    energy = {
        name: (x**2 * part).sum(axis=(1, 2, 3)) for name, part in (("background", ~inside), ("foreground", inside))
    }
    pixels = {"background": (~inside).sum(axis=(1, 2, 3)), "foreground": inside.sum(axis=(1, 2, 3))}
    per_image = np.stack(
        [energy["background"], pixels["background"], energy["foreground"], pixels["foreground"]], axis=1
    )

    def contrast(means: Floats) -> Floats:
        return np.asarray(means[:, 0] / means[:, 1] * means[:, 3] / means[:, 2])

    effect = float(contrast(per_image.mean(axis=0, keepdims=True))[0])
    deviation = np.sqrt(2 / pixels["background"].sum() + 2 / pixels["foreground"].sum())
    p = float(2 * norm.sf(abs(np.log(effect)) / deviation))
    found = [Property("background / foreground", "ratio of variances", p, effect, (0.98, 1.02), per_image, contrast)]
    for name, part in energy.items():
        total, size = part.sum(), pixels[name].sum()
        table = np.stack([part, pixels[name]], axis=1)
        found.append(
            Property(
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


def correlation_with_source(x: Floats, x_0: Floats) -> Property:
    """<x_T, c> / |c| ~ N(0, 1) given c = x_0 minus its channels' means; effect: the correlation.

    The null is noise that was drawn independently of x_0. Noise that x_0 was inverted to is not: x_0 is a function of it, and where data
    are Gaussian the flow x_T = (x_0 - mean) / std correlates fully, white as it is. So no effect is harmful in itself, and there is no
    gate: what is beyond the correlation of generated images with the noise that they are inverted to is the model's misfit.
    """
    centred = x_0 - x_0.mean(axis=(0, 2, 3), keepdims=True)
    z = float((x * centred).sum() / np.sqrt((centred**2).sum()))
    sums = np.stack(
        [(x * centred).mean(axis=(1, 2, 3)), (centred**2).mean(axis=(1, 2, 3)), (x**2).mean(axis=(1, 2, 3))], axis=1
    )

    def correlation(means: Floats) -> Floats:
        return np.asarray(means[:, 0] / np.sqrt(means[:, 1] * means[:, 2]))

    effect = float(correlation(sums.mean(axis=0, keepdims=True))[0])
    return Property(
        "correlation with x_0",
        "of x_T with the source image",
        float(2 * norm.sf(abs(z))),
        effect,
        None,
        sums,
        correlation,
    )


def radial_bands(x: Floats) -> Property:
    """Energy of each radial band of frequencies ~ chi²(its frequencies · channels · images), independent over bands.

    p is the smallest of all bands' two-sided ones, by Šidák; effect: the power of the band that deviates most in its own standard errors.
    """
    energy, frequencies = band_energy(x)
    degrees = frequencies * len(x) * x.shape[1]
    total = energy.sum(axis=0)
    p = 2 * np.minimum(chi2.cdf(total, degrees), chi2.sf(total, degrees))
    worst = int((np.abs(total / degrees - 1) * np.sqrt(degrees)).argmax())
    power = energy / (frequencies * x.shape[1])
    return Property(
        "radial spectrum",
        f"power of the band that deviates most, {worst + 1} of {len(p)} from low to high; white noise: 1",
        float(1 - (1 - min(p.min(), 1.0)) ** len(p)) if p.min() > 1e-12 else float(len(p) * p.min()),
        float(power[:, worst].mean()),
        (0.95, 1.05),
        power,
        lambda means: means[:, worst],
    )
