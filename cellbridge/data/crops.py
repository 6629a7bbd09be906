"""One image per cell: cut around the nucleus, or out of a ready-made crop, and resampled to the store's size."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from cellbridge.data.segmentation import Objects, mask_of
from cellbridge.errors import ImageError

Array = np.ndarray[Any, np.dtype[Any]]
REASONS = ("border", "too_small", "too_large", "touching")


@dataclass(frozen=True)
class Choice:
    """Which cells of a field are kept.

    Parameters
    ----------
    border : "reject" every cell whose crop would leave the field, or "reflect" the field at its edges; a nucleus that touches the
        edge is rejected in any case.
    touching : "keep" cells that touch others, or "reject" them.
    min_area, max_area : of a nucleus, as shares of a disk of the typical diameter, pi/4 nucleus_px².
    """

    border: Literal["reject", "reflect"] = "reject"
    touching: Literal["keep", "reject"] = "keep"
    min_area: float = 0.25
    max_area: float = 4.0


@dataclass(frozen=True)
class Cells:
    """The cells of one field that are kept.

    Parameters
    ----------
    numbers : label of each in the segmentation.
    centres : (cell, 2), nucleus centroid, row and column, in pixels of the field.
    neighbours : how many other cells each touches.
    rejected : reason → how many were not kept.
    """

    numbers: tuple[int, ...]
    centres: Array
    neighbours: tuple[int, ...]
    rejected: dict[str, int]


def choose_cells(objects: Objects, *, nucleus_px: float, crop_px: int, choice: Choice) -> Cells:
    """Decide which cells of a field are kept, in order of their rows, then columns.

    Rejected are, in this order: `border` (the nucleus touches the field's edge, or the crop would leave the field), `too_small`
    and `too_large` (nucleus area below or above a multiple of a disk of the typical diameter), `touching`.
    """
    nuclei = objects.nuclei
    count = int(nuclei.max())
    places = np.nonzero(nuclei)
    labels = nuclei[places]
    areas = np.bincount(labels, minlength=count + 1)
    present = np.flatnonzero(areas)
    centres = np.stack([np.bincount(labels, place)[present] / areas[present] for place in places], axis=1)
    at_edge = set(np.concatenate([nuclei[0], nuclei[-1], nuclei[:, 0], nuclei[:, -1]]).tolist())
    touched = neighbours(objects.cells)
    typical = np.pi / 4 * nucleus_px**2
    rejected: Counter[str] = Counter()
    kept = []
    for index, (number, centre) in enumerate(zip(present.tolist(), centres, strict=True)):
        share = areas[number] / typical
        if number in at_edge or (choice.border == "reject" and not _inside(centre, crop_px, nuclei.shape)):
            rejected["border"] += 1
        elif not choice.min_area <= share <= choice.max_area:
            rejected["too_small" if share < choice.min_area else "too_large"] += 1
        elif choice.touching == "reject" and touched.get(number):
            rejected["touching"] += 1
        else:
            kept.append(index)
    kept.sort(key=lambda index: (centres[index, 0], centres[index, 1]))
    numbers = tuple(int(present[index]) for index in kept)
    return Cells(numbers, centres[kept], tuple(touched.get(number, 0) for number in numbers), dict(rejected))


def neighbours(cells: Array) -> dict[int, int]:
    """Return label → how many other labels it touches, side by side or one above the other; labels that touch none are left out."""
    pairs = []
    for one, other in ((cells[1:], cells[:-1]), (cells[:, 1:], cells[:, :-1])):
        meet = (one != other) & (one > 0) & (other > 0)
        pairs.append(np.stack([one[meet], other[meet]], axis=1))
    both = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    numbers, counts = np.unique(both, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _inside(centre: Array, crop_px: int, shape: tuple[int, ...]) -> bool:
    top, left = corner(centre, crop_px)
    return 0 <= top <= shape[0] - crop_px and 0 <= left <= shape[1] - crop_px


def corner(centre: Array, crop_px: int) -> tuple[int, int]:
    """Return the first row and column of a crop around a centre, rounded half up."""
    row, column = (math.floor(float(place) - (crop_px - 1) / 2 + 0.5) for place in centre)
    return row, column


def window(image: Array, centre: Array, *, crop_px: int) -> Array:
    """Return the square of crop_px around a centre out of (…, y, x); beyond its edges the image is reflected."""
    top, left = corner(centre, crop_px)
    height, width = image.shape[-2:]
    if 0 <= top <= height - crop_px and 0 <= left <= width - crop_px:
        return image[..., top : top + crop_px, left : left + crop_px]
    rows, columns = _reflected(top, crop_px, height), _reflected(left, crop_px, width)
    return image[..., rows[:, None], columns[None, :]]


def _reflected(start: int, length: int, size: int) -> Array:
    """Return `length` indices from `start` on, reflected into 0 … size - 1 without repeating the edge."""
    period = max(2 * (size - 1), 1)
    places = np.abs(np.arange(start, start + length)) % period
    return np.minimum(places, period - places) if size > 1 else np.zeros(length, np.int64)


def cut(image: Array, centres: Array, *, crop_px: int, size_px: int) -> Array:
    """Cut squares of crop_px around centres out of a field (channel, y, x), and resample them: (cell, channel, y, x).

    Counts are rounded, and stay in the field's type.
    """
    crops = np.empty((len(centres), image.shape[0], crop_px, crop_px), image.dtype)
    for crop, centre in zip(crops, centres, strict=True):
        crop[:] = window(image, centre, crop_px=crop_px)
    return resample(crops, size_px=size_px)


def shares(mask: Array, centres: Array, *, crop_px: int) -> Array:
    """Return the share of each crop's pixels that a mask (…, y, x) covers: (cell, …)."""
    found = np.zeros((len(centres), *mask.shape[:-2]))
    if mask.any():
        for index, centre in enumerate(centres):
            found[index] = window(mask, centre, crop_px=crop_px).mean(axis=(-2, -1))
    return found


def cut_masks(objects: Objects, cells: Cells, *, crop_px: int, size_px: int) -> Array:
    """Return each cell's own mask (cell, y, x), uint8: 0 other, 1 cytoplasm, 2 nucleus; nearest neighbour."""
    masks = np.zeros((len(cells.numbers), size_px, size_px), np.uint8)
    for mask, number, centre in zip(masks, cells.numbers, cells.centres, strict=True):
        nuclei, around = (window(labels, centre, crop_px=crop_px) for labels in (objects.nuclei, objects.cells))
        mask[:] = resample_mask(mask_of(Objects(nuclei, around), number), size_px=size_px)
    return masks


def centre_crop(image: Array, *, crop_px: int, what: str) -> Array:
    """Return the central square of (…, y, x); raise ImageError where the image is smaller."""
    height, width = image.shape[-2:]
    if min(height, width) < crop_px:
        raise ImageError(
            f"{what}: {height}x{width} pixels, smaller than crop_px {crop_px}. Set crop_px to {min(height, width)}."
        )
    top, left = (height - crop_px) // 2, (width - crop_px) // 2
    return image[..., top : top + crop_px, left : left + crop_px]


def centre_mask(objects: Objects, *, reach_px: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the mask of the cell whose nucleus lies nearest to the centre of a crop; zeros where none is within reach_px."""
    nuclei = objects.nuclei
    rows, columns = np.nonzero(nuclei)
    offset = np.hypot(rows - (nuclei.shape[0] - 1) / 2, columns - (nuclei.shape[1] - 1) / 2)
    if not offset.size or offset.min() > reach_px:
        return np.zeros(nuclei.shape, np.uint8)
    nearest = int(np.argmin(offset))
    return mask_of(objects, int(nuclei[rows[nearest], columns[nearest]]))


def resample(crops: Array, *, size_px: int) -> Array:
    """Resample square crops (…, y, x) to size_px, anti-aliased, rounded to counts of the same type.

    Separable triangle filter, as wide as the reduction: what PIL and PyTorch call bilinear with antialiasing. The mean of an
    image is kept up to its edges, and no count leaves the range that the crop had.
    """
    if crops.shape[-1] == size_px:
        return crops
    weights = _triangle_weights(crops.shape[-1], size_px)
    resampled = weights @ crops.astype(np.float32) @ weights.T
    counts: Array = np.rint(resampled).astype(crops.dtype)
    return counts


def resample_mask(mask: Array, *, size_px: int) -> Array:
    """Resample a mask (y, x) by taking the pixel under the centre of each new one."""
    nearest = ((np.arange(size_px) + 0.5) * mask.shape[-1] / size_px).astype(int)
    return mask[np.ix_(nearest, nearest)]


@lru_cache(maxsize=16)
def _triangle_weights(source: int, target: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return (target, source) rows that sum to 1."""
    scale = source / target
    width = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source)[None] + 0.5 - centres[:, None]) / width
    weights = np.clip(1.0 - distance, 0.0, None)
    normalised: np.ndarray[Any, np.dtype[np.float32]] = (weights / weights.sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    return normalised
