"""The figures of one target of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellbridge.plots.canvas import SERIES
from cellbridge.plots.composite import contrast_limits
from cellbridge.plots.differences import difference_maps
from cellbridge.plots.latents import quantiles, spectrum
from cellbridge.plots.montage import montage, stains, triptychs

Floats = NDArray[np.floating]

_NEAREST = "nearest"
"""A row whose name begins so shows other cells than the source's: it has no difference to it."""


@dataclass(frozen=True)
class Panel:
    """A drawn figure with the words that go with it."""

    axes: Axes
    title: str
    caption: str


def cell_panels(
    paired: Mapping[str, Floats],
    unpaired: Mapping[str, Floats],
    channels: Sequence[str],
    *,
    titles: Sequence[str],
    pixel_um: float | None,
) -> dict[str, Panel]:
    """Draw the same cells side by side, what was changed in them, one of them stain by stain, and a montage of every row of the table.

    Parameters
    ----------
    paired : name → (n, channel, height, width), the same cells in each; the first entry is the source. A name that starts with
        "nearest" shows the real cells nearest to an output, so that its differences to the source mean nothing and are not drawn.
    unpaired : name → what only the montage shows; a name that starts with "real" takes part in the contrast.
    titles : names of the first cells of `paired`: as many are shown side by side.
    """
    source = next(iter(paired.values()))
    real = [source, *(images for name, images in unpaired.items() if name.startswith("real"))]
    limits = contrast_limits(np.concatenate(real))
    few = {name: images[: len(titles)] for name, images in paired.items()}
    many = {**paired, **unpaired}
    changed = {name: images for name, images in list(few.items())[1:] if not name.startswith(_NEAREST)}
    every = f"Contrast is one for all pictures, from real cells. Under each: minimum / mean / maximum in [-1, 1]. Stains: {', '.join(channels)}."
    panels = {
        "cells": Panel(triptychs(few, channels, limits, titles=titles, pixel_um=pixel_um), "The same cells", every)
    }
    if changed:
        drawn = difference_maps(source[: len(titles)], changed, channels, titles=titles, pixel_um=pixel_um)
        panels["differences"] = Panel(
            drawn,
            "What was changed",
            "Row − source, stain by stain, on one scale for all: red is brighter than the source cell, blue darker, white unchanged. "
            "Beside each row: the mean of its absolute difference.",
        )
    panels |= {
        "stains": Panel(
            stains({name: images[0] for name, images in few.items()}, channels, limits, pixel_um=pixel_um),
            "One cell, stain by stain",
            "The first of the cells above; the last column shows all stains together.",
        ),
        "montage": Panel(
            montage(many, channels, limits, pixel_um=pixel_um),
            "More cells, row by row",
            "Cells lie evenly over the table, none is picked by eye. Beside each row: minimum / mean / maximum of the cells shown.",
        ),
    }
    return panels


def set_panels(rows: Mapping[str, Floats], channels: Sequence[str]) -> dict[str, Panel]:
    """Draw images of several sets row by row, and the first of them large.

    Parameters
    ----------
    rows : name → (n, channel, height, width); names that start with "real" give the contrast, those that start with "nearest" show the
        real image nearest to that of the row before.
    """
    limits = contrast_limits(np.concatenate([images for name, images in rows.items() if name.startswith("real")]))
    large = {name: images[:6] for name, images in rows.items()}
    return {
        "sets": Panel(
            triptychs(large, channels, limits),
            "Images of each set",
            "Drawn by lot, none is picked by eye; “nearest real” is the real image nearest, in features, to the one above. Contrast is one for "
            f"all, from real images. Under each: minimum / mean / maximum in [-1, 1]. Channels: {', '.join(channels)}.",
        ),
        "montage": Panel(
            montage(rows, channels, limits),
            "More images, row by row",
            "Beside each row: minimum / mean / maximum of the images shown.",
        ),
    }


def noise_panels(
    noises: Mapping[str, Floats], spectra: Mapping[str, tuple[Floats, Floats, Floats]]
) -> dict[str, Panel]:
    """Draw the spectrum and the quantiles of x_T, one line per model.

    Parameters
    ----------
    noises : model → x_T.
    spectra : model → radial frequency, power and the standard error of white noise.
    """
    flat: Axes | None = None
    quantile: Axes | None = None
    for index, name in enumerate(noises):
        colour = SERIES[index % len(SERIES)]
        flat = spectrum(*spectra[name], label=f"x_T ({name})", colour=colour, ax=flat)
        quantile = quantiles(noises[name], label=f"x_T ({name})", colour=colour, ax=quantile)
    if flat is None or quantile is None:
        return {}
    return {
        "spectrum": Panel(flat, "Spectrum of x_T", "Mean power of all images and stains; white noise is flat at 1."),
        "quantiles": Panel(quantile, "Quantiles of x_T", "All values; standard normal noise lies on the diagonal."),
    }
