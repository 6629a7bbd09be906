"""Plates seen from above, and how the counts of a stain are distributed."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cellbridge.plots.canvas import INK, MUTED, SERIES, new_axes, quiet

Floats = NDArray[np.floating]

COLOURS = "viridis"
_NO_WELL = "#eceef2"
_NO_COLUMNS = 3


def plate_map(
    values: Floats, *, title: str = "", marked: NDArray[np.bool_] | None = None, ax: Axes | None = None
) -> Axes:
    """Show one value per well in the plate's layout; wells without one are grey.

    Parameters
    ----------
    values : (row, column), NaN where there is no well.
    marked : (row, column), wells that get a dot, such as controls.
    """
    rows, columns = values.shape
    ax = ax or new_axes(0.6 + 4.6 * max(1.0, columns / 24), 0.6 + 3.0 * max(1.0, rows / 16))
    ax.set_facecolor(_NO_WELL)
    drawn = ax.imshow(np.ma.masked_invalid(values), cmap=COLOURS, interpolation="nearest", aspect="equal")
    step = 1 if columns <= 12 else 2 if columns <= 24 else 4
    ax.set_xticks(range(0, columns, step), [str(column + 1) for column in range(0, columns, step)], fontsize=6)
    ax.set_yticks(range(0, rows, step), [row_letters(row) for row in range(0, rows, step)], fontsize=6)
    ax.tick_params(length=0, colors=MUTED)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if marked is not None and marked.any():
        y, x = np.nonzero(marked)
        ax.scatter(x, y, s=max(2.0, 60 / columns), color="white", edgecolors=INK, linewidths=0.4)
    ax.set_title(plain(title), fontsize=8, color=INK)
    figure = ax.get_figure(root=True)
    assert figure is not None
    if np.isfinite(values).any():
        bar = figure.colorbar(drawn, ax=ax, shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=6, colors=MUTED, length=2)
        bar.outline.set_visible(False)
    return ax


def plate_maps(
    maps: Mapping[str, Floats],
    *,
    title: str,
    marked: NDArray[np.bool_] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Show several values of one plate side by side, each on its own scale.

    Parameters
    ----------
    maps : title → (row, column).
    axes : one per map; by default those of a new figure.
    """
    if axes is None:
        columns = min(_NO_COLUMNS, len(maps))
        lines = -(-len(maps) // columns)
        figure = Figure(figsize=(3.6 * columns, 2.5 * lines + 0.3), layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
        figure.suptitle(plain(title), fontsize=9, color=INK)
        for spare in axes[len(maps) :]:
            spare.set_axis_off()
    drawn = [
        plate_map(values, title=name, marked=marked, ax=ax)
        for (name, values), ax in zip(maps.items(), axes, strict=False)
    ]
    return drawn


def histogram(
    edges: Floats,
    groups: Mapping[str, Floats],
    *,
    title: str = "",
    full_scale: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot how often counts occur, one line per group, each as a density over the logarithm of the count, so that areas are one.

    Parameters
    ----------
    edges : (bin + 1,), where bins begin; the first may be 0.
    groups : name → (bin,), how many pixels.
    full_scale : the camera's largest count, which is marked.
    """
    ax = ax or new_axes(3.4, 2.2)
    shown = np.maximum(edges.astype(np.float64), 0.5)
    widths = np.diff(np.log10(shown))
    for colour, (name, counts) in zip(SERIES, groups.items(), strict=False):
        if counts.sum():
            density = counts / counts.sum() / widths
            ax.stairs(density, shown, color=colour, linewidth=1.3, label=f"{plain(name)} ({int(counts.sum()):,} px)")
    ax.set_xscale("log")
    taken = np.flatnonzero(sum(groups.values(), np.zeros(len(widths))))
    if len(taken):
        ax.set_xlim(shown[taken[0]] / 1.5, 1.3 * max(shown[taken[-1] + 1], full_scale or 0))
    if full_scale is not None:
        ax.axvline(full_scale, color=MUTED, linewidth=0.8, linestyle=":")
    ax.set_xlabel("count", fontsize=8)
    ax.set_ylabel("density per decade", fontsize=8)
    ax.set_title(plain(title), fontsize=8, color=INK)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=6, labelcolor=INK)
    return quiet(ax)


def row_letters(row: int) -> str:
    """Return the letters of a row counted from 0: A … Z, AA … AF."""
    return chr(65 + row) if row < 26 else "A" + chr(65 + row - 26)


def plain(text: str) -> str:
    """Return a text that is drawn as it is: between two $ matplotlib would set mathematics."""
    return text.replace("$", r"\$")
