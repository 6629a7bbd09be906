"""Noise as it is: spectrum and quantiles of x_T beside those of white noise."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import norm

from cellbridge.plots.canvas import INK, MUTED, SERIES, new_axes, quiet

Floats = NDArray[np.floating]


def spectrum(
    frequency: Floats,
    power: Floats,
    error: Floats,
    *,
    label: str = "x_T",
    colour: str = SERIES[0],
    ax: Axes | None = None,
) -> Axes:
    """Plot power against radial frequency beside white noise, whose band is ± 2 standard errors around 1.

    Parameters
    ----------
    frequency, power, error : as `metrics.gaussianity.radial_spectrum` gives them.
    """
    first = ax is None
    ax = ax or new_axes(4.0, 2.7)
    if first:
        ax.fill_between(
            frequency, 1 - 2 * error, 1 + 2 * error, color=MUTED, alpha=0.25, linewidth=0, label="white noise, ± 2 s.e."
        )
        ax.axhline(1, color=MUTED, linewidth=0.8)
        ax.set_xlabel("radial frequency (cycles / px)", fontsize=8)
        ax.set_ylabel("power (white noise: 1)", fontsize=8)
        quiet(ax)
    ax.plot(frequency, power, marker="o", markersize=3, linewidth=1.4, color=colour, label=label)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.9), max(high, 1.1))
    ax.legend(frameon=False, fontsize=7, labelcolor=INK)
    return ax


def quantiles(
    x: Floats, *, label: str = "x_T", colour: str = SERIES[0], points: int = 201, ax: Axes | None = None
) -> Axes:
    """Plot the quantiles of all values of `x` against the standard normal's; the diagonal is N(0, 1)."""
    first = ax is None
    ax = ax or new_axes(2.9, 2.7)
    share = norm.cdf(np.linspace(-4, 4, points))
    expected = norm.ppf(share)
    if first:
        ax.plot([-4, 4], [-4, 4], color=MUTED, linewidth=0.8, label="N(0, 1)")
        ax.set_xlabel("normal quantile", fontsize=8)
        ax.set_ylabel("quantile of x_T", fontsize=8)
        quiet(ax)
    ax.plot(expected, np.quantile(x, share), linewidth=1.4, color=colour, label=label)
    ax.legend(frameon=False, fontsize=7, labelcolor=INK)
    return ax
