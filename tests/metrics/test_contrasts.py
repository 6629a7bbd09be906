"""Claims about intervals of differences and at corrected levels."""

import numpy as np
import pytest
from scipy import stats

from cellbridge.metrics import contrasts, intervals
from cellbridge.metrics.intervals import Blocks


def _alone(n):
    return Blocks(np.arange(n), "wells")


def _covers(found, truth):
    return found.low <= truth <= found.high


def test_with_one_cell_per_block_student_is_the_t_interval_of_the_textbook():
    values = np.random.default_rng(0).standard_normal(12)
    found = intervals.student_mean(values, _alone(12), level=0.9)
    expected = stats.t.interval(0.9, 11, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_with_one_cell_per_block_a_difference_is_welchs_t_interval_as_scipy_has_it():
    rng = np.random.default_rng(1)
    values, others = rng.standard_normal(9) + 1, 3 * rng.standard_normal(14)
    found = contrasts.student_difference(values, others, (_alone(9), _alone(14)))
    expected = stats.ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_difference_of_shares_of_equal_cells_has_the_width_of_newcombes_example():
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 is 0.0524 to 0.3339."""
    hits, others = np.arange(70) < 56, np.arange(80) < 48
    example = contrasts.newcombe(hits, others)
    assert (example.low, example.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    found = contrasts.share_difference(hits, others, (Blocks(np.arange(70) % 1, "wells"), _alone(80)))
    assert found.low is None  # one block
    mixed = [np.random.default_rng(0).permutation(part) for part in (hits, others)]
    found = contrasts.share_difference(*mixed, (_alone(70), _alone(80)))
    assert found.low <= 0.0524 + 1e-4
    assert found.high >= 0.3339 - 1e-4
    assert found.high - found.low < 0.32


def test_where_all_cells_agree_a_difference_of_shares_still_has_width():
    found = contrasts.share_difference(np.ones(40, bool), np.zeros(40, bool), (_alone(40), _alone(40)))
    assert 0.8 < found.low < found.value == 1.0


def test_corrected_levels_hold_together():
    assert 1 - intervals.corrected_level(5) == pytest.approx(0.01)
    assert intervals.corrected_level(0) == intervals.corrected_level(1) == pytest.approx(0.95)


def test_three_wells_are_enough_for_student_and_not_for_the_percentiles_at_a_corrected_level():
    rng, wells = np.random.default_rng(2), Blocks(np.repeat(np.arange(3), 8), "wells")
    seen = {"student": 0, "percentile": 0}
    draws = 300
    for _ in range(draws):
        values = np.repeat(rng.standard_normal(3), 8) + rng.standard_normal(24)
        seen["student"] += _covers(intervals.student_mean(values, wells, level=0.99), 0)
        found = intervals.bootstrap(values, lambda m: m[:, 0], wells, resamples=200, seed=0, level=0.99)
        seen["percentile"] += _covers(found, 0)
    assert seen["student"] >= stats.binom.ppf(0.0005, draws, 0.99)
    assert seen["percentile"] / draws < 0.85


def test_an_interval_from_draws_holds_its_value_although_draws_are_noisier():
    blocks = (_alone(20), _alone(8))
    found = contrasts.draws_interval(0.9, np.random.default_rng(0).normal(0.5, 0.02, 500), blocks, n=20, within=(-1, 1))
    assert found.low < 0.9 < found.high
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 7) * 0.02, rel=0.1)
    assert contrasts.draws_interval(0.99, np.array([0.5, 1.0]), blocks, n=20, within=(-1, 1)).high == 1.0
    assert contrasts.draws_interval(0.9, None, blocks, n=20).low is None


def test_a_single_block_gives_no_interval():
    one = Blocks(np.zeros(10, int), "none (one site)")
    values = np.arange(10.0)
    assert intervals.student_mean(values, one).low is None
    assert contrasts.student_difference(values, values, (one, _alone(10))).resampled == "none (one site)"


def test_the_order_of_the_cells_changes_nothing():
    rng = np.random.default_rng(3)
    values, codes, order = rng.standard_normal(30), rng.integers(0, 5, 30), rng.permutation(30)
    found = [intervals.student_mean(values[o], Blocks(codes[o], "wells")) for o in (np.arange(30), order)]
    assert found[0].low == pytest.approx(found[1].low, abs=1e-12)


def test_with_one_cell_per_block_a_paired_difference_is_the_paired_t_interval_as_scipy_has_it():
    rng = np.random.default_rng(4)
    values, others = rng.standard_normal(11) + 1, rng.standard_normal(11)
    found = contrasts.paired_difference(values, others, _alone(11))
    expected = stats.ttest_rel(values, others).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_hit_more_in_each_of_three_wells_beats_nothing():
    values, wells = np.tile(np.arange(16) == 0, 3).astype(float), Blocks(np.repeat(np.arange(3), 16), "wells")
    assert intervals.student_mean(values, wells).low > 0
    found = contrasts.paired_difference(values, np.zeros(48), wells)
    assert (found.low < 0 < found.value, found.resampled) == (True, "wells")


def test_a_paired_difference_holds_its_level_at_four_wells_and_the_percentiles_do_not():
    rng, wells = np.random.default_rng(5), Blocks(np.repeat(np.arange(4), 12), "wells")
    seen, draws = {"student": 0, "percentile": 0}, 400
    for _ in range(draws):
        share = np.clip(0.3 + 0.1 * rng.standard_normal(4), 0, 1)[wells.codes]
        values, others = (rng.random(48) < share).astype(float), (rng.random(48) < 0.3).astype(float)
        seen["student"] += _covers(contrasts.paired_difference(values, others, wells), 0)
        found = intervals.bootstrap(values - others, lambda m: m[:, 0], wells, resamples=200, seed=0)
        seen["percentile"] += _covers(found, 0)
    assert seen["student"] >= stats.binom.ppf(0.0005, draws, 0.95)
    assert seen["percentile"] < stats.binom.ppf(0.0005, draws, 0.95)
