"""Is it still this cell, as the compound would have made it? Error per cell against the known counterfactual."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.contrasts import paired_difference
from cellbridge.metrics.intervals import Blocks, Estimate, bootstrap

Floats = NDArray[np.floating]


def channel_deviation(images: Floats) -> NDArray[np.float64]:
    """Return each channel's standard deviation over all pixels of real images (n, channel, height, width) → (channel,).

    It is exactly 0 where a channel is constant; nothing can be measured in units of that.
    """
    constant = images.min(axis=(0, 2, 3)) == images.max(axis=(0, 2, 3))
    return np.where(constant, 0.0, images.std(axis=(0, 2, 3), dtype=np.float64))


def cell_squared_error(
    images: Floats, truth: Floats, masks: NDArray[np.bool_], *, deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean squared error of each cell over its own mask, all channels weighing equally.

    e_i = mean over channels c and pixels p of mask i of ((a_icp - b_icp) / sd_c)²

    Parameters
    ----------
    images, truth : (n, channel, height, width), in [-1, 1].
    masks : (n, height, width), true inside the cell.
    deviation : (channel,), standard deviation of real images.

    Returns
    -------
    (n,), in squared standard deviations.

    Raises
    ------
    ValueError : a mask is empty, or a channel has no spread.
    """
    if not (deviation > 0).all():
        raise ValueError(f"channel(s) {np.flatnonzero(deviation <= 0).tolist()} are constant in the real images")
    area = masks.sum(axis=(1, 2))
    if not area.all():
        raise ValueError(f"{int((area == 0).sum())} cell(s) have an empty mask")
    scaled = (images.astype(np.float64) - truth) / deviation[:, None, None]
    return np.einsum("nchw,nhw->n", scaled**2, masks.astype(np.float64)) / (area * images.shape[1])


def best_possible(source: Floats, responding: Floats, response_probability: Floats) -> NDArray[np.float32]:
    """Return what predicts the counterfactual best when chance decides who responds.

    E[counterfactual | source] = p · responding + (1 - p) · source; its squared error is the floor that no model can beat.

    Parameters
    ----------
    source, responding : (n, channel, height, width); the cell as it is, and made to respond.
    response_probability : (n,), p, from what is visible in the source.
    """
    p = response_probability[:, None, None, None]
    return (p * responding + (1 - p) * source).astype(np.float32)


def pooled_error(errors: NDArray[np.float64], blocks: Blocks, *, resamples: int, seed: int) -> Estimate:
    """Estimate the root mean square error, cells weighing equally: sqrt(mean_i e_i), in standard deviations."""
    return bootstrap(errors, lambda means: np.sqrt(means[:, 0]), blocks, resamples=resamples, seed=seed)


def mean_error(errors: NDArray[np.float64]) -> float:
    """Return the mean over cells of the per-cell root mean square error: mean_i sqrt(e_i)."""
    return float(np.sqrt(errors).mean())


def score(
    errors: NDArray[np.float64],
    floor: NDArray[np.float64],
    identity: NDArray[np.float64],
    blocks: Blocks,
    *,
    resamples: int,
    seed: int,
) -> Estimate:
    """Estimate (model - floor) / (identity - floor) of the pooled errors: 0 is the best possible, 1 is copying the source.

    Parameters
    ----------
    errors, floor, identity : (n,), squared errors of the same cells; the bootstrap draws the three together.
    """

    def normalised(means: NDArray[np.float64]) -> NDArray[np.float64]:
        model, best, copy = np.sqrt(means).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((model - best) / (copy - best))

    table = np.stack([errors, floor, identity], axis=1)
    return bootstrap(table, normalised, blocks, resamples=resamples, seed=seed)


def difference(errors: NDArray[np.float64], others: NDArray[np.float64], blocks: Blocks) -> Estimate:
    """Estimate the pooled error minus another's on the same cells; negative is better than the other.

    sqrt(mean a) - sqrt(mean b), with the interval of its linear part, a_i / (2 sqrt(mean a)) - b_i / (2 sqrt(mean b)), as
    `contrasts.paired_difference` gives it: a verdict rests on this one, however few the blocks are.

    References
    ----------
    Davison and Hinkley 1997, "Bootstrap Methods and their Application", §2.7 (influence values).
    """
    roots = [float(np.sqrt(part.mean())) for part in (errors, others)]
    own, other = (part / (2 * root) if root > 0 else part for part, root in zip((errors, others), roots, strict=True))
    found, value = paired_difference(own, other, blocks), roots[0] - roots[1]
    if found.low is None or found.high is None:
        return replace(found, value=value)
    return replace(found, value=value, low=value + found.low - found.value, high=value + found.high - found.value)


