"""Many cells side by side: rows of conditions, triptychs of one cell, and one cell stain by stain."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellbridge.plots.canvas import INK, MUTED, new_axes
from cellbridge.plots.composite import composite, legend, scale_bar, stain_colour, value_range

Floats = NDArray[np.floating]

_GAP_PX = 2
_TEXT_PX = 7
"""Height of a line of text under a picture, in image pixels of a 32 px cell."""


def montage(
    rows: Mapping[str, Floats],
    channels: Sequence[str],
    limits: NDArray[np.float64],
    *,
    pixel_um: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show one row of cells per name, with `min / mean / max` of the row beside it.

    Parameters
    ----------
    rows : name → (n, channel, height, width); names stand at the left.
    limits : (channel, 2), the same for all: `composite.contrast_limits` of real cells.
    """
    size = next(iter(rows.values())).shape[-1]
    columns = max(len(images) for images in rows.values())
    pitch = size + _GAP_PX
    canvas = np.ones((len(rows) * pitch - _GAP_PX, columns * pitch - _GAP_PX, 3))
    ax = ax or new_axes(0.62 * columns + 1.7, 0.62 * len(rows) + 0.35)
    for index, (name, images) in enumerate(rows.items()):
        _paste(canvas, composite(images, channels, limits), top=index * pitch, pitch=pitch)
        middle = index * pitch + size / 2
        ax.text(-3, middle - 0.06 * size, name, ha="right", va="bottom", fontsize=8, color=INK)
        ax.text(-3, middle + 0.06 * size, value_range(images), ha="right", va="top", fontsize=6, color=MUTED)
    _finish(ax, canvas, channels)
    scale_bar(ax, pixel_um=pixel_um, width_px=size, bottom=size - 0.5)
    return ax


def triptychs(
    rows: Mapping[str, Floats],
    channels: Sequence[str],
    limits: NDArray[np.float64],
    *,
    titles: Sequence[str] = (),
    pixel_um: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show the same cells in every row (source, translated, counterfactual …), `min / mean / max` under each picture.

    Parameters
    ----------
    rows : name → (n, channel, height, width); column i is one cell.
    titles : one per column, such as the cell's id; of a long one the end is shown.
    """
    size = next(iter(rows.values())).shape[-1]
    columns = max(len(images) for images in rows.values())
    text = round(_TEXT_PX * size / 32)
    pitch, step = size + _GAP_PX, size + text
    canvas = np.ones((len(rows) * step, columns * pitch - _GAP_PX, 3))
    ax = ax or new_axes(1.05 * columns + 1.2, 1.22 * len(rows) + 0.45)
    for index, (name, images) in enumerate(rows.items()):
        _paste(canvas, composite(images, channels, limits), top=index * step, pitch=pitch)
        ax.text(-3, index * step + size / 2, name, ha="right", va="center", fontsize=8, color=INK)
        for column, image in enumerate(images):
            x = column * pitch + size / 2
            ax.text(x, index * step + size + 0.5, value_range(image), ha="center", va="top", fontsize=5.2, color=MUTED)
    _finish(ax, canvas, channels)
    for column, title in enumerate(titles):
        short = title if len(title) <= 14 else f"…{title[-12:]}"
        ax.text(column * pitch + size / 2, -2, short, ha="center", va="bottom", fontsize=6, color=MUTED)
    scale_bar(ax, pixel_um=pixel_um, width_px=size, bottom=size - 0.5)
    return ax


def stains(
    rows: Mapping[str, Floats],
    channels: Sequence[str],
    limits: NDArray[np.float64],
    *,
    pixel_um: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show one cell per row, every stain by itself in its colour and all together in the last column.

    Parameters
    ----------
    rows : name → (channel, height, width).
    """
    size = next(iter(rows.values())).shape[-1]
    text = round(_TEXT_PX * size / 32)
    pitch, step = size + _GAP_PX, size + text
    columns = len(channels) + 1
    canvas = np.ones((len(rows) * step, columns * pitch - _GAP_PX, 3))
    ax = ax or new_axes(1.05 * columns + 1.2, 1.22 * len(rows) + 0.4)
    for index, (name, image) in enumerate(rows.items()):
        single = [composite(image[[c]], [channels[c]], limits[[c]]) for c in range(len(channels))]
        _paste(canvas, np.stack([*single, composite(image, channels, limits)]), top=index * step, pitch=pitch)
        ax.text(-3, index * step + size / 2, name, ha="right", va="center", fontsize=8, color=INK)
        for column in range(len(channels)):
            x = column * pitch + size / 2
            ax.text(
                x,
                index * step + size + 0.5,
                value_range(image[column]),
                ha="center",
                va="top",
                fontsize=5.2,
                color=MUTED,
            )
    _finish(ax, canvas, ())
    for column, channel in enumerate(channels):
        colour = tuple(stain_colour(channel, position=column) * 0.85)
        ax.text(column * pitch + size / 2, -2, channel, ha="center", va="bottom", fontsize=8, color=colour)
    scale_bar(ax, pixel_um=pixel_um, width_px=size, bottom=size - 0.5)
    return ax


def _paste(canvas: Floats, pictures: Floats, *, top: int, pitch: int) -> None:
    size = pictures.shape[1]
    for column, picture in enumerate(pictures):
        canvas[top : top + size, column * pitch : column * pitch + size] = picture


def _finish(ax: Axes, canvas: Floats, channels: Sequence[str]) -> None:
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()
    legend(ax, channels)
