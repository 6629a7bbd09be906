"""Fréchet and kernel distance between features of two sets of images, with jackknife intervals, and the share of a gap that is closed.

References
----------
Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", arXiv:1706.08500 (Fréchet); Bińkowski et al. 2018, "Demystifying MMD
GANs", arXiv:1801.01401 (kernel, and why the Fréchet distance of few images is biased).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.intervals import Blocks, Estimate, LeftOut, jackknife, normal_interval
from cellbridge.metrics.mmd import kernel_left_out
from cellbridge.metrics.moments import Moments, Rows, float_rows, frechet, frechet_of_moments, root_against

__all__ = [
    "Distances",
    "Moments",
    "bias_warning",
    "distances",
    "frechet",
    "frechet_and_kernel",
    "frechet_of_moments",
    "gap_closed",
]

_GROUPS = 10
"""Groups of cells that the jackknife leaves out; blocks beyond this number are merged."""


@dataclass(frozen=True)
class Distances:
    """How far two sets of images lie apart, at one n on both sides.

    Parameters
    ----------
    left_out : both distances, (group, 2), with a group of cells left out of the first set, and of the second; None without interval.
    """

    frechet: Estimate
    kernel: Estimate
    left_out: LeftOut | None = None


def distances(features_1: Rows, features_2: Rows, *, blocks: tuple[Blocks, Blocks]) -> Distances:
    """Return Fréchet and kernel distance of two sets of features, with jackknife intervals over blocks of cells.

    Parameters
    ----------
    features_1, features_2 : (n, feature) of equal n.
    blocks : the cells of each set that are left out together.

    Raises
    ------
    ValueError : the sets differ in size; the Fréchet distance's bias depends on n.
    """
    if len(features_1) != len(features_2):
        raise ValueError(f"{len(features_1)} against {len(features_2)} images: distances are compared at one n only")
    rows, unit = (float_rows(features_1), float_rows(features_2)), f"jackknife over {blocks[0].unit}"
    n = len(rows[0])
    codes = _groups(blocks)
    if codes is None:
        apart = frechet_and_kernel(*rows)
        found = [normal_interval(value, None, n=n, resampled=unit) for value in apart]
        return Distances(found[0], found[1])
    of_frechet = _frechet_left_out(rows, codes)
    of_kernel = kernel_left_out(rows, codes)
    left_out = (np.stack([of_frechet[1], of_kernel[1]], axis=1), np.stack([of_frechet[2], of_kernel[2]], axis=1))
    errors = jackknife(*left_out)
    found = [
        normal_interval(value, float(error), n=n, resampled=unit)
        for value, error in zip((of_frechet[0], of_kernel[0]), errors, strict=True)
    ]
    return Distances(found[0], found[1], left_out)


def frechet_and_kernel(features_1: Rows, features_2: Rows, *, gamma: float | None = None) -> tuple[float, float]:
    """Return the Fréchet distance and the unbiased kernel distance (MMD², cubic kernel) of two sets of features.

    |mu_1 - mu_2|² + tr(S_1 + S_2 - 2 (S_1 S_2)^½);  k(x, y) = (gamma xᵀy + 1)³, without its diagonal.

    Parameters
    ----------
    features_1, features_2 : (n, feature) and (m, feature).
    gamma : the kernel's scale; the default is 1 / number of features.

    Raises
    ------
    ValueError : fewer than two images on a side.
    """
    rows = float_rows(features_1), float_rows(features_2)
    alone = tuple(np.zeros(len(part), dtype=np.int64) for part in rows)
    return frechet(*rows), kernel_left_out(rows, (alone[0], alone[1]), gamma=gamma)[0]


def bias_warning(n: int, features: int, *, value: float | None = None, floor: float | None = None) -> str | None:
    """Say in words why a Fréchet distance of so few images must not be read as it stands; None where nothing need be said.

    The estimate's bias grows with features / n: with n images at most n - 1 directions have any variance. What part of a value is bias
    is seen in the floor, two draws of real cells at the same n, whose true distance is 0.

    Parameters
    ----------
    n : images on each side.
    features : numbers per image.
    value, floor : the distance, and that between two draws of real cells, where they are known.
    """
    share = None if value is None or floor is None or value <= 0 else floor / value
    beside = "" if share is None else f" Two draws of real cells lie {100 * share:.0f} % as far apart."
    if n <= features:
        reason = f"{n} images for {features} features: the covariances have no full rank and the value is mostly bias"
    elif n < 10 * features:
        reason = f"{n} images for {features} features (fewer than ten each): the value is biased upwards"
    elif share is not None and share > 0.5:
        reason = "more than half of the value is what separates two draws of real cells"
    else:
        return None
    return f"Fréchet distance: {reason}; compare rows of one table only, at one n.{beside}"


def gap_closed(
    model: Distances, floor: Distances, ceiling: Distances, *, of: Literal["frechet", "kernel"]
) -> Estimate | None:
    """Return 1 - (model - floor) / (ceiling - floor): 1 is as good as real, 0 is no translation.

    The interval is the jackknife of the whole statistic. Floor and ceiling are measured against one and the same draw (the second
    set of both), so a group of cells is left out of both at once; the other draws are disjoint. None where the ceiling does not
    lie above the floor, since there is no gap to close.
    """
    column = ("frechet", "kernel").index(of)
    found, low, high = (getattr(part, of) for part in (model, floor, ceiling))
    if high.value <= low.value:
        return None

    def closed(of_model: Any, of_floor: Any, of_ceiling: Any) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.atleast_1d(1 - (of_model - of_floor) / (of_ceiling - of_floor))

    value = float(closed(found.value, low.value, high.value)[0])
    error = None
    if model.left_out is not None and floor.left_out is not None and ceiling.left_out is not None:
        (of_model, of_reference), (first, shared), (control, shared_too) = (
            (part[0][:, column], part[1][:, column]) for part in (model.left_out, floor.left_out, ceiling.left_out)
        )
        samples = (
            closed(of_model, low.value, high.value),
            closed(of_reference, low.value, high.value),
            closed(found.value, first, high.value),
            closed(found.value, shared, shared_too),
            closed(found.value, low.value, control),
        )
        error = float(jackknife(*samples))
    known = error is not None and np.isfinite(error)
    return normal_interval(value, error if known else None, n=found.n, resampled=found.resampled)


Codes = NDArray[np.int64]
_LeftOut = tuple[float, NDArray[np.float64], NDArray[np.float64]]


def _groups(blocks: tuple[Blocks, Blocks]) -> tuple[Codes, Codes] | None:
    """Return each cell's group, 0 to G - 1 on each side; None where a side has one block, or fewer than two cells would be left."""
    if any(part.count < 2 or part.unit.startswith("none") for part in blocks):
        return None
    codes = [np.unique(part.codes, return_inverse=True)[1].astype(np.int64) % _GROUPS for part in blocks]
    if any(len(part) - np.bincount(part).max() < 2 for part in codes):
        return None
    return codes[0], codes[1]


