"""Claims about estimates and their intervals."""

import numpy as np
import pytest
from scipy.stats import binomtest

from cellbridge.metrics.intervals import (
    Blocks,
    blocks_of,
    bootstrap,
    jackknife,
    leave_one_out,
    percentile_interval,
    ratio,
    share,
    wilson,
)


def _mean(means):
    return means[:, 0]


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (7, 20), (20, 20), (130, 256)])
def test_wilson_agrees_with_scipy(hits, n):
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_well_is_the_unit_where_there_are_three():
    assert blocks_of(["p"] * 3, ["A01", "A02", "A03"], ["1", "1", "1"]).unit == "wells"
    assert blocks_of(["p"] * 3, ["A01", "A01", "A02"], ["1", "2", "1"]).unit == "sites (within-well only)"
    assert blocks_of(["p"] * 3, ["A01"] * 3, ["1"] * 3).unit == "none (one site)"


def test_the_same_well_name_on_two_plates_is_two_wells():
    assert blocks_of(["p", "q", "r"], ["A01"] * 3, ["1"] * 3).count == 3


def test_one_site_has_no_interval():
    estimate = bootstrap(np.arange(5.0), _mean, blocks_of(["p"] * 5, ["A01"] * 5, ["1"] * 5), resamples=50, seed=0)
    assert estimate.value == 2.0
    assert estimate.low is None
    assert estimate.high is None


def test_bootstrap_covers_the_mean_at_its_level_although_cells_of_a_well_agree():
    """Cells of a well share their value, so intervals over cells would cover 0 far too seldom."""
    rng, wells, covered = np.random.default_rng(0), np.repeat(np.arange(20), 10), []
    for trial in range(200):
        values = rng.standard_normal(20)[wells]
        estimate = bootstrap(values, _mean, Blocks(wells, "wells"), resamples=200, seed=trial)
        covered.append(estimate.low <= 0 <= estimate.high)
    assert 0.87 <= np.mean(covered) <= 0.99


def test_a_share_of_one_keeps_a_lower_end_below_one():
    estimate = share(np.ones(30, bool), Blocks(np.arange(30) // 3, "wells"), resamples=100, seed=0)
    assert estimate.high == 1.0
    assert estimate.low == pytest.approx(wilson(30, 30)[0])


def test_jackknife_error_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(1).standard_normal(40)
    single = Blocks(np.arange(40), "wells")
    constant = Blocks(np.arange(40), "wells")
    left_out = leave_one_out(lambda rows, _: np.array([values[rows].mean()]), (single, constant), groups=40)
    error = jackknife(*left_out)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(40))


def test_nothing_is_left_out_where_too_few_cells_would_remain():
    uneven = Blocks(np.array([0, 0, 0, 1]), "wells")
    statistic = lambda rows, _: np.array([float(len(rows))])  # noqa: E731
    assert leave_one_out(statistic, (uneven, uneven), fewest=2) is None
    assert leave_one_out(statistic, (uneven, uneven)) is not None


def test_a_ratio_to_zero_is_not_computed():
    blocks = Blocks(np.arange(4), "wells")
    assert ratio(np.ones(4), np.zeros(4), (blocks, blocks), resamples=10, seed=0) is None


def test_a_ratio_of_no_hits_at_all_still_has_an_upper_end():
    blocks, half = Blocks(np.arange(100), "wells"), np.arange(100) % 2.0
    found = ratio(np.zeros(100), half, (blocks, blocks), resamples=200, seed=0)
    assert found.value == found.low == 0.0
    assert found.high == pytest.approx(
        1.96**2 / (100 + 1.96**2) / 0.5, rel=1e-4
    )  # Wilson's upper end of 0 of 100, over 1/2


def test_draws_that_are_not_finite_are_left_out():
    assert percentile_interval(np.array([np.nan, 1.0, 1.0, np.inf])) == (1.0, 1.0)


def test_the_interval_is_a_function_of_the_seed():
    values, blocks = np.random.default_rng(2).random(30), Blocks(np.arange(30) // 5, "wells")
    first, again = (bootstrap(values, _mean, blocks, resamples=100, seed=4) for _ in range(2))
    assert first == again
