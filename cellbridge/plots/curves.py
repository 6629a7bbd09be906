"""Curves over training steps."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellbridge.plots.canvas import INK, SERIES, new_axes, quiet

Floats = NDArray[np.floating]


def loss_curve(
    steps: Floats, values: Floats, *, label: str, colour: str = SERIES[0], ylabel: str = "loss", ax: Axes | None = None
) -> Axes:
    """Plot values over steps on a logarithmic scale: what was logged, faintly, and its running mean over a twentieth of the run."""
    ax = ax or new_axes(5.2, 2.5)
    ax.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    ax.plot(steps, running_mean(values, window=max(1, len(values) // 20)), color=colour, linewidth=1.6, label=label)
    ax.set_yscale("log")
    ax.set_xlabel("step", fontsize=8)
    ax.set_ylabel(ylabel, fontsize=8)
    ax.legend(frameon=False, fontsize=7, labelcolor=INK)
    return quiet(ax)


def band_curves(
    bands: Sequence[tuple[Floats, Floats]], *, labels: Sequence[str], title: str, ylabel: str, ax: Axes | None = None
) -> Axes:
    """Plot the running mean of ordered bands, such as timestep deciles, in colours that go from dark to bright.

    Parameters
    ----------
    bands : (steps, values) of each, in order.
    title : what the labels say, over the legend.
    """
    ax = ax or new_axes(5.2, 2.5)
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, max(2, len(bands))))
    for (steps, values), label, colour in zip(bands, labels, shades, strict=False):
        smooth = running_mean(values, window=max(1, len(values) // 20))
        ax.plot(steps, smooth, color=colour, linewidth=1.1, label=label)
    ax.set_xlabel("step", fontsize=8)
    ax.set_ylabel(ylabel, fontsize=8)
    legend = ax.legend(frameon=False, fontsize=6, labelcolor=INK, title=title, title_fontsize=6, loc="center left")
    legend.set_bbox_to_anchor((1.0, 0.5))  # beside the curves, which fill the axes
    return quiet(ax)


def running_mean(values: Floats, *, window: int) -> NDArray[np.float64]:
    """Return the mean of each value and up to `window` - 1 before it."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(0, stop - window)
    return np.asarray((total[stop] - total[start]) / (stop - start))
