"""Claims about the error per cell."""

import numpy as np
import pytest
from scipy.stats import binom

from cellbridge.metrics import content
from cellbridge.metrics.intervals import Blocks

N, C, SIZE = 200, 3, 8


@pytest.fixture(scope="module")
def world():
    """Cells that respond by chance with a known probability; the response adds a known image."""
    rng = np.random.default_rng(0)
    source = rng.uniform(-0.5, 0.5, (N, C, SIZE, SIZE)).astype(np.float32)
    responding = source + 0.4
    p = rng.uniform(0, 1, N)
    responds = rng.random(N) < p
    truth = np.where(responds[:, None, None, None], responding, source)
    masks = np.zeros((N, SIZE, SIZE), bool)
    masks[:, 2:6, 2:6] = True
    return source, responding, truth, p, masks


def test_error_is_the_mean_square_over_the_mask_in_units_of_each_channels_spread():
    images, masks = np.zeros((1, 2, 4, 4), np.float32), np.zeros((1, 4, 4), bool)
    truth = images.copy()
    masks[0, 0, :2] = True
    truth[0, 0, 0, 0], truth[0, 1, 0, 1], truth[0, 1, 3, 3] = 1.0, 6.0, 99.0
    error = content.cell_squared_error(images, truth, masks, deviation=np.array([0.5, 2.0]))
    assert error == pytest.approx([(2.0**2 + 3.0**2) / 4])


def test_no_predictor_beats_the_best_possible_one(world):
    source, responding, truth, p, masks = world
    deviation = content.channel_deviation(source)

    def total(images):
        return content.cell_squared_error(images, truth, masks, deviation=deviation).mean()

    best = total(content.best_possible(source, responding, p))
    assert best < min(
        total(source), total(responding), total(content.best_possible(source, responding, np.full(N, p.mean())))
    )


