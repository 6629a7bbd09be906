"""Nuclei and cells of one field, with scikit-image: threshold, split by shape, grow cells from their nuclei.

All lengths follow from one number, the typical nucleus diameter, so that one set of parameters fits every magnification.

References
----------
Carpenter et al. 2006, "CellProfiler", Genome Biology 7:R100 (primary and secondary objects); Otsu 1979, "A threshold selection
method from gray-level histograms".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from skimage import feature, filters, morphology, segmentation

from cellbridge.data import distances
from cellbridge.errors import ImageError

Image = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Labels = np.ndarray[Any, np.dtype[np.int32]]

_EDGE = 0.45
"""Where a nucleus ends, as a share of its own height above the background."""


@dataclass(frozen=True)
class Objects:
    """What was found in one field.

    Parameters
    ----------
    nuclei, cells : (y, x), int32; a nucleus and its cell have one number, 0 is background; a cell contains its nucleus.
    debris : (y, x), what stands out in the nucleus stain apart from any nucleus; None where it was not looked for.
    """

    nuclei: Labels
    cells: Labels
    debris: Mask | None = None


def segment(
    nucleus_image: Image,
    cell_image: Image | None,
    *,
    nucleus_px: float,
    cell_reach: float | None = None,
    nuclei: Labels | None = None,
) -> Objects:
    """Find the nuclei of a field and the cell around each.

    Parameters
    ----------
    nucleus_image : (y, x), counts of the stain that shows nuclei.
    cell_image : (y, x), counts of the stain that shows whole cells; None grows cells by distance alone.
    nucleus_px : typical nucleus diameter in pixels.
    cell_reach : how far a cell may reach from its nucleus, in nucleus diameters; None is 1.2 with a cell stain, 0.7 without.
    nuclei : (y, x), the nuclei, where they were found in another way.
    """
    level = _measure(nucleus_image, nucleus_px=nucleus_px)
    if nuclei is None:
        nuclei = _nuclei(level, nucleus_px=nucleus_px)
    cells = find_cells(nuclei, cell_image, nucleus_px=nucleus_px, cell_reach=cell_reach)
    return Objects(nuclei, cells, _apart(level.smooth > level.threshold, nuclei))


def find_nuclei(image: Image, *, nucleus_px: float) -> Labels:
    """Label the nuclei of a field, bright and dim ones alike.

    Smoothed by a twentieth of the nucleus and thresholded, so low that dim nuclei beside bright ones are found; touching nuclei
    are split; then each is cut at 0.45 of its own height above the background, and split again. Pieces under a twelfth of a
    typical nucleus' area are noise.

    Returns
    -------
    (y, x), int32, numbered from 1; nuclei at the border included. All zeros where nothing stands out from the background.
    """
    return _nuclei(_measure(image, nucleus_px=nucleus_px), nucleus_px=nucleus_px)


def _nuclei(level: "_Level", *, nucleus_px: float) -> Labels:
    pieces = _split(_cleaned(level.smooth > level.threshold, nucleus_px=nucleus_px), nucleus_px=nucleus_px)
    return _split(_cleaned(_outlined(level, pieces), nucleus_px=nucleus_px), nucleus_px=nucleus_px)


def find_cells(nuclei: Labels, image: Image | None, *, nucleus_px: float, cell_reach: float | None = None) -> Labels:
    """Grow every nucleus into its cell.

    Every pixel within `cell_reach` nucleus diameters goes to the nearest nucleus; with a cell stain only where that stain
    stands out from the background, and the border between two cells runs along its darkest line.

    Returns
    -------
    (y, x), int32, with the numbers of `nuclei`, which it contains.
    """
    reach = nucleus_px * (cell_reach if cell_reach is not None else 0.7 if image is None else 1.2)
    if image is None:
        grown: Labels = segmentation.expand_labels(nuclei, reach).astype(np.int32, copy=False)
        return grown
    near = distances.within(nuclei > 0, reach)
    level = _measure(image, nucleus_px=nucleus_px)
    allowed = (near & (level.smooth > level.threshold)) | (nuclei > 0)
    cells: Labels = segmentation.watershed(-level.smooth, nuclei, mask=allowed).astype(np.int32, copy=False)
    return cells


def typical_nucleus_px(images: Iterable[Image]) -> float:
    """Measure the typical nucleus diameter: the area-weighted median over all pieces above the threshold.

    Weighting by area keeps specks from counting; a cluster of touching nuclei counts as the diameter of its inscribed circle,
    so that crowding does not enlarge the result.

    Raises
    ------
    ImageError : nothing stands out in any image.
    """
    diameters: list[float] = []
    areas: list[float] = []
    for image in images:
        level = _measure(image, nucleus_px=4.0)
        pieces, _ = ndimage.label(ndimage.binary_fill_holes(_cleaned(level.smooth > level.threshold, nucleus_px=4.0)))
        foreground = ndimage.binary_fill_holes(_outlined(level, pieces))
        distance = ndimage.distance_transform_edt(foreground)
        pieces, count = ndimage.label(foreground)
        numbers = np.arange(1, count + 1)
        diameters.extend(2.0 * ndimage.maximum(distance, pieces, numbers))
        areas.extend(np.bincount(pieces.ravel(), minlength=count + 1)[1:].tolist())
    if not diameters:
        raise ImageError(
            "no nucleus stands out in any field. Check nucleus_channel in the manifest, or set nucleus_px there."
        )
    order = np.argsort(diameters)
    below = np.cumsum(np.asarray(areas)[order])
    return float(np.asarray(diameters)[order][np.searchsorted(below, below[-1] / 2)])


def mask_of(objects: Objects, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return (y, x) with 2 in the nucleus of this number, 1 in the rest of its cell, 0 elsewhere."""
    mask: np.ndarray[Any, np.dtype[np.uint8]] = (objects.cells == number).astype(np.uint8)
    mask[objects.nuclei == number] = 2
    return mask


