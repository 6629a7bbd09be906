"""Claims about maximum mean discrepancies, their permutation test, and ranks of conditions."""

from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.mmd import (
    cubic,
    gaussian,
    median_bandwidth,
    mmd2,
    permutation_p,
    rank_of_condition,
    squared_distances,
)


def _draw(seed, n=40, d=3, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).standard_normal((n, d))


def _of_gaussians(shift, bandwidth, d):
    """MMD² of N(0, I) and N(shift, I): E exp(-|x - y|²/2h²) = (h²/(h² + 2))^(d/2) exp(-|gap|²/(2 (h² + 2)))."""
    same = (bandwidth**2 / (bandwidth**2 + 2)) ** (d / 2)
    return 2 * same * (1 - np.exp(-d * shift**2 / (2 * (bandwidth**2 + 2))))


def test_the_estimate_is_unbiased_for_gaussians_of_known_distance():
    for shift in (0.0, 0.5):
        found = [mmd2(_draw(2 * i), _draw(2 * i + 1, shift=shift), bandwidth=1.5) for i in range(200)]
        assert abs(np.mean(found) - _of_gaussians(shift, 1.5, 3)) < 3 * np.std(found) / np.sqrt(len(found))


def test_kernels_are_scikit_learns():
    a, b = _draw(0, 20, 6), _draw(1, 30, 6)
    np.testing.assert_allclose(cubic(0.3)(a, b), polynomial_kernel(a, b, degree=3, gamma=0.3, coef0=1), rtol=1e-12)
    np.testing.assert_allclose(gaussian(2.0)(a, b), rbf_kernel(a, b, gamma=1 / 8), rtol=1e-12)


def test_the_estimate_is_the_double_sum_without_its_diagonal():
    a, b = _draw(0, 2100), _draw(1, 30, shift=0.4)  # more rows than are computed with at once
    aa, bb, ab = rbf_kernel(a, gamma=0.5), rbf_kernel(b, gamma=0.5), rbf_kernel(a, b, gamma=0.5)
    expected = (aa.sum() - 2100) / (2100 * 2099) + (bb.sum() - 30) / (30 * 29) - 2 * ab.mean()
    assert mmd2(a, b, bandwidth=1.0) == pytest.approx(expected, rel=1e-9)


def test_copies_are_at_distance_zero_far_from_the_origin():
    rows = _draw(0, 20, 500) + 1e3
    assert (np.diagonal(squared_distances(rows, rows.copy())) == 0).all()
    assert median_bandwidth(rows) == pytest.approx(median_bandwidth(rows - 1e3), rel=1e-6)


def test_the_bandwidth_of_copies_is_refused():
    with pytest.raises(ValueError, match="most are copies"):
        median_bandwidth(np.ones((10, 3)))


@pytest.mark.parametrize("of_wells", [False, True])
def test_one_distribution_is_rejected_at_the_nominal_rate(of_wells):
    """Wells have offsets of their own, so that cells are no independent draws; relabelled whole, they do not mislead."""
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        offsets = np.repeat(rng.standard_normal((12, 2)), 5, axis=0) if of_wells else 0.0
        rows, wells = rng.standard_normal((60, 2)) + offsets, Blocks(np.arange(30) // 5, "wells")
        blocks = (wells, wells) if of_wells else None
        rejected += permutation_p(rows[:30], rows[30:], blocks=blocks, permutations=99, seed=seed).p <= 0.05
    assert binomtest(rejected, 200, 0.05).pvalue > 0.001


def test_cells_relabelled_one_by_one_would_take_wells_for_an_effect():
    rejected = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((60, 2)) + np.repeat(rng.standard_normal((12, 2)), 5, axis=0)
        rejected += permutation_p(rows[:30], rows[30:], permutations=99, seed=seed).p <= 0.05
    assert rejected >= 10


def test_a_shift_is_found():
    wells = Blocks(np.arange(40) // 5, "wells")
    found = permutation_p(_draw(0), _draw(1, shift=1.0), blocks=(wells, wells), permutations=999, seed=0)
    assert found.p <= 0.005
    assert (found.unit, found.exact) == ("wells", False)
    assert found.smallest_p == pytest.approx(1e-3)


def test_of_few_wells_every_relabelling_is_tried_and_the_smallest_p_is_said():
    """Three wells against three: 20 relabellings, of which the found one and its mirror image are alike, so p is never below 0.1."""
    wells = Blocks(np.arange(30) // 10, "wells")
    found = permutation_p(_draw(0, 30), _draw(1, 30, shift=5.0), blocks=(wells, wells), permutations=999, seed=0)
    assert found.exact
    assert found.relabellings == comb(6, 3)
    assert found.p == found.smallest_p == pytest.approx(2 / 20)
    uneven = permutation_p(
        _draw(0, 30),
        _draw(1, 20, shift=5.0),
        blocks=(wells, Blocks(np.arange(20) // 10, "wells")),
        permutations=999,
        seed=0,
    )
    assert uneven.p == uneven.smallest_p == pytest.approx(1 / comb(5, 3))


def test_the_tests_statistic_is_the_estimate():
    a, b = _draw(0), _draw(1, 33, shift=0.5)
    found = permutation_p(a, b, permutations=9, seed=0)
    assert found.mmd2 == pytest.approx(mmd2(a, b), rel=1e-9)
    assert found == permutation_p(a, b, permutations=9, seed=0)
    assert found.to_dict()["relabellings"] == 10


def test_the_true_condition_ranks_first_and_a_copier_ranks_its_source_first():
    real = {
        name: _draw(seed, shift=shift) for seed, (name, shift) in enumerate({"DMSO": 0.0, "A": 1.0, "B": 2.0}.items())
    }
    rank, found = rank_of_condition(_draw(9, shift=1.0), real, "A")
    assert rank == 1
    assert min(found, key=found.get) == "A"
    rank, found = rank_of_condition(_draw(9), real, "A")
    assert rank == 2
    assert min(found, key=found.get) == "DMSO"


def test_an_unknown_condition_and_single_cells_are_refused():
    with pytest.raises(KeyError, match="not among the conditions"):
        rank_of_condition(_draw(0), {"A": _draw(1)}, "B")
    with pytest.raises(ValueError, match="two or more are needed"):
        mmd2(_draw(0, 1), _draw(1), bandwidth=1.0)
    with pytest.raises(ValueError, match="two or more are needed"):
        permutation_p(_draw(0, 1), _draw(1), permutations=9, seed=0)
