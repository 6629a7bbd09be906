"""Size and shape of nuclei and cells, measured on stacks of masks; each measure is scikit-image's or CellProfiler's of that name."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

Mask = NDArray[np.bool_]
Measures = dict[str, NDArray[np.float64]]
"""Name → one number for each cell, (n,)."""

_CROSS = ndimage.generate_binary_structure(2, 1)[None]
_PERIMETER = np.array([[[10, 2, 10], [2, 1, 2], [10, 2, 10]]])
_WEIGHTS = np.zeros(50)
_WEIGHTS[[5, 7, 15, 17, 25, 27]] = 1
_WEIGHTS[[21, 33]] = np.sqrt(2)
_WEIGHTS[[13, 23]] = (1 + np.sqrt(2)) / 2
"""Length of the outline through a border pixel, by how its neighbours on the border lie (Benkrid and Crookes 2000; scikit-image)."""


def shape(masks: Mask) -> Measures:
    """Measure masks (n, height, width); all measures of an empty mask are 0.

    Lengths are in px. Axes are those of the ellipse with the same second moments; radii are distances of the mask's pixels to its outside.
    """
    area = masks.sum(axis=(1, 2)).astype(np.float64)
    major, minor = _axes(masks)
    perimeter = _perimeter(masks)
    height, width = _box(masks)
    hull, longest, narrowest = np.array([_hull(masks[row]) for row in range(len(masks))]).reshape(-1, 3).T
    depth = depths(masks)
    return {
        "Area": area,
        "Perimeter": perimeter,
        "FormFactor": over(4 * np.pi * area, perimeter**2),
        "MajorAxisLength": major,
        "MinorAxisLength": minor,
        "Eccentricity": np.sqrt(np.clip(1 - over(minor**2, major**2), 0, 1)) * (major > 0),
        "Extent": over(area, height * width),
        "Solidity": over(area, hull),
        "MaxFeretDiameter": longest,
        "MinFeretDiameter": narrowest,
        "MeanRadius": over(depth.sum(axis=(1, 2)), area),
        "MaximumRadius": depth.max(axis=(1, 2)),
    }


def present(masks: Mask) -> NDArray[np.bool_]:
    """Return which masks hold a pixel, (n,)."""
    return np.asarray(masks.any(axis=(1, 2)))


def over(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """Return above / below, and 0 where there is nothing to divide by."""
    sides = np.broadcast_shapes(np.shape(above), np.shape(below))
    return np.divide(above, below, out=np.zeros(sides), where=np.broadcast_to(np.asarray(below) > 0, sides))


def centroids(masks: Mask) -> NDArray[np.float64]:
    """Return the centre of each mask, (n, 2) as y and x in px; that of the image where the mask is empty."""
    area = masks.sum(axis=(1, 2))
    found = []
    for axis, size in ((2, masks.shape[1]), (1, masks.shape[2])):
        along = masks.sum(axis=axis) @ np.arange(size)
        found.append(np.where(area > 0, over(along, area), (size - 1) / 2))
    return np.stack(found, axis=1)


def depths(masks: Mask) -> NDArray[np.float64]:
    """Return the distance of each pixel to the outside of its mask, (n, height, width) in px; 0 outside. The crop's border is no outside."""
    return np.stack([ndimage.distance_transform_edt(mask) if not mask.all() else _to_border(mask) for mask in masks])


def _to_border(mask: Mask) -> NDArray[np.float64]:
    """Return the distance to the crop's border, where the mask is the whole crop and has no other outside."""
    padded = np.pad(mask, 1)
    return np.asarray(ndimage.distance_transform_edt(padded)[1:-1, 1:-1])


def _axes(masks: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    area, centre = masks.sum(axis=(1, 2)), centroids(masks)
    y = np.arange(masks.shape[1])[None] - centre[:, :1]
    x = np.arange(masks.shape[2])[None] - centre[:, 1:]
    flat = masks.astype(np.float64)
    yy = over(np.einsum("nhw,nh->n", flat, y**2), area)
    xx = over(np.einsum("nhw,nw->n", flat, x**2), area)
    xy = over(np.einsum("nhw,nh,nw->n", flat, y, x, optimize=True), area)
    half, gap = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    return 4 * np.sqrt(half + gap), 4 * np.sqrt(np.clip(half - gap, 0, None))


def _perimeter(masks: Mask) -> NDArray[np.float64]:
    border = masks & ~ndimage.binary_erosion(masks, structure=_CROSS)
    codes = ndimage.convolve(border.astype(np.int32), _PERIMETER, mode="constant")
    return np.asarray((_WEIGHTS[codes] * border).sum(axis=(1, 2)))


def _box(masks: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sides = []
    for axis in (2, 1):
        line = np.asarray(masks.any(axis=axis))
        first, last = line.argmax(axis=1), line.shape[1] - 1 - line[:, ::-1].argmax(axis=1)
        sides.append(np.where(line.any(axis=1), last - first + 1, 0).astype(np.float64))
    return sides[0], sides[1]


def _hull(mask: Mask) -> tuple[float, float, float]:
    """Return area, longest and narrowest width of the convex hull around the pixels' corners; zeros of an empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return 0.0, 0.0, 0.0
    first, last = mask[rows].argmax(axis=1), mask.shape[1] - mask[rows][:, ::-1].argmax(axis=1)
    ends = [np.stack([rows + step, sides], axis=1) for step in (0, 1) for sides in (first, last)]
    hull = ConvexHull(np.concatenate(ends).astype(np.float64))
    corners = hull.points[hull.vertices]
    gaps = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    widths = (-hull.equations[:, :2] @ corners.T - hull.equations[:, 2:]).max(axis=1)
    return float(hull.volume), float(gaps.max()), float(widths.min())
