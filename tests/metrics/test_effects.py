"""Claims about effects against the same plate's control, and how they agree with real ones."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from cellbridge.metrics import effects
from cellbridge.metrics.effects import Effect, Sample
from cellbridge.metrics.intervals import Blocks

F = 40
DRAWS = {"resamples": 200, "seed": 0}


def cells(rng, effect, *, n=240, wells=8, between_wells=0.1):
    """Cells of two plates that lie far apart; wells differ a little."""
    codes = np.arange(n) % wells
    plates = np.where(codes % 2 == 0, "P1", "P2")
    features = rng.standard_normal((n, F)) + rng.normal(0, between_wells, (wells, F))[codes] + effect
    features[plates == "P1"] += 5.0
    return Sample(features, plates, Blocks(codes, "wells"))


def world(seed, *, size=0.4):
    """Control, real target, and outputs that carry a share of the real effect."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(0, size, F)
    control, target = cells(rng, 0.0, wells=12), cells(rng, effect)

    def outputs(share):
        noise = rng.normal(0, 0.2, control.features.shape)
        return Sample(control.features + share * effect + noise, control.plates, control.blocks)

    return control, target, outputs


def exact(mean):
    mean = np.asarray(mean, float)
    return Effect(mean, np.tile(mean, (50, 1)), 100, Blocks(np.arange(100) % 5, "wells"))


def test_closed_form_of_two_effects_without_noise():
    found = effects.agreement(exact([2.0, 0.0, 2.0]), exact([1.0, 1.0, 0.0]))
    assert found.cosine.value == pytest.approx(2 / np.sqrt(16))
    assert found.slope.value == pytest.approx(1.0)  # <(2, 0, 2), (1, 1, 0)> / 2
    assert found.sign.value == 0.5  # of the two features that move, one does not
    assert (found.n_features, found.n_moved) == (3, 2)


def test_control_cells_have_mean_zero_and_spread_one_on_every_plate():
    control = world(0)[0]
    standard = effects.against_control(control, control)
    for plate in ("P1", "P2"):
        assert standard[control.plates == plate].mean(axis=0) == pytest.approx(0, abs=1e-12)
    assert standard.std(axis=0) == pytest.approx(1)


def test_a_feature_that_is_constant_in_the_control_says_nothing():
    control, target, _ = world(0)
    control.features[:, 3] = 0.1
    assert not effects.against_control(target, control)[:, 3].any()


def test_rank_correlation_agrees_with_scipy_ties_included():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 30)).astype(float)
    assert effects.spearmans(a[None], b[None])[0] == pytest.approx(spearmanr(a, b).statistic)


def test_copying_has_slope_zero_and_the_right_effect_has_slope_one():
    control, target, outputs = world(1)
    copy = effects.effect_agreement(control, control, target, control, **DRAWS)
    assert (copy.slope.value, copy.slope.low, copy.slope.high) == (0, 0, 0)
    assert copy.cosine is None
    right = effects.effect_agreement(outputs(1.0), control, target, control, **DRAWS)
    assert right.slope.low < 1 < right.slope.high
    assert right.cosine.low > 0.9
    assert right.sign.low > 0.9
    half = effects.effect_agreement(outputs(0.5), control, target, control, **DRAWS)
    assert 0 < half.slope.low < 0.5 < half.slope.high < 1
    assert half.cosine.low > 0.9


def test_an_unrelated_effect_agrees_no_more_than_by_chance():
    control, target, _ = world(2)
    other = np.random.default_rng(99).normal(0, 0.4, F)
    moved = Sample(control.features + other, control.plates, control.blocks)
    found = effects.effect_agreement(moved, control, target, control, **DRAWS)
    for part, chance in ((found.cosine, 0), (found.spearman, 0), (found.slope, 0)):
        assert abs(part.value - chance) < 0.4
    assert abs(found.sign.value - 0.5) < 0.3


def test_a_weak_effect_is_not_taken_for_a_small_slope_and_intervals_cover():
    """The noise of the real effect is taken off: without that, slopes would be a fifth too small here."""
    slopes = []
    for seed in range(60):
        control, target, outputs = world(seed, size=0.2)
        slopes.append(effects.effect_agreement(outputs(1.0), control, target, control, resamples=60, seed=0).slope)
    values = np.array([slope.value for slope in slopes])
    assert abs(values.mean() - 1) < 4 * values.std() / np.sqrt(len(values)) + 0.02
    assert np.mean([slope.low < 1 < slope.high for slope in slopes]) >= 0.9


def test_squared_norm_of_no_effect_is_zero_on_average():
    norms = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        norms.append(effects.real_effect(cells(rng, 0.0), cells(rng, 0.0, wells=12), **DRAWS).squared_norm())
    assert abs(np.mean(norms)) < 4 * np.std(norms) / np.sqrt(len(norms))


def test_halves_of_the_real_target_agree():
    control, target, _ = world(3)
    found = effects.split_half(target, control, **DRAWS)
    assert found.cosine.value > 0.8
    assert found.slope.low < 1 < found.slope.high


def test_cell_count_explains_crowding_and_nothing_else():
    rng = np.random.default_rng(4)
    control = cells(rng, 0.0, wells=12, between_wells=0.0)
    counts = np.log(rng.integers(50, 200, 12)[control.blocks.codes])
    direction = rng.standard_normal(F)
    crowded = Sample(control.features + np.outer(counts - counts.mean(), direction), control.plates, control.blocks)
    found = effects.count_effect(crowded, counts, change=-0.5, **DRAWS)
    assert effects.cosines(found.mean[None], -direction[None])[0] > 0.95
    unmoved = effects.count_effect(crowded, counts, change=0.0, **DRAWS)
    assert not unmoved.mean.any()


def test_perfect_dose_order_has_the_smallest_p_there_is():
    found = effects.dose_monotonicity([1, 3, 10, 30], [0.1, 0.2, 0.4, 0.9], seed=0)
    assert found.spearman == pytest.approx(1)
    assert found.p == found.smallest_p == pytest.approx(1 / 24)
    reversed_order = effects.dose_monotonicity([1, 3, 10, 30], [0.9, 0.4, 0.2, 0.1], seed=0)
    assert reversed_order.p == 1


def test_many_doses_are_shuffled_at_random_and_give_nearly_the_same_p():
    doses, sizes = np.arange(8.0), np.array([0.1, 0.3, 0.2, 0.5, 0.4, 0.6, 0.9, 0.7])
    exact_p = effects.dose_monotonicity(doses, sizes, seed=0)
    more = effects.dose_monotonicity(np.append(doses, 8.0), np.append(sizes, 0.45), seed=0, orders=2000)
    assert exact_p.exact
    assert not more.exact
    assert more.smallest_p == pytest.approx(1 / 2001)
    assert effects.dose_monotonicity([1.0, 3.0], [0.1, 0.2], seed=0) is None


def test_a_plate_without_control_is_refused():
    control, target, _ = world(5)
    only = control.take(np.flatnonzero(control.plates == "P1"))
    with pytest.raises(ValueError, match=r"\['P2'\] have no control cell"):
        effects.real_effect(target, only, **DRAWS)


def test_one_block_gives_values_without_intervals():
    control, target, _ = world(6)
    single = Sample(target.features, target.plates, Blocks(np.zeros(len(target.features), int), "none (one site)"))
    found = effects.effect_agreement(control, control, single, control, **DRAWS)
    assert found.sign is None  # no standard error, so no feature is known to move
    assert found.to_dict()["cosine"]["not_computed"]
    assert effects.split_half(single, control, **DRAWS) is None
