"""Claims about the tests of x_T: nominal under N(0, I), powerful against what goes wrong."""

import numpy as np
import pytest
from scipy.stats import binom

from cellbridge.metrics.gaussianity import Test, battery, holm, radial_spectrum
from cellbridge.metrics.intervals import Blocks

SHAPE = (32, 5, 16, 16)


@pytest.fixture(scope="module")
def cells():
    """Smooth source images with a cell in the middle."""
    yy, xx = np.mgrid[:16, :16]
    disc = np.hypot(yy - 8, xx - 8) < 5
    rng = np.random.default_rng(5)
    x_0 = -0.8 + 0.6 * disc * rng.uniform(0.5, 1.5, (SHAPE[0], SHAPE[1], 1, 1))
    return x_0, np.broadcast_to(disc, (SHAPE[0], 16, 16))


def test_every_test_rejects_fresh_noise_at_its_nominal_rate(cells):
    """500 draws at level 0.05; 99.9 % binomial interval for each test, corrected for the number of tests."""
    x_0, foreground = cells
    rng, draws, level = np.random.default_rng(0), 500, 0.05
    rejected: dict[str, int] = {}
    for _ in range(draws):
        for test in battery(rng.standard_normal(SHAPE), x_0=x_0, foreground=foreground):
            rejected[test.name] = rejected.get(test.name, 0) + (test.p < level)
    low, high = binom.ppf([0.0005, 0.9995], draws, level)
    assert len(rejected) == 10
    assert {name: count for name, count in rejected.items() if not low <= count <= high} == {}


def _scaled_background(x, x_0, foreground):
    return np.where(foreground[:, None], x, 0.95 * x)


def _leak(x, x_0, foreground):
    return x + 0.05 * x_0


def _common_factor(x, x_0, foreground):
    return np.sqrt(0.95) * x + np.sqrt(0.05) * np.random.default_rng(1).standard_normal((len(x), 1, 16, 16))


def _low_frequencies(x, x_0, foreground):
    rows = np.arange(16) + 0.5
    mode = np.cos(np.pi * rows / 16)[:, None] * np.cos(np.pi * rows / 16)
    return x + 0.2 * mode * np.random.default_rng(2).standard_normal((*x.shape[:2], 1, 1))


def _tails(x, x_0, foreground):
    return np.random.default_rng(3).standard_t(12, x.shape) / np.sqrt(12 / 10)


def _image_scale(x, x_0, foreground):
    return x * (1 + 0.06 * np.random.default_rng(4).standard_normal((len(x), 1, 1, 1)))


def _shared(x, x_0, foreground):
    return x + 0.1 * np.random.default_rng(6).standard_normal(x.shape[1:])


@pytest.mark.parametrize(
    ("alternative", "name"),
    [
        (_scaled_background, "background / foreground"),
        (_leak, "correlation with x_0"),
        (_common_factor, "channel correlation"),
        (_low_frequencies, "low frequencies"),
        (_tails, "kurtosis"),
        (_image_scale, "scale per image"),
        (_shared, "shared mean"),
        (lambda x, *_: 1.05 * x, "variance"),
    ],
)
def test_each_alternative_is_found(cells, alternative, name):
    """128 images, as many as the sheet's powers are stated for."""
    x_0, foreground = (np.concatenate([part] * 4) for part in cells)
    x = np.random.default_rng(11).standard_normal(x_0.shape)
    found = {test.name: test for test in battery(alternative(x, x_0, foreground), x_0=x_0, foreground=foreground)}
    assert found[name].p_holm < 1e-3
    assert found[name].state in ("outside", "described")


def test_effects_have_intervals_that_hold_them(cells):
    x_0, foreground = cells
    x = np.random.default_rng(12).standard_normal(SHAPE)
    tests = battery(x, x_0=x_0, foreground=foreground, blocks=Blocks(np.arange(32) // 4, "wells"), resamples=200)
    with_interval = [test for test in tests if test.low is not None]
    assert len(with_interval) == 9
    assert all(test.low <= test.high for test in with_interval)
    variance = next(test for test in tests if test.name == "variance")
    assert variance.low < variance.effect < variance.high


def test_an_effect_is_outside_its_gate_only_where_its_whole_interval_is():
    def state(effect, low, high):
        return Test("variance", "", 0.5, 1.0, effect, low, high, (0.98, 1.02)).state

    assert state(1.03, 1.01, 1.05) == "unclear"
    assert state(1.05, 1.03, 1.07) == "outside"
    assert state(1.05, None, None) == "outside"
    assert state(1.01, 0.9, 1.1) == "inside"


def test_holm_agrees_with_the_worked_example():
    """Four p-values; step-down factors 4, 3, 2, 1, made monotone."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_white_noise_has_a_flat_spectrum_of_one():
    _, power, error = radial_spectrum(np.random.default_rng(0).standard_normal((64, 3, 32, 32)))
    assert (np.abs(power - 1) < 4.5 * error).all()


def test_x_T_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite: False"):
        battery(np.full(SHAPE, np.nan))
