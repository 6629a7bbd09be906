"""Claims about telling x_T from noise by a classifier: nominal under N(0, I), and blind to no large deviation."""

import numpy as np
import pytest
from scipy.stats import binom

from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.noise_classifier import FEWEST, halves, noise_features, told_from_noise

WELLS = Blocks(np.arange(64) // 8, "wells")


def test_fresh_noise_is_rejected_at_the_nominal_rate_at_most():
    """30 draws at level 0.05: at most 99.95 % of a binomial; the accuracy is 1/2 within its error over all draws."""
    rng = np.random.default_rng(0)
    tests = [told_from_noise(rng.standard_normal((64, 3, 16, 16)), blocks=WELLS, seed=i) for i in range(30)]
    assert sum(test.p < 0.05 for test in tests) <= binom.ppf(0.9995, 30, 0.05)
    accuracy = np.array([test.effect for test in tests])
    assert abs(accuracy.mean() - 0.5) < 3.5 * accuracy.std(ddof=1) / np.sqrt(30)


@pytest.mark.slow
def test_fresh_noise_is_rejected_at_the_nominal_rate_at_64_px():
    rng = np.random.default_rng(1)
    tests = [told_from_noise(rng.standard_normal((64, 5, 64, 64)), blocks=WELLS, seed=i) for i in range(30)]
    assert sum(test.p < 0.05 for test in tests) <= binom.ppf(0.9995, 30, 0.05)


@pytest.mark.parametrize(
    ("spoil", "least"),
    [(lambda x, r: 1.05 * x, 0.75), (lambda x, r: r.standard_t(10, x.shape) / np.sqrt(1.25), 0.75)],
    ids=["variance", "tails"],
)
def test_a_deviation_that_any_image_shows_is_told(spoil, least):
    rng = np.random.default_rng(2)
    test = told_from_noise(spoil(rng.standard_normal((64, 3, 32, 32)), rng), blocks=WELLS)
    assert test.effect > least
    assert test.p < 1e-4
    assert test.state == "outside"


def test_a_quiet_background_is_told_where_the_masks_are_known():
    rng = np.random.default_rng(3)
    inside = np.zeros((64, 32, 32), bool)
    inside[:, 8:24, 8:24] = True
    x = np.where(inside[:, None], 1.09, 0.97) * rng.standard_normal((64, 3, 32, 32))
    blind, seeing = (told_from_noise(x, blocks=WELLS, foreground=mask) for mask in (None, inside))
    assert seeing.effect > blind.effect
    assert seeing.p < 1e-4


def test_no_well_is_learnt_from_and_judged():
    """Every well lies whole in one half, and neither half is empty or holds nearly all."""
    sizes = (3, 20, 7, 1, 12, 9, 5, 7)
    blocks = Blocks(np.repeat(np.arange(8), sizes), "wells")
    for seed in range(20):
        first = halves(blocks, 64, np.random.default_rng(seed))
        assert all(len(set(first[blocks.codes == code])) == 1 for code in range(8))
        assert 16 <= first.sum() <= 48


def test_features_are_of_each_image_alone_and_finite():
    x = np.random.default_rng(5).standard_normal((6, 2, 8, 8))
    mask = np.zeros((6, 8, 8), bool)  # no foreground at all
    np.testing.assert_allclose(noise_features(x, foreground=mask)[2:4], noise_features(x[2:4], foreground=mask[2:4]))
    assert np.isfinite(noise_features(x, foreground=mask)).all()


def test_too_few_images_are_not_judged_and_one_seed_gives_one_answer():
    x = np.random.default_rng(6).standard_normal((FEWEST, 1, 8, 8))
    assert told_from_noise(x[:-1]) is None
    assert told_from_noise(x, seed=3) == told_from_noise(x, seed=3)