def channel_squared_error(
    images: Floats, truth: Floats, masks: NDArray[np.bool_], *, deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean squared error of each cell over its own mask, channel by channel: (n, channel), in squared standard deviations.

    Its mean over channels is `cell_squared_error`; arguments and errors are the same.
    """
    parts = [
        cell_squared_error(images[:, [c]], truth[:, [c]], masks, deviation=deviation[[c]])
        for c in range(len(deviation))
    ]
    return np.stack(parts, axis=1)


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of two sets of images of the same cells, (n,) each; nan where a cell has none in one of the two.

    Parameters
    ----------
    shift_px : distance of the centroids.
    iou : intersection over union.
    area_ratio : area over that of the reference.
    count, count_reference : nuclei in the whole image, apart from specks smaller than a tenth of the largest.
    lost : 1 where the reference shows the cell's nucleus and the image does not; nan where the reference shows none.
    """

    shift_px: NDArray[np.float64]
    iou: NDArray[np.float64]
    area_ratio: NDArray[np.float64]
    count: NDArray[np.float64]
    count_reference: NDArray[np.float64]
    lost: NDArray[np.float64]


def compare_nuclei(dna: Floats, reference_dna: Floats, nuclei: NDArray[np.bool_]) -> Nuclei:
    """Find the nuclei of two sets of images of the same cells, both in the same way, and compare them.

    Otsu on a smoothed DNA channel, the object that overlaps the cell's nucleus most: the segmentation's own error falls on both sides.

    Parameters
    ----------
    dna, reference_dna : (n, height, width).
    nuclei : (n, height, width), the nucleus that the store holds for the cell.
    """
    table = np.full((len(dna), 6), np.nan)
    for row, (image, reference, nucleus) in enumerate(zip(dna, reference_dna, nuclei, strict=True)):
        (found, table[row, 3]), (expected, table[row, 4]) = _nucleus(image, nucleus), _nucleus(reference, nucleus)
        if expected.any():
            table[row, 5] = not found.any()
        if found.any() and expected.any():
            centres = [np.argwhere(mask).mean(axis=0) for mask in (found, expected)]
            table[row, 0] = np.linalg.norm(centres[0] - centres[1])
            table[row, 1] = (found & expected).sum() / (found | expected).sum()
            table[row, 2] = found.sum() / expected.sum()
    return Nuclei(*table.T)


def nucleus_agreement(dna: Floats, reference_dna: Floats, nuclei: NDArray[np.bool_]) -> Mapping[str, float | int]:
    """Describe how the nuclei of two sets of images of the same cells lie and overlap; arguments as of `compare_nuclei`.

    Descriptive: a compound that shrinks nuclei lowers the overlap rightly.

    Returns
    -------
    median centroid shift in px, median intersection over union, median ratio of areas, mean numbers of nuclei in an image and in its reference,
    share of images with the same number, share of the reference's nuclei that are lost, and n, the cells with a nucleus in both.
    """
    found = compare_nuclei(dna, reference_dna, nuclei)
    both = np.isfinite(found.iou)
    if not both.any():
        return {"n": 0}
    medians = {name: float(np.median(getattr(found, name)[both])) for name in ("shift_px", "iou", "area_ratio")}
    counts = {name: float(getattr(found, name).mean()) for name in ("count", "count_reference")}
    same = float((found.count == found.count_reference).mean())
    return {**medians, **counts, "same_count": same, "lost": float(np.nanmean(found.lost)), "n": int(both.sum())}


def nucleus_estimates(found: Nuclei, blocks: Blocks, *, resamples: int, seed: int) -> dict[str, Estimate]:
    """Estimate the means of what `compare_nuclei` found, over the cells with a nucleus in both; the counts over all cells."""
    both = np.flatnonzero(np.isfinite(found.iou))
    everyone = np.arange(len(found.iou))
    same = (found.count == found.count_reference).astype(float)
    columns = {name: (getattr(found, name), both) for name in ("shift_px", "iou", "area_ratio")}
    columns |= {"same_count": (same, everyone), "count_difference": (found.count - found.count_reference, everyone)}
    return {
        name: bootstrap(values[rows], lambda means: means[:, 0], blocks.take(rows), resamples=resamples, seed=seed)
        for name, (values, rows) in columns.items()
        if len(rows)
    }


def _nucleus(dna: NDArray[Any], near: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """Return the nucleus that overlaps a given one most (empty where none does), and how many nuclei the image holds."""
    from scipy.ndimage import gaussian_filter, label
    from skimage.filters import threshold_otsu

    smooth = gaussian_filter(dna.astype(np.float64), 1.0)
    if np.ptp(smooth) == 0:
        return np.zeros_like(near), 0
    objects, _ = label(smooth > threshold_otsu(smooth))
    areas = np.bincount(objects.ravel())[1:]
    number = int((areas >= 0.1 * areas.max()).sum())
    counts = np.bincount(objects[near], minlength=2)
    counts[0] = 0
    return np.asarray(objects == counts.argmax()) if counts.any() else np.zeros_like(near), number
