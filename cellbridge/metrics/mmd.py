"""Maximum mean discrepancy: the cubic kernel of the kernel distance, a Gaussian kernel with a permutation test, and ranks of conditions.

References
----------
Gretton et al. 2012, "A Kernel Two-Sample Test", JMLR 13:723 (estimator, permutation test, median heuristic); Bińkowski et al. 2018,
arXiv:1801.01401 (cubic kernel).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.moments import Matrix, Rows, float_rows

Codes = NDArray[np.int64]
Kernel = Callable[[Matrix, Matrix], Matrix]
"""Rows (n, feature) and (m, feature) → (n, m)."""

_CHUNK = 2048


def cubic(gamma: float) -> Kernel:
    """Return the kernel k(x, y) = (gamma xᵀy + 1)³ of the kernel (Inception) distance."""
    return lambda x, y: (gamma * (x @ y.T) + 1) ** 3


def gaussian(bandwidth: float) -> Kernel:
    """Return the kernel k(x, y) = exp(-|x - y|² / (2 bandwidth²))."""
    return lambda x, y: np.exp(squared_distances(x, y) / (-2 * bandwidth**2))


def squared_distances(x: Matrix, y: Matrix) -> Matrix:
    """Return |x_i - y_j|² (n, m); exactly 0 where the two cannot be told apart in float64, so that copies are copies."""
    of_x, of_y = (x**2).sum(axis=1)[:, None], (y**2).sum(axis=1)[None, :]
    found = of_x + of_y - 2 * (x @ y.T)
    return np.where(found < 1e-12 * (of_x + of_y), 0.0, found)


def median_bandwidth(features: Rows, *, most: int = 1000) -> float:
    """Return the median distance between two rows (of `most` at most, evenly chosen): the usual bandwidth.

    Raises
    ------
    ValueError : more than half of the pairs coincide.
    """
    rows = float_rows(features)
    some = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]
    some = some - some.mean(axis=0)
    found = float(np.sqrt(np.median(squared_distances(some, some)[np.triu_indices(len(some), 1)])))
    if not found > 0:
        raise ValueError(
            f"the median distance between {len(some)} feature vectors is {found}: most are copies of one another"
        )
    return found


def mmd2(a: Rows, b: Rows, *, bandwidth: float | None = None) -> float:
    """Return the unbiased squared MMD of two sets of features with a Gaussian kernel; it can be negative.

    1/(n(n-1)) Σ_{i≠j} k(a_i, a_j) + 1/(m(m-1)) Σ_{i≠j} k(b_i, b_j) - 2/(nm) Σ_ij k(a_i, b_j)

    Parameters
    ----------
    a, b : (n, feature) and (m, feature).
    bandwidth : of the kernel; the default is the median distance in both sets together.

    References
    ----------
    Gretton et al. 2012, eq. 3.
    """
    rows = float_rows(a), float_rows(b)
    width = median_bandwidth(np.concatenate(rows)) if bandwidth is None else bandwidth
    centre = np.concatenate(rows).mean(axis=0)
    one = tuple(np.zeros(len(part), dtype=np.int64) for part in rows)
    return _left_out((rows[0] - centre, rows[1] - centre), (one[0], one[1]), gaussian(width))[0]


def kernel_left_out(
    rows: tuple[Matrix, Matrix], codes: tuple[Codes, Codes], *, gamma: float | None = None
) -> tuple[float, Matrix, Matrix]:
    """Return the unbiased MMD² with the cubic kernel, and its values with one group left out of the first set, and of the second.

    Parameters
    ----------
    rows : (n, feature) and (m, feature).
    codes : the group of each row, 0 to G - 1. Where a set has one group only, nothing can be left out and its values are NaN.
    gamma : the kernel's scale; the default is 1 / number of features.
    """
    return _left_out(rows, codes, cubic(1 / rows[0].shape[1] if gamma is None else gamma))


@dataclass(frozen=True)
class PermutationTest:
    """Whether two sets of cells are told apart by their MMD².

    Parameters
    ----------
    p : share of relabellings with an MMD² at least as large, the found one counted.
    smallest_p : the smallest that p could be with so many blocks and relabellings; where it is above 0.05, the test has no power at all.
    relabellings : how many; all there are, where `exact`.
    unit : what was relabelled.
    """

    mmd2: float
    p: float
    smallest_p: float
    relabellings: int
    exact: bool
    unit: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def permutation_p(
    a: Rows,
    b: Rows,
    *,
    blocks: tuple[Blocks, Blocks] | None = None,
    permutations: int,
    seed: int,
    bandwidth: float | None = None,
) -> PermutationTest:
    """Test whether two sets of features come from one distribution, by relabelling whole blocks of cells.

    Cells of one well are no independent draws, so wells are relabelled, not cells; all ways are tried where there are no more than asked
    for. As the bandwidth is the median of both sets together, it is the same under every relabelling.

    Parameters
    ----------
    blocks : the cells that keep together; None takes each cell by itself.
    permutations : relabellings at most.
    """
    rows = float_rows(a), float_rows(b)
    counts = len(rows[0]), len(rows[1])
    if min(counts) < 2:
        raise ValueError(f"{counts[0]} and {counts[1]} images: two or more are needed on each side")
    codes, unit = _both_codes(blocks, counts)
    together = np.concatenate(rows)
    width = median_bandwidth(together) if bandwidth is None else bandwidth
    sums, diagonal = kernel_sums(together - together.mean(axis=0), codes, gaussian(width))
    own = len(np.unique(codes[: counts[0]]))
    labels, exact = _relabellings(len(sums), own, permutations, seed)
    found = _mmd2_of_labels(labels, sums, diagonal, np.bincount(codes))
    known = np.isfinite(found)  # a relabelling that leaves one cell on a side has no MMD
    found, value = found[known], float(found[0])
    at_least = int((found >= value - 1e-12 * abs(value)).sum())  # the found labelling is the first row
    mirrored = exact and 2 * own == len(sums)  # exchanging the two sets' names is a relabelling, too
    return PermutationTest(value, at_least / len(found), (1 + mirrored) / len(found), len(found), exact, unit)


def rank_of_condition(
    generated: Rows, real: Mapping[str, Rows], target: str, *, bandwidth: float | None = None
) -> tuple[int, dict[str, float]]:
    """Return the rank of the target among all conditions by MMD² from the generated cells (1 is nearest), and every MMD².

    Parameters
    ----------
    generated : (n, feature).
    real : condition → features of its real cells.
    bandwidth : the default is the median distance among the real cells of all conditions, one for all.

    Raises
    ------
    KeyError : the target is not among the conditions.
    """
    if target not in real:
        raise KeyError(f"{target} is not among the conditions {sorted(real)}")
    together = np.concatenate([float_rows(part) for part in real.values()])
    width = median_bandwidth(together) if bandwidth is None else bandwidth
    found = {name: mmd2(generated, part, bandwidth=width) for name, part in real.items()}
    return 1 + sum(value < found[target] for name, value in found.items() if name != target), found


def kernel_sums(rows: Matrix, codes: Codes, kernel: Kernel) -> tuple[Matrix, Matrix]:
    """Return Σ k(x_i, x_j) over i in one group and j in another, (group, group), and Σ k(x_i, x_i) of each group, (group,)."""
    members, diagonal = _members(codes), np.zeros(int(codes.max()) + 1)
    sums = np.zeros((len(diagonal), len(diagonal)))
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        values = kernel(rows[part], rows)
        sums += members[part].T @ (values @ members)
        np.add.at(diagonal, codes[part], np.diagonal(values, offset=start))
    return sums, diagonal


def _cross_sums(x: Matrix, codes_x: Codes, y: Matrix, codes_y: Codes, kernel: Kernel) -> Matrix:
    members_x, members_y = _members(codes_x), _members(codes_y)
    sums = np.zeros((members_x.shape[1], members_y.shape[1]))
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        sums += members_x[part].T @ (kernel(x[part], y) @ members_y)
    return sums


def _members(codes: Codes) -> csr_array:
    """Return which row belongs to which group, (row, group); sparse, since each cell may be a group of its own."""
    return csr_array((np.ones(len(codes)), (np.arange(len(codes)), codes)))


def _left_out(rows: tuple[Matrix, Matrix], codes: tuple[Codes, Codes], kernel: Kernel) -> tuple[float, Matrix, Matrix]:
    """Return an unbiased MMD², and its values with one group left out of the first set, and of the second."""
    counts = np.bincount(codes[0]), np.bincount(codes[1])
    if min(len(rows[0]), len(rows[1])) < 2:
        raise ValueError(f"{len(rows[0])} and {len(rows[1])} images: two or more are needed on each side")
    (within_x, own_x), (within_y, own_y) = (kernel_sums(rows[side], codes[side], kernel) for side in (0, 1))
    between = _cross_sums(rows[0], codes[0], rows[1], codes[1], kernel)
    x, y = np.ones(len(counts[0])), np.ones(len(counts[1]))

    def value(kept_x: Matrix, kept_y: Matrix) -> float:
        n, m = kept_x @ counts[0], kept_y @ counts[1]
        if min(n, m) < 2:
            return float("nan")
        of_x = (kept_x @ within_x @ kept_x - kept_x @ own_x) / (n * (n - 1))
        of_y = (kept_y @ within_y @ kept_y - kept_y @ own_y) / (m * (m - 1))
        return float(of_x + of_y - 2 * (kept_x @ between @ kept_y) / (n * m))

    first = [value(x - unit, y) for unit in np.eye(len(x))]
    second = [value(x, y - unit) for unit in np.eye(len(y))]
    return value(x, y), np.array(first), np.array(second)


def _both_codes(blocks: tuple[Blocks, Blocks] | None, counts: tuple[int, int]) -> tuple[Codes, str]:
    """Number the blocks of both sets, those of the second after those of the first."""
    if blocks is None:
        return np.arange(sum(counts)), "cells"
    first, second = (np.unique(part.codes, return_inverse=True)[1].astype(np.int64) for part in blocks)
    return np.concatenate([first, second + first.max() + 1]), blocks[0].unit


def _relabellings(blocks: int, own: int, permutations: int, seed: int) -> tuple[NDArray[np.float64], bool]:
    """Return (relabelling, block), 1 where a block counts to the first set; the first row is the labelling as found."""
    found = np.zeros((1, blocks))
    found[0, :own] = 1
    if comb(blocks, own) <= permutations:
        chosen = np.array(list(combinations(range(blocks), own))[1:], dtype=np.int64).reshape(-1, own)
    else:
        rng = np.random.default_rng(seed)
        chosen = np.argsort(rng.random((permutations, blocks)), axis=1)[:, :own]
    labels = np.zeros((len(chosen), blocks))
    np.put_along_axis(labels, chosen, 1, axis=1)
    return np.concatenate([found, labels]), comb(blocks, own) <= permutations


def _mmd2_of_labels(labels: Matrix, sums: Matrix, diagonal: Matrix, counts: Codes) -> Matrix:
    first, second = labels, 1 - labels
    n, m = first @ counts, second @ counts
    with np.errstate(divide="ignore", invalid="ignore"):
        of_first = (np.einsum("lg,gh,lh->l", first, sums, first, optimize=True) - first @ diagonal) / (n * (n - 1))
        of_second = (np.einsum("lg,gh,lh->l", second, sums, second, optimize=True) - second @ diagonal) / (m * (m - 1))
        between = np.einsum("lg,gh,lh->l", first, sums, second, optimize=True) / (n * m)
    return np.asarray(of_first + of_second - 2 * between)