@dataclass(frozen=True)
class _Level:
    """A smoothed image, its background, and the level above which something stands out from it."""

    smooth: Image
    background: float
    threshold: float


def _measure(image: Image, *, nucleus_px: float) -> _Level:
    """Threshold by Otsu's method on the square root of the height above the background, which is its 5th percentile.

    The root keeps a few bright nuclei from raising the threshold above the dim ones. The threshold never lies within the pixel
    noise of the background, so that an empty field has no foreground; that noise is taken from the differences of neighbouring
    pixels, which objects hardly touch, and reduced by the smoothing (1 / (2 sqrt(pi) s)).
    """
    width = max(0.05 * nucleus_px, 0.7)
    smooth = ndimage.gaussian_filter(image.astype(np.float32), width)
    background = float(np.percentile(smooth, 5))
    pixel_noise = max(1.05 * _median_step(image), 0.5)
    noise = pixel_noise / (2.0 * np.sqrt(np.pi) * width)
    root = np.sqrt(np.maximum(smooth - background, 0.0))
    height = float(filters.threshold_otsu(root)) ** 2
    return _Level(smooth, background, background + max(height, 8.0 * noise))


def _median_step(image: Image) -> float:
    """Return the median difference of neighbours in a row, from how often each whole number occurs."""
    steps = np.abs(np.diff(image.astype(np.int32), axis=1))
    if not steps.size:
        return 0.0
    below = np.cumsum(np.bincount(steps.ravel()))
    middle = np.searchsorted(below, [(steps.size + 1) // 2, steps.size // 2 + 1])
    return float(middle.mean())


def _apart(foreground: Mask, nuclei: Labels) -> Mask:
    """Return the pieces of the foreground that hold no pixel of a nucleus."""
    pieces, count = ndimage.label(foreground)
    holds = np.zeros(count + 1, bool)
    holds[pieces[nuclei > 0]] = True
    apart: Mask = foreground & ~holds[pieces]
    return apart


def _outlined(level: "_Level", pieces: Labels) -> Mask:
    """Return the pixels of each piece that are above its own edge, `_EDGE` of its height.

    A piece's level is the mean of those of its pixels that are above its mean; its height is that above the background.
    """
    places = np.flatnonzero(pieces)
    labels, values = pieces.ravel()[places], level.smooth.ravel()[places].astype(np.float64)
    means = np.bincount(labels, values) / np.maximum(np.bincount(labels), 1)
    upper = values >= means[labels]
    heights = np.bincount(labels, values * upper) / np.maximum(np.bincount(labels, upper), 1)
    own = level.background + _EDGE * (heights - level.background)
    outlined = np.zeros(pieces.shape, bool)
    outlined.ravel()[places] = values > own[labels]
    return outlined


def _cleaned(foreground: Mask, *, nucleus_px: float) -> Mask:
    """Fill holes up to a quarter of a typical nucleus' area, and take off specks and thin bridges."""
    area = np.pi / 4 * nucleus_px**2
    foreground = morphology.remove_small_holes(foreground, max_size=int(0.25 * area))
    foreground = distances.opened(foreground, max(round(0.06 * nucleus_px), 1))
    cleaned: Mask = morphology.remove_small_objects(foreground, max_size=int(area / 12))
    return cleaned


def _split(foreground: Mask, *, nucleus_px: float) -> Labels:
    """Split by a watershed on the smoothed distance to the edge, from peaks at least 0.45 nucleus diameters apart."""
    distance = ndimage.gaussian_filter(distances.inside(foreground), 0.08 * nucleus_px)
    peaks = feature.peak_local_max(
        distance, min_distance=max(round(0.45 * nucleus_px), 1), threshold_abs=0.1, exclude_border=False
    )
    markers = np.zeros(foreground.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels: Labels = segmentation.watershed(-distance, markers, mask=foreground).astype(np.int32, copy=False)
    return labels
