"""Claims about paths in feature space."""

import numpy as np
import pytest

from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.path_length import path_length


def _arcs(frames, paths=3, radius=2.0):
    """Quarter circles of one radius in planes of their own."""
    angle = np.linspace(0, np.pi / 2, frames)
    found = np.zeros((paths, frames, 2 * paths))
    for path in range(paths):
        found[path, :, 2 * path], found[path, :, 2 * path + 1] = radius * np.cos(angle), radius * np.sin(angle)
    return found


def test_a_straight_path_has_the_energy_of_its_displacement_and_no_detour():
    start, end = np.random.default_rng(0).standard_normal((2, 5, 1, 4))
    found = path_length(start + np.linspace(0, 1, 9)[None, :, None] * (end - start))
    assert found.energy.value == pytest.approx(((end - start) ** 2).sum(axis=(1, 2)).mean(), rel=1e-12)
    assert found.length.value == pytest.approx(found.displacement.value, rel=1e-12)
    assert found.detour.value == pytest.approx(1.0, rel=1e-12)


def test_a_quarter_circle_has_the_length_of_its_arc():
    found = path_length(_arcs(200))
    assert found.length.value == pytest.approx(np.pi, rel=1e-4)
    assert found.energy.value == pytest.approx(np.pi**2, rel=1e-4)
    assert found.detour.value == pytest.approx(np.pi / np.sqrt(8), rel=1e-4)
    assert found.frames == 200


def test_uneven_speed_costs_energy_and_no_length():
    """f = s² in one dimension: ∫ (2s)² ds = 4/3; as a function of the time at which its frames lie, it is even."""
    s = np.linspace(0, 1, 2001)
    found = path_length((s**2)[None, :, None])
    assert found.energy.value == pytest.approx(4 / 3, rel=1e-5)
    assert found.length.value == pytest.approx(1.0)
    assert path_length((s**2)[None, :, None], times=s**2).energy.value == pytest.approx(1.0)


def test_noise_along_a_path_is_a_detour_and_a_path_that_jumps_costs_more_energy():
    arcs = _arcs(20)
    noisy = arcs + 0.1 * np.random.default_rng(0).standard_normal(arcs.shape)
    assert path_length(noisy).detour.value > path_length(arcs).detour.value + 0.05
    jumping = np.repeat(arcs[:, [0, -1]], 10, axis=1)
    assert path_length(jumping).energy.value > 5 * path_length(arcs).energy.value
    assert path_length(jumping).detour.value == pytest.approx(1.0)


def test_direction_and_scale_of_time_and_turns_of_the_features_change_nothing():
    arcs, turn = _arcs(15), np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    expected = path_length(arcs, times=np.linspace(0, 1, 15)).energy.value
    assert path_length(arcs[:, ::-1], times=np.linspace(999, 0, 15)).energy.value == pytest.approx(expected, rel=1e-12)
    assert path_length(arcs @ turn).energy.value == pytest.approx(expected, rel=1e-12)


def test_the_interval_is_over_wells_and_a_closed_path_has_no_detour():
    frames, wells = np.random.default_rng(0).standard_normal((12, 5, 3)), Blocks(np.arange(12) // 3, "wells")
    found = path_length(frames, blocks=wells, resamples=200).energy
    assert found.low < found.value < found.high
    closed = np.concatenate([frames, frames[:, :1]], axis=1)
    assert path_length(closed).detour is None
    assert "not_computed" in path_length(closed).to_dict()["detour"]


@pytest.mark.parametrize("times", [[0.0, 0.5, 0.5], [0.0, 1.0], [0.0, 1.0, 0.5]])
def test_times_that_do_not_fit_are_refused(times):
    with pytest.raises(ValueError, match="expected 3 strictly rising or falling"):
        path_length(np.zeros((2, 3, 4)), times=times)
