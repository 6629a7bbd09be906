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

from cellbridge.errors import ImageError

Image = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Labels = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Objects:
    """What was found in one field.

    Parameters
    ----------
    nuclei, cells : (y, x), int32; a nucleus and its cell have one number, 0 is background; a cell contains its nucleus.
    """

    nuclei: Labels
    cells: Labels


def segment(
    nucleus_image: Image, cell_image: Image | None, *, nucleus_px: float, cell_reach: float | None = None
) -> Objects:
    """Find the nuclei of a field and the cell around each.

    Parameters
    ----------
    nucleus_image : (y, x), counts of the stain that shows nuclei.
    cell_image : (y, x), counts of the stain that shows whole cells; None grows cells by distance alone.
    nucleus_px : typical nucleus diameter in pixels.
    cell_reach : how far a cell may reach from its nucleus, in nucleus diameters; None is 1.2 with a cell stain, 0.7 without.
    """
    nuclei = find_nuclei(nucleus_image, nucleus_px=nucleus_px)
    return Objects(nuclei, find_cells(nuclei, cell_image, nucleus_px=nucleus_px, cell_reach=cell_reach))


def find_nuclei(image: Image, *, nucleus_px: float) -> Labels:
    """Label the nuclei of a field.

    Smoothed by a twentieth of the nucleus and thresholded; touching nuclei are split by a watershed on the smoothed distance
    to the edge, from peaks at least 0.45 nucleus diameters apart. Pieces under a twelfth of a typical nucleus' area are noise.

    Returns
    -------
    (y, x), int32, numbered from 1; nuclei at the border included. All zeros where nothing stands out from the background.
    """
    foreground = _foreground(image, nucleus_px=nucleus_px)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(foreground).astype(np.float32), 0.08 * nucleus_px)
    peaks = feature.peak_local_max(
        distance, min_distance=max(round(0.45 * nucleus_px), 1), threshold_abs=0.1, exclude_border=False
    )
    markers = np.zeros(foreground.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels: Labels = segmentation.watershed(-distance, markers, mask=foreground).astype(np.int32, copy=False)
    return labels


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
    near = ndimage.distance_transform_edt(nuclei == 0) <= reach
    allowed = (near & _stands_out(image, nucleus_px=nucleus_px, share=0.5)) | (nuclei > 0)
    smooth = ndimage.gaussian_filter(image.astype(np.float32), max(0.05 * nucleus_px, 0.7))
    cells: Labels = segmentation.watershed(-smooth, nuclei, mask=allowed).astype(np.int32, copy=False)
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
        foreground = ndimage.binary_fill_holes(_foreground(image, nucleus_px=4.0))
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


def _foreground(image: Image, *, nucleus_px: float) -> Mask:
    area = np.pi / 4 * nucleus_px**2
    foreground = morphology.remove_small_holes(_stands_out(image, nucleus_px=nucleus_px), max_size=int(0.25 * area))
    foreground = ndimage.binary_opening(foreground, morphology.disk(max(round(0.06 * nucleus_px), 1)))
    cleaned: Mask = morphology.remove_small_objects(foreground, max_size=int(area / 12))
    return cleaned


def _stands_out(image: Image, *, nucleus_px: float, share: float = 1.0) -> Mask:
    """Return where the smoothed image is above Otsu's threshold, moved to a share of its height above the background.

    The threshold never lies within the pixel noise of the background, so that an empty field has no foreground. The noise is
    that of neighbouring pixels' differences, which objects hardly touch, reduced by the smoothing (1 / (2 sqrt(pi) s)).
    """
    width = max(0.05 * nucleus_px, 0.7)
    exact = image.astype(np.float32)
    smooth = ndimage.gaussian_filter(exact, width)
    background = float(np.percentile(smooth, 5))
    pixel_noise = max(1.05 * float(np.median(np.abs(np.diff(exact, axis=1)))), 0.5)
    noise = pixel_noise / (2.0 * np.sqrt(np.pi) * width)
    threshold = background + share * (float(filters.threshold_otsu(smooth)) - background)
    above: Mask = smooth > max(threshold, background + 8.0 * noise)
    return above
