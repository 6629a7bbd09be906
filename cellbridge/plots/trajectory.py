"""Cells on their way: a strip with a row for each cell, and the same cells as one moving picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray

from cellbridge.plots.canvas import INK, MUTED, new_axes
from cellbridge.plots.composite import composite, legend, scale_bar

Floats = NDArray[np.floating]

_GAP_PX = 2
_TEXT_SHARE = 0.2
"""Height of the line of times above a row, as a share of a picture's."""
_DPI = 100


@dataclass(frozen=True)
class Way:
    """Frames of some cells.

    Parameters
    ----------
    times : (frame,), from 0 at the source to 1 at the target.
    images : (cell, frame, channel, height, width).
    """

    times: Sequence[float]
    images: Floats


def strip(
    ways: Mapping[str, Way],
    channels: Sequence[str],
    limits: NDArray[np.float64],
    *,
    titles: Sequence[str] = (),
    pixel_um: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show each cell's way as a row, from left to right, with the time above each picture.

    Parameters
    ----------
    ways : target → frames.
    limits : (channel, 2), the same for all: `composite.contrast_limits` of real cells.
    titles : one per cell; of a long one the end is shown.
    """
    rows = [(name, way.times, cell, number) for name, way in ways.items() for number, cell in enumerate(way.images)]
    size = rows[0][2].shape[-1]
    text = round(_TEXT_SHARE * size)
    canvas = _grid([composite(cell, channels, limits) for _, _, cell, _ in rows], above=text)
    ax = ax or new_axes(0.9 * canvas.shape[1] / size + 1.6, 0.9 * canvas.shape[0] / size + 0.3)
    for row, (name, times, _, number) in enumerate(rows):
        top = row * (size + text + _GAP_PX) + text
        title = titles[number] if number < len(titles) else ""
        label = f"{name}\n{title if len(title) <= 16 else '…' + title[-14:]}".strip()
        ax.text(-3, top + size / 2, label, ha="right", va="center", fontsize=7, color=INK)
        for column, time in enumerate(times):
            middle = column * (size + _GAP_PX) + size / 2
            ax.text(middle, top - 1, f"{time:.2f}", ha="center", va="bottom", fontsize=6, color=MUTED)
    _finish(ax, canvas, channels, pixel_um=pixel_um, size=size, bottom=text + size)
    return ax


def moving(
    ways: Mapping[str, Way],
    channels: Sequence[str],
    limits: NDArray[np.float64],
    *,
    pixel_um: float | None = None,
) -> list[NDArray[np.uint8]]:
    """Return the pictures of an animation, frame by frame: the cells side by side, a row for each target with its time.

    A way of fewer frames than another waits at its end.

    Parameters
    ----------
    ways, limits : as of `strip`, of the same cells each.

    Returns
    -------
    one (height, width, 3) per frame.
    """
    colours = {name: composite(way.images, channels, limits) for name, way in ways.items()}
    pictures = []
    for number in range(max(len(way.times) for way in ways.values())):
        now = {name: min(number, len(way.times) - 1) for name, way in ways.items()}
        canvas = _grid([images[:, now[name]] for name, images in colours.items()])
        size = next(iter(colours.values())).shape[2]
        ax = new_axes(0.9 * canvas.shape[1] / size + 1.4, 0.9 * canvas.shape[0] / size + 0.3)
        for row, (name, way) in enumerate(ways.items()):
            middle = row * (size + _GAP_PX) + size / 2
            label = f"{name}\n{way.times[now[name]]:.2f}"
            ax.text(-3, middle, label, ha="right", va="center", fontsize=8, color=INK)
        _finish(ax, canvas, channels, pixel_um=pixel_um, size=size, bottom=size)
        pictures.append(_pixels(ax))
    return pictures


def _grid(rows: Sequence[Floats], *, above: int = 0) -> Floats:
    """Return pictures (column, height, width, 3) of each row side by side on white, with room above each row."""
    size, columns = rows[0].shape[1], max(len(row) for row in rows)
    across, down = size + _GAP_PX, size + above + _GAP_PX
    canvas = np.ones((len(rows) * down - _GAP_PX, columns * across - _GAP_PX, 3))
    for row, pictures in enumerate(rows):
        top = row * down + above
        for column, picture in enumerate(pictures):
            canvas[top : top + size, column * across : column * across + size] = picture
    return canvas


def _finish(
    ax: Axes, canvas: Floats, channels: Sequence[str], *, pixel_um: float | None, size: int, bottom: int
) -> None:
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()
    legend(ax, channels)
    scale_bar(ax, pixel_um=pixel_um, width_px=size, bottom=bottom - 0.5)


def _pixels(ax: Axes) -> NDArray[np.uint8]:
    """Draw an Axes' figure, and return it as (height, width, 3)."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
