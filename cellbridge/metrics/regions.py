"""Where the nucleus and the cell lie in each crop, found in the image itself: a generated cell has no mask of its own.

References
----------
Otsu 1979, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9:62; Carpenter et al. 2006, "CellProfiler", Genome
Biology 7:R100 (cells around their nuclei).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from cellbridge.metrics.shape import Mask, present

Stack = NDArray[np.floating[Any]]

DNA = ("dna", "dapi", "hoechst", "nucleus")
"""What the stain of the nucleus is called, in small letters."""

_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
"""Neighbours of a pixel in a stack of images: those of its own image."""

_CENTRE = 1 / 6
"""How far from the middle of its crop the cell may lie, as a standard deviation and a share of the crop's side."""

_CROWD = 0.25
"""Objects of the DNA stain are counted as nuclei from this share of the nucleus' area on; smaller ones are specks."""


@dataclass(frozen=True)
class Regions:
    """The nucleus and the cell of each crop, (n, height, width) each, and how many nuclei the crop shows, (n,)."""

    nuclei: Mask
    cells: Mask
    count: NDArray[np.int64]


def dna_channel(channels: Sequence[str]) -> int | None:
    """Return which channel shows the nucleus, by its name; None where none does."""
    names = [channel.casefold() for channel in channels]
    return next((names.index(name) for name in DNA if name in names), None)


def find_regions(images: Stack, *, dna: int) -> Regions:
    """Find the nucleus in the middle of each crop and the cell around it.

    The nucleus is what lies above Otsu's threshold in the smoothed DNA stain, of several objects the one that is large and near the
    middle; the cell is what lies above it in the mean of the other stains and touches the nucleus. An image without contrast has neither.

    Parameters
    ----------
    images : (n, channel, height, width).
    dna : the channel that shows the nucleus.
    """
    above = _above_otsu(images[:, dna], smooth_px=1.0)
    nuclei, count = _in_the_middle(above)
    nuclei = _filled(nuclei)
    others = [channel for channel in range(images.shape[1]) if channel != dna]
    if others:
        stained = _above_otsu(images[:, others].mean(axis=1), smooth_px=2.0)
        cells = _filled(_touching(stained | nuclei, nuclei))
    else:
        cells = nuclei
    return Regions(nuclei, cells, count)


def regions_of_masks(masks: NDArray[np.integer[Any]]) -> Regions:
    """Return the regions of a store's masks (n, height, width): 0 outside, 1 in the cell, 2 in its nucleus."""
    nuclei = masks == 2
    return Regions(nuclei, masks > 0, present(nuclei).astype(np.int64))


def _above_otsu(stack: Stack, *, smooth_px: float) -> Mask:
    smooth = ndimage.gaussian_filter(stack.astype(np.float32), (0, smooth_px, smooth_px))
    spread = np.ptp(smooth, axis=(1, 2))
    thresholds = [threshold_otsu(image) if wide else np.inf for image, wide in zip(smooth, spread > 1e-6, strict=True)]
    return np.asarray(smooth > np.array(thresholds, dtype=np.float32)[:, None, None])


def _in_the_middle(above: Mask) -> tuple[Mask, NDArray[np.int64]]:
    """Choose of each image the object with the most pixels near the middle, and count those that are no specks beside it."""
    labels, found = ndimage.label(above, structure=_IN_PLANE)
    n, height, width = above.shape
    offsets = [(np.arange(size) - (size - 1) / 2) / (size * _CENTRE) for size in (height, width)]
    near = np.exp(-0.5 * (offsets[0][:, None] ** 2 + offsets[1][None, :] ** 2))
    weights = np.bincount(labels.ravel(), np.broadcast_to(near, above.shape).ravel(), minlength=found + 1)
    areas = np.bincount(labels.ravel(), minlength=found + 1)
    of_image = np.zeros(found + 1, dtype=np.int64)
    of_image[labels] = np.arange(n)[:, None, None]
    objects = np.arange(1, found + 1)
    order = objects[np.lexsort((weights[1:], of_image[1:]))]  # of each image's objects the heaviest comes last
    chosen = np.zeros(n, dtype=np.int64)
    chosen[of_image[order]] = order
    counted = areas[1:] >= _CROWD * areas[chosen[of_image[1:]]]
    count = np.bincount(of_image[1:][counted], minlength=n)
    return (labels == chosen[:, None, None]) & above, count


def _touching(above: Mask, seeds: Mask) -> Mask:
    labels, found = ndimage.label(above, structure=_IN_PLANE)
    touched = np.zeros(found + 1, dtype=bool)
    touched[labels[seeds]] = True
    touched[0] = False
    return np.asarray(touched[labels])


def _filled(masks: Mask) -> Mask:
    return np.asarray(ndimage.binary_fill_holes(masks, structure=_IN_PLANE))
