"""Claims about the distance of x_T to N(0, I) in blocks of few dimensions."""

import numpy as np
import pytest
import scipy.linalg
from scipy.stats import binom

from cellbridge.metrics.noise_blocks import frechet_blocks, frechet_to_normal


def test_a_scaled_and_shifted_gaussian_has_its_closed_form_distance():
    """|mean|² + d (std - 1)², up to the bias d / n."""
    x = 0.5 + 1.3 * np.random.default_rng(0).standard_normal((200_000, 4))
    assert frechet_to_normal(x) == pytest.approx(4 * 0.25 + 4 * 0.09, rel=0.01)


def test_it_agrees_with_a_matrix_square_root():
    x = np.random.default_rng(1).standard_normal((30, 5)) @ np.random.default_rng(2).standard_normal((5, 5))
    covariance = np.cov(x, rowvar=False)
    root = scipy.linalg.sqrtm(covariance).real
    expected = (x.mean(axis=0) ** 2).sum() + np.trace(covariance + np.eye(5) - 2 * root)
    assert frechet_to_normal(x) == pytest.approx(expected)


def test_the_bias_of_noise_is_what_theory_says():
    """E ≈ d / n + d (d + 1) / 4 n, for d = 16 low modes and n = 400."""
    low = frechet_blocks(np.random.default_rng(3).standard_normal((400, 2, 8, 8)))[0]
    assert low.bias == pytest.approx(16 / 400 + 16 * 17 / 1600, rel=0.05)
    assert abs(low.excess) < 0.3 * low.bias


def test_fresh_noise_is_rejected_at_the_nominal_rate():
    """100 draws at level 0.1, each by 19 draws of noise."""
    rng = np.random.default_rng(4)
    found = [frechet_blocks(rng.standard_normal((24, 2, 8, 8)), draws=19, seed=i) for i in range(100)]
    low, high = binom.ppf([0.0005, 0.9995], 100, 0.1)
    for block in range(3):
        assert low <= sum(blocks[block].p <= 0.1 for blocks in found) <= high


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_deviation_of_a_block_is_found_in_it(block):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((128, 3, 16, 16))
    if block == 0:
        x += 0.5 * np.cos(np.pi * (np.arange(16) + 0.5) / 16)
    elif block == 1:
        x += 0.1 * rng.standard_normal((128, 3, 1, 1))
    else:
        x = np.sqrt(0.8) * x + np.sqrt(0.2) * rng.standard_normal((128, 1, 16, 16))
    found = frechet_blocks(x)[block]
    assert found.p == 0.01
    assert found.excess > 3 * found.bias


def test_a_single_image_is_refused():
    with pytest.raises(ValueError, match="a covariance needs two or more"):
        frechet_blocks(np.zeros((1, 2, 8, 8)))
