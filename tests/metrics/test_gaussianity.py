"""Claims about the tests of x_T: nominal under N(0, I), powerful against what goes wrong."""

import numpy as np
import pytest
from scipy.fft import dctn, idctn
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


def _rejected(draws, level, shape, **others):
    """Count how often each test rejects fresh noise."""
    rng = np.random.default_rng(0)
    rejected: dict[str, int] = {}
    for _ in range(draws):
        for test in battery(rng.standard_normal(shape), **others):
            rejected[test.name] = rejected.get(test.name, 0) + (test.p < level)
    return rejected


def _outside_binomial(rejected, draws, level):
    low, high = binom.ppf([0.0005, 0.9995], draws, level)
    return {name: count for name, count in rejected.items() if not low <= count <= high}


def test_every_test_rejects_fresh_noise_at_its_nominal_rate(cells):
    """500 draws at level 0.05; 99.9 % binomial interval for each test."""
    x_0, foreground = cells
    rejected = _rejected(500, 0.05, SHAPE, x_0=x_0, foreground=foreground)
    assert len(rejected) == 11
    assert _outside_binomial(rejected, 500, 0.05) == {}


@pytest.mark.slow
def test_every_test_is_nominal_at_64_px_too():
    yy, xx = np.mgrid[:64, :64]
    disc = np.broadcast_to(np.hypot(yy - 32, xx - 32) < 20, (32, 64, 64))
    x_0 = -0.8 + 0.6 * disc[:, None] * np.random.default_rng(5).uniform(0.5, 1.5, (32, 5, 1, 1))
    rejected = _rejected(500, 0.05, (32, 5, 64, 64), x_0=x_0, foreground=disc)
    assert len(rejected) == 11
    assert _outside_binomial(rejected, 500, 0.05) == {}


def _louder(x, x_0, foreground, rng):
    return np.sqrt(1.003) * x


def _image_scale(x, x_0, foreground, rng):
    return x * (1 + 0.02 * rng.standard_normal((len(x), 1, 1, 1)))


def _residual_signal(x, x_0, foreground, rng):
    return x + 0.0064 * x_0


def _low_frequencies(x, x_0, foreground, rng):
    """Put 0.1 % of the energy into the lowest 16 modes of each channel."""
    modes = dctn(x, axes=(-2, -1), norm="ortho")
    share = 0.001 * x[0].size / (16 * x.shape[1])
    modes[..., :4, :4] *= np.sqrt(1 + share)
    return idctn(modes, axes=(-2, -1), norm="ortho")


def _one_band(x, x_0, foreground, rng):
    """Take 2 % of the power between 1/8 and 1/4 cycles per pixel."""
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None, :])
    inside = (radius > 0.125) & (radius <= 0.25)
    return np.fft.ifft2(np.fft.fft2(x) * np.where(inside, np.sqrt(0.98), 1)).real


def _common_factor(x, x_0, foreground, rng):
    return np.sqrt(0.995) * x + np.sqrt(0.005) * rng.standard_normal((len(x), 1, *x.shape[2:]))


def _scaled_background(x, x_0, foreground, rng):
    return np.where(foreground[:, None], x, np.sqrt(0.99) * x)


def _leak(x, x_0, foreground, rng):
    return x + 0.027 * x_0


def _tails(x, x_0, foreground, rng):
    return rng.standard_t(100, x.shape) / np.sqrt(100 / 98)


ALTERNATIVES = (
    (_louder, "variance", 0.7),
    (_image_scale, "scale per image", 1.0),
    (_residual_signal, "shared mean", 1.0),
    (_low_frequencies, "low frequencies", 1.0),
    (_one_band, "radial spectrum", 1.0),
    (_common_factor, "channel correlation", 1.0),
    (_scaled_background, "background / foreground", 1.0),
    (_leak, "correlation with x_0", 1.0),
    (_tails, "kurtosis", 1.0),
)
"""What is wrong with x_T, at a size that 128 images of 5 x 64 x 64 are enough for; which test finds it; and its power at p < 0.01."""


def _images_of_cells(rng):
    yy, xx = np.mgrid[:64, :64]
    disc = np.broadcast_to(np.hypot(yy - 32, xx - 32) < 20, (128, 64, 64))
    return -0.95 + 0.4 * disc[:, None] * rng.uniform(0.5, 1.5, (128, 5, 1, 1)), disc


@pytest.mark.parametrize(("alternative", "name", "power"), ALTERNATIVES)
def test_each_alternative_is_found_at_its_size(alternative, name, power):
    rng = np.random.default_rng(11)
    x_0, foreground = _images_of_cells(rng)
    wrong = alternative(rng.standard_normal(x_0.shape), x_0, foreground, rng)
    found = {test.name: test for test in battery(wrong, x_0=x_0, foreground=foreground)}
    assert found[name].p < 0.01
    assert power < 1 or found[name].p_holm < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("alternative", "name", "power"), ALTERNATIVES)
def test_the_power_is_as_stated(alternative, name, power):
    """20 draws."""
    rng = np.random.default_rng(12)
    x_0, foreground = _images_of_cells(rng)
    p = []
    for _ in range(20):
        wrong = alternative(rng.standard_normal(x_0.shape), x_0, foreground, rng)
        p += [test.p for test in battery(wrong, x_0=x_0, foreground=foreground) if test.name == name]
    assert np.mean(np.array(p) < 0.01) >= power


@pytest.mark.parametrize(
    ("factor", "name"), [(1.03, "variance"), (1.03, "low frequencies"), (0.9, "radial spectrum"), (0.98, "kurtosis")]
)
def test_a_gate_is_passed_by_what_is_harmless_and_not_by_what_is_not(factor, name):
    """The interval over wells decides: a variance of 1.06 is outside, kurtosis that is normal stays inside."""
    x = factor * np.random.default_rng(13).standard_normal((96, *SHAPE[1:]))
    tests = {test.name: test for test in battery(x, blocks=Blocks(np.arange(96) // 8, "wells"), resamples=300)}
    expected = {"variance": "outside", "low frequencies": "unclear", "radial spectrum": "outside", "kurtosis": "inside"}
    assert tests[name].state == expected[name]


def test_noise_that_a_perfect_flow_inverts_to_is_white_and_still_correlates_with_its_image():
    """Of Gaussian data, x_T = (x_0 - mean) / std: every test passes but that of independence, whose effect is 1 and has no gate."""
    x_T = np.random.default_rng(15).standard_normal(SHAPE)
    tests = {test.name: test for test in battery(x_T, x_0=0.3 * x_T - 0.8)}
    assert tests["correlation with x_0"].effect == pytest.approx(1.0, abs=0.01)
    assert tests["correlation with x_0"].state == "described"
    assert min(test.p for name, test in tests.items() if name != "correlation with x_0") > 0.01


def test_effects_have_intervals_that_hold_them(cells):
    x_0, foreground = cells
    x = np.random.default_rng(12).standard_normal(SHAPE)
    tests = battery(x, x_0=x_0, foreground=foreground, blocks=Blocks(np.arange(32) // 4, "wells"), resamples=200)
    with_interval = [test for test in tests if test.low is not None]
    assert len(with_interval) == 10
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