def _frechet_left_out(rows: tuple[NDArray[np.float64], NDArray[np.float64]], codes: tuple[Codes, Codes]) -> _LeftOut:
    """Return the Fréchet distance, and its values with one group left out of the first set, and of the second."""
    if len(rows[0]) <= rows[0].shape[1]:
        return _frechet_from_products(rows, codes)
    return _frechet_from_moments(rows, codes)


def _frechet_from_products(
    rows: tuple[NDArray[np.float64], NDArray[np.float64]], codes: tuple[Codes, Codes]
) -> _LeftOut:
    """As many features as rows, or more: all values come from one matrix of inner products (n, n), centred anew for each group.

    tr (S_1 S_2)^½ is the nuclear norm of the centred products, over sqrt((n_1 - 1)(n_2 - 1)).
    """
    centre = np.concatenate(rows).mean(axis=0)  # so that squares of a common offset do not cancel
    x, y = rows[0] - centre, rows[1] - centre
    products = x @ y.T
    squares = (x**2).sum(axis=1), (y**2).sum(axis=1)

    def distance(kept_x: NDArray[np.bool_], kept_y: NDArray[np.bool_]) -> float:
        means, traces, counts = [], [], (int(kept_x.sum()), int(kept_y.sum()))
        for part, kept, square, n in zip((x, y), (kept_x, kept_y), squares, counts, strict=True):
            means.append(kept @ part / n)
            traces.append((square[kept].sum() - n * (means[-1] @ means[-1])) / (n - 1))
        block = products[np.ix_(kept_x, kept_y)]
        block = block - block.mean(axis=0) - block.mean(axis=1, keepdims=True) + block.mean()
        root = np.linalg.svd(block, compute_uv=False).sum() / np.sqrt((counts[0] - 1) * (counts[1] - 1))
        gap = means[0] - means[1]
        return float(gap @ gap + sum(traces) - 2 * root)

    all_x, all_y = np.ones(len(x), dtype=bool), np.ones(len(y), dtype=bool)
    first = [distance(codes[0] != group, all_y) for group in range(codes[0].max() + 1)]
    second = [distance(all_x, codes[1] != group) for group in range(codes[1].max() + 1)]
    return distance(all_x, all_y), np.array(first), np.array(second)


def _frechet_from_moments(
    rows: tuple[NDArray[np.float64], NDArray[np.float64]], codes: tuple[Codes, Codes]
) -> _LeftOut:
    """More rows than features: every value comes from the moments of the groups, and each side's root is taken once."""
    sides = [
        [Moments(part[code == group]) for group in range(code.max() + 1)]
        for part, code in zip(rows, codes, strict=True)
    ]
    whole = [_merged(groups) for groups in sides]

    def against(other: Moments, root: NDArray[np.float64], without: Moments) -> float:
        gap = other.mean - without.mean
        return float(gap @ gap) + other.trace + without.trace - 2 * root_against(root, without.covariance)

    left_out = []
    for side, groups in enumerate(sides):
        other = whole[1 - side]
        root = other.root()
        without = (_merged(groups[:group] + groups[group + 1 :]) for group in range(len(groups)))
        left_out.append(np.array([against(other, root, part) for part in without]))
    return frechet_of_moments(*whole), left_out[0], left_out[1]


def _merged(parts: list[Moments]) -> Moments:
    whole = Moments()
    for part in parts:
        whole.merge(part)
    return whole
