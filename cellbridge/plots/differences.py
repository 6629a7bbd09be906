"""What a translation changed: signed differences to the source, stain by stain, on one scale."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from cellbridge.plots.canvas import INK, MUTED, new_axes, quiet
from cellbridge.plots.composite import scale_bar, stain_colour

Floats = NDArray[np.floating]

COLOURS = "RdBu_r"
"""Blue is darker than the source, red brighter, white unchanged."""
_GAP_PX = 2
_SPACE_PX = 6
"""Between the blocks of two rows, in pixels of a 32 px cell."""


def difference_limit(differences: Mapping[str, Floats], *, percentile: float = 99.5) -> float:
    """Return the one magnitude at which the colour scale of all differences ends: a percentile over all of them."""
    together = np.concatenate([np.abs(part).ravel() for part in differences.values()])
    return float(max(np.percentile(together, percentile), 1e-6))


def difference_maps(
    source: Floats,
    others: Mapping[str, Floats],
    channels: Sequence[str],
    *,
    limit: float | None = None,
    titles: Sequence[str] = (),
    pixel_um: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show others - source of the same cells: a block of rows per name, in it one row per stain, one column per cell.

    One scale for all blocks, stains and cells, symmetric around 0, so that nothing is made to look large by its own maximum. Under
    each row's name stands the mean of |difference|.

    Parameters
    ----------
    source : (n, channel, height, width) in [-1, 1].
    others : name → (n, channel, height, width), image i of the same cell as source i.
    limit : end of the colour scale; by default `difference_limit` of what is shown.
    """
    differences = {name: np.asarray(images, dtype=np.float64) - source for name, images in others.items()}
    limit = limit or difference_limit(differences)
    size, (n, stains) = source.shape[-1], source.shape[:2]
    pitch, space = size + _GAP_PX, round(_SPACE_PX * size / 32)
    block = stains * pitch - _GAP_PX + space
    canvas = np.ones((len(others) * block - space, n * pitch - _GAP_PX, 3))
    ax = ax or new_axes(0.74 * n + 2.6, 0.74 * (len(others) * stains) + 0.3)
    for row, (name, values) in enumerate(differences.items()):
        top = row * block
        ax.text(-0.62 * size, top + (block - space) / 2, name, ha="right", va="center", fontsize=8, color=INK)
        for channel, stain in enumerate(channels):
            y = top + channel * pitch
            for column in range(n):
                canvas[y : y + size, column * pitch : column * pitch + size] = _coloured(values[column, channel], limit)
            colour = tuple(stain_colour(stain, position=channel) * 0.85)
            ax.text(-2, y + 0.46 * size, stain, ha="right", va="bottom", fontsize=6, color=colour)
            mean = f"{np.abs(values[:, channel]).mean():.3f}"
            ax.text(-2, y + 0.54 * size, mean, ha="right", va="top", fontsize=5.5, color=MUTED)
    _finish(ax, canvas, limit=limit)
    for column, title in enumerate(titles[:n]):
        short = title if len(title) <= 11 else f"…{title[-9:]}"
        ax.text(column * pitch + size / 2, -2, short, ha="center", va="bottom", fontsize=5.5, color=MUTED)
    scale_bar(ax, pixel_um=pixel_um, width_px=size, bottom=size - 0.5)
    return ax


def matrix(
    values: Floats,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str = "",
    column_title: str = "",
    digits: int = 2,
    ax: Axes | None = None,
) -> Axes:
    """Show a matrix with its numbers in the cells: shares from white at 0, signed values around a white 0.

    Parameters
    ----------
    values : (row, column); NaN where nothing was computed, shown as –.
    """
    ax = ax or new_axes(0.62 * len(columns) + 1.6, 0.42 * len(rows) + 1.0)
    finite = values[np.isfinite(values)]
    top = max(float(np.abs(finite).max()) if finite.size else 1.0, 1e-9)
    signed = bool((finite < 0).any())
    colours, low = (COLOURS, -top) if signed else ("Blues", 0.0)
    ax.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=top, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        strong = np.isfinite(value) and abs(value) > 0.6 * top
        text = f"{value:.{digits}f}".replace("-", "−") if np.isfinite(value) else "–"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if strong else INK)
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xlabel(column_title, fontsize=8)
    ax.set_ylabel(row_title, fontsize=8)
    quiet(ax).tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _coloured(values: Floats, limit: float) -> Floats:
    return np.asarray(colormaps[COLOURS](0.5 + 0.5 * np.clip(values / limit, -1, 1)))[..., :3]


def _finish(ax: Axes, canvas: Floats, *, limit: float) -> None:
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()
    scale = ScalarMappable(Normalize(-limit, limit), colormaps[COLOURS])
    figure = ax.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(scale, ax=ax, fraction=0.025, pad=0.02, aspect=30, ticks=[-limit, 0, limit])
    bar.ax.set_yticklabels([f"−{limit:.2f}", "0", f"+{limit:.2f}"], fontsize=6, color=MUTED)
    bar.outline.set_visible(False)