def test_score_is_zero_at_the_floor_and_one_for_a_copy(world):
    source, responding, truth, p, masks = world
    deviation, blocks = content.channel_deviation(source), Blocks(np.arange(N) // 20, "wells")
    identity = content.cell_squared_error(source, truth, masks, deviation=deviation)
    floor = content.cell_squared_error(content.best_possible(source, responding, p), truth, masks, deviation=deviation)
    settings = {"resamples": 100, "seed": 0}
    assert content.score(floor, floor, identity, blocks, **settings).value == 0
    assert content.score(identity, floor, identity, blocks, **settings).value == 1
    worse = content.score(identity * 1.5, floor, identity, blocks, **settings)
    assert worse.low > 1
    assert content.difference(floor, identity, blocks).high < 0


def test_the_difference_of_pooled_errors_holds_its_level_at_four_wells():
    """Two models of equal error: a verdict that one of them is nearer to the truth would be wrong."""
    rng, wells, covered, draws = np.random.default_rng(1), np.repeat(np.arange(4), 10), 0, 300
    for _ in range(draws):
        errors, others = (np.exp(0.3 * rng.standard_normal(4)[wells] + 0.5 * rng.standard_normal(40)) for _ in range(2))
        found = content.difference(errors, others, Blocks(wells, "wells"))
        assert found.value == pytest.approx(np.sqrt(errors.mean()) - np.sqrt(others.mean()))
        covered += found.low <= 0 <= found.high
    assert covered >= binom.ppf(0.0005, draws, 0.95)


def test_the_truth_itself_has_a_difference_and_one_site_has_no_interval():
    errors = np.arange(1.0, 9.0)
    found = content.difference(np.zeros(8), errors, Blocks(np.arange(8) // 2, "wells"))
    assert found.low < found.value == -np.sqrt(errors.mean()) < found.high < 0
    alone = content.difference(np.zeros(8), errors, Blocks(np.zeros(8, int), "none (one site)"))
    assert (alone.value, alone.low, alone.high) == (found.value, None, None)


def test_pooled_error_is_no_mean_of_errors(world):
    """sqrt(mean e) against mean(sqrt e): they differ wherever cells differ."""
    errors = np.array([1.0, 9.0])
    assert content.pooled_error(errors, Blocks(np.arange(2), "wells"), resamples=10, seed=0).value == np.sqrt(5.0)
    assert content.mean_error(errors) == 2.0


def test_an_empty_mask_is_refused(world):
    source, _, truth, _, masks = world
    with pytest.raises(ValueError, match="1 cell"):
        content.cell_squared_error(source[:1], truth[:1], masks[:1] & False, deviation=np.ones(C))


def test_a_constant_channel_is_refused():
    images = np.stack([np.random.default_rng(0).random((4, 4)), np.full((4, 4), 0.1)])[None].astype(np.float32)
    deviation = content.channel_deviation(images)
    assert deviation[0] > 0
    assert deviation[1] == 0
    with pytest.raises(ValueError, match=r"channel\(s\) \[1\]"):
        content.cell_squared_error(images, images, np.ones((1, 4, 4), bool), deviation=deviation)


def test_a_shifted_nucleus_is_measured():
    yy, xx = np.mgrid[:32, :32]
    dna = np.exp(-(((yy - 16) / 4) ** 2 + ((xx - 14) / 4) ** 2))[None].astype(np.float32)
    agreement = content.nucleus_agreement(np.roll(dna, 3, axis=2), dna, dna > 0.5)
    assert agreement["n"] == 1
    assert agreement["shift_px"] == pytest.approx(3, abs=0.2)
    assert 0.2 < agreement["iou"] < 0.8


def test_errors_by_channel_have_the_mean_that_is_the_cells_error(world):
    source, responding, _, _, masks = world
    deviation = content.channel_deviation(source)
    by_channel = content.channel_squared_error(
        source * [[[1.0]], [[0.5]], [[0.0]]], responding, masks, deviation=deviation
    )
    whole = content.cell_squared_error(source * [[[1.0]], [[0.5]], [[0.0]]], responding, masks, deviation=deviation)
    assert by_channel.shape == (N, C)
    assert by_channel.mean(axis=1) == pytest.approx(whole)


def _spots(*radii, size=48):
    """Draw discs side by side."""
    yy, xx = np.mgrid[:size, :size]
    centres = [(24, 12), (24, 36)][: len(radii)]
    discs = [np.hypot(yy - y, xx - x) < radius for (y, x), radius in zip(centres, radii, strict=True)]
    return np.maximum.reduce(discs).astype(np.float32)[None], discs[0][None]


def test_areas_and_numbers_of_nuclei_are_compared():
    reference, nucleus = _spots(8, 7)
    smaller, _ = _spots(5.66)
    found = content.nucleus_agreement(smaller, reference, nucleus)
    assert found["area_ratio"] == pytest.approx(0.5, abs=0.06)
    assert found["iou"] == pytest.approx(0.5, abs=0.06)
    assert found["shift_px"] == pytest.approx(0, abs=0.3)
    assert (found["count"], found["count_reference"], found["same_count"], found["lost"]) == (1, 2, 0, 0)


def test_a_lost_nucleus_is_counted_as_lost():
    reference, nucleus = _spots(8)
    images = np.concatenate([reference, np.zeros_like(reference)])
    twice, nuclei = np.concatenate([reference] * 2), np.concatenate([nucleus] * 2)
    assert content.nucleus_agreement(images, twice, nuclei)["lost"] == 0.5
    per_cell = content.compare_nuclei(images, twice, nuclei)
    found = content.nucleus_estimates(per_cell, Blocks(np.arange(2), "wells"), resamples=50, seed=0)
    assert found["iou"].n == 1
    assert found["same_count"].value == 0.5
    assert found["count_difference"].value == -0.5
    assert content.nucleus_agreement(images[1:], twice[1:], nuclei[1:]) == {"n": 0}
