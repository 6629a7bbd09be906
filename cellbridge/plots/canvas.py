"""Axes to draw on, without the global figure that pyplot keeps."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f2430"
"""Text and lines."""
MUTED = "#6b7280"
"""Secondary text, ticks, reference lines."""
SERIES = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")
"""Lines of one plot, in order."""


def new_axes(width: float, height: float) -> Axes:
    """Return the only Axes of a new figure of that size in inches; the figure is at `axes.figure`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure.add_subplot()


def new_column(width: float, heights: Sequence[float]) -> list[Axes]:
    """Return Axes one above another, with one x axis, in a new figure; sizes in inches."""
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    return list(axes[:, 0])


def quiet(axes: Axes) -> Axes:
    """Leave of the frame what carries information: the left and the lower spine."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(which="both", colors=MUTED, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return axes
