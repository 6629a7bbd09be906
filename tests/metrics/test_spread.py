"""Claims about the spread of draws of one cell, and of the truth given a cell."""

import numpy as np
import pytest

from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.spread import deviation_estimate, drawn_variance, response_variance, variance_ratio

MASKS = np.zeros((200, 6, 6), dtype=bool)
MASKS[:, 1:5, 1:5] = True
DEVIATION = np.array([0.5, 2.0])
BLOCKS = Blocks(np.arange(200) // 10, "wells")
SETTINGS = {"resamples": 200, "seed": 0}


def _world(draws, *, seed=0):
    """Cells that respond or not, as chance has it, drawn as often as asked."""
    rng = np.random.default_rng(seed)
    source = rng.standard_normal((200, 2, 6, 6))
    responding = source + rng.standard_normal((200, 2, 1, 1))
    p = rng.uniform(0.1, 0.9, 200)
    answers = rng.random((200, draws)) < p[:, None]
    images = np.where(answers[:, :, None, None, None], responding[:, None], source[:, None])
    return source, responding, p, images


def test_draws_of_the_true_law_have_the_variance_of_the_truth():
    source, responding, p, images = _world(400)
    drawn = drawn_variance(images, MASKS, deviation=DEVIATION)
    known = response_variance(source, responding, p, MASKS, deviation=DEVIATION)
    ratio = variance_ratio(drawn, known, BLOCKS, **SETTINGS)
    assert ratio.value == pytest.approx(1.0, abs=0.03)
    assert ratio.low < 1 < ratio.high


def test_two_draws_are_no_more_biased_than_many():
    found = [drawn_variance(_world(2, seed=seed)[3], MASKS, deviation=DEVIATION).mean() for seed in range(20)]
    of_seeds = [response_variance(*_world(2, seed=seed)[:3], MASKS, deviation=DEVIATION).mean() for seed in range(20)]
    assert np.mean(found) == pytest.approx(np.mean(of_seeds), rel=0.1)  # half of it, were it biased


def test_variance_is_numpys_in_units_of_each_stain_inside_the_mask():
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((3, 5, 2, 6, 6))
    expected = (draws.var(axis=1, ddof=1) / DEVIATION[:, None, None] ** 2)[:, :, 1:5, 1:5].mean(axis=(1, 2, 3))
    assert drawn_variance(draws, MASKS[:3], deviation=DEVIATION) == pytest.approx(expected)


def test_one_answer_for_every_draw_has_no_spread():
    source, responding, p, images = _world(3)
    drawn = drawn_variance(np.repeat(images[:, :1], 3, axis=1), MASKS, deviation=DEVIATION)
    known = response_variance(source, responding, p, MASKS, deviation=DEVIATION)
    assert deviation_estimate(drawn, BLOCKS, **SETTINGS).value == pytest.approx(0, abs=1e-9)
    assert variance_ratio(drawn, known, BLOCKS, **SETTINGS).value == pytest.approx(0, abs=1e-9)


def test_where_the_truth_leaves_nothing_to_chance_there_is_no_ratio():
    _, _, _, images = _world(3)
    drawn = drawn_variance(images, MASKS, deviation=DEVIATION)
    assert variance_ratio(drawn, np.zeros(200), BLOCKS, **SETTINGS) is None
    with pytest.raises(ValueError, match="needs two or more"):
        drawn_variance(images[:, :1], MASKS, deviation=DEVIATION)
