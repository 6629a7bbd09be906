"""Cells in stain colours: the one place for colours, contrast limits and scale bars."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellbridge.plots.canvas import INK, new_axes

Floats = NDArray[np.floating]

STAIN_COLOURS = {
    "dna": (0.25, 0.45, 1.00),
    "er": (0.10, 0.85, 0.45),
    "rna": (1.00, 0.80, 0.10),
    "agp": (1.00, 0.40, 0.15),
    "mito": (0.95, 0.15, 0.65),
    "actin": (1.00, 0.30, 0.20),
    "tubulin": (0.15, 0.85, 0.35),
    "brightfield": (0.60, 0.60, 0.60),
}
"""Colour (red, green, blue) of each stain, by its lower-case name; other names of it stand in `_ALIASES`."""

_ALIASES = {
    "dapi": "dna",
    "hoechst": "dna",
    "nucleus": "dna",
    "f-actin": "actin",
    "phalloidin": "actin",
    "mitochondria": "mito",
    "beta-tubulin": "tubulin",
}
_OTHERS = ((0.10, 0.80, 0.90), (0.70, 0.50, 1.00), (0.75, 0.85, 0.20))


def stain_colour(channel: str, *, position: int = 0) -> NDArray[np.float64]:
    """Return the colour of a stain; one that has no name here takes a colour by its position among the channels."""
    name = channel.casefold()
    name = _ALIASES.get(name, name)
    return np.asarray(STAIN_COLOURS.get(name, _OTHERS[position % len(_OTHERS)]))


def contrast_limits(images: Floats, *, black: float = 2.0, white: float = 99.8) -> NDArray[np.float64]:
    """Return what is shown as black and as full colour in each channel, as percentiles of real reference images.

    One pair for all panels of a figure: limits taken from each image alone would hide the dimming that a compound causes.

    Parameters
    ----------
    images : (n, channel, height, width), real cells.

    Returns
    -------
    (channel, 2).
    """
    pixels = np.moveaxis(images, 1, 0).reshape(images.shape[1], -1)
    return np.asarray(np.percentile(pixels, [black, white], axis=1).T, dtype=np.float64)


def composite(images: Floats, channels: Sequence[str], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Blend the channels of images (…, channel, height, width) into colours (…, height, width, 3) in [0, 1].

    1 - Π_c (1 - v_c colour_c), v the channel between its limits: bright stains add up without clipping. More than three stains are
    dimmed a little, so that their sum keeps its hue.
    """
    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    shown = np.clip((images - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours = np.stack([stain_colour(channel, position=index) for index, channel in enumerate(channels)])
    shown = shown * min(1.0, (3 / len(channels)) ** 0.5)
    dark = 1 - shown[..., None] * colours[:, None, None, :]
    return np.asarray(1 - dark.prod(axis=-4))


def show_cell(
    image: Floats,
    channels: Sequence[str],
    limits: NDArray[np.float64],
    *,
    title: str | None = None,
    pixel_um: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show one cell (channel, height, width) in stain colours, with its range and a scale bar."""
    ax = ax or new_axes(2.2, 2.4)
    ax.imshow(composite(image, channels, limits), interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(f"{title}\n{value_range(image)}" if title else value_range(image), fontsize=8, color=INK)
    scale_bar(ax, pixel_um=pixel_um, width_px=image.shape[-1])
    return ax


def scale_bar(
    ax: Axes, *, pixel_um: float | None, width_px: int, left: float = 0.0, bottom: float | None = None
) -> None:
    """Draw a bar of a round length, about a third of an image wide; nothing where the pixel size is not known."""
    if pixel_um is None:
        return
    length_um = max((step for step in (1, 2, 5, 10, 20, 50, 100) if step <= width_px * pixel_um / 2.5), default=1)
    length_px = length_um / pixel_um
    bottom = float(ax.get_ylim()[0]) if bottom is None else bottom
    x, y = left + 0.06 * width_px, bottom - 0.08 * width_px
    ax.plot([x, x + length_px], [y, y], color="white", linewidth=2, solid_capstyle="butt")
    ax.text(
        x + length_px / 2, y - 0.03 * width_px, f"{length_um} µm", color="white", fontsize=6, ha="center", va="bottom"
    )


def value_range(image: Floats) -> str:
    """Return `min / mean / max` of an image, in its own units; counts of hundreds and more without decimals."""
    digits = 2 if np.abs(image).max() < 100 else 0
    return " / ".join(f"{value:,.{digits}f}" for value in (image.min(), image.mean(), image.max()))


def legend(ax: Axes, channels: Sequence[str]) -> None:
    """Write the stains in their colours under the Axes, at its right end."""
    offset = 0.0
    for index in reversed(range(len(channels))):
        colour = stain_colour(channels[index], position=index) * 0.85
        ax.annotate(
            f"■ {channels[index]}",
            (1.0, 0.0),
            xytext=(-offset, -3),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7,
            color=tuple(colour),
            annotation_clip=False,
        )
        offset += 4.6 * len(channels[index]) + 16
