"""Claims about precision, recall, density and coverage."""

import numpy as np
import pytest
import torch

from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.neighbours import expected_coverage, precision_recall_density_coverage, radii

NAMES = ("precision", "recall", "density", "coverage")


def _draw(seed, n=60, d=4, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).standard_normal((n, d))


def _values(found):
    return [getattr(found, name).value for name in NAMES]


def _by_definition(real, generated, k):
    """Naeem et al. 2020, eq. 3 to 6, as loops."""
    n, m = len(real), len(generated)
    of_real = [np.sort(np.linalg.norm(real - row, axis=1))[k] for row in real]
    of_generated = [np.sort(np.linalg.norm(generated - row, axis=1))[k] for row in generated]
    inside = np.array([[np.linalg.norm(g - real[i]) <= of_real[i] for i in range(n)] for g in generated])
    recalled = np.array([[np.linalg.norm(r - generated[j]) <= of_generated[j] for j in range(m)] for r in real])
    return [inside.any(1).mean(), recalled.any(1).mean(), inside.sum() / (k * m), inside.any(0).mean()]


@pytest.mark.parametrize(("n", "m", "k", "shift"), [(60, 60, 5, 0.0), (40, 70, 3, 1.0), (50, 20, 1, 0.5)])
def test_all_four_are_their_definitions(n, m, k, shift):
    real, generated = _draw(0, n), _draw(1, m, shift=shift)
    found = precision_recall_density_coverage(real, generated, k=k)
    assert _values(found) == pytest.approx(_by_definition(real, generated, k), abs=1e-12)


def test_precision_and_recall_are_torch_fidelitys():
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, generated = _draw(0, 200, 16), _draw(1, 150, 16, shift=0.2, scale=0.8)
    expected = calculate_precision_recall_full(torch.from_numpy(generated), torch.from_numpy(real), 3)
    found = precision_recall_density_coverage(real, generated, k=3)
    assert _values(found)[:2] == pytest.approx(expected, abs=1e-6)


def test_two_draws_of_one_distribution_have_density_one_and_the_coverage_to_expect():
    found = np.array([_values(precision_recall_density_coverage(_draw(2 * i), _draw(2 * i + 1))) for i in range(200)])
    error = found.std(axis=0) / np.sqrt(len(found))
    assert abs(found[:, 2].mean() - 1) < 3 * error[2]
    assert abs(found[:, 3].mean() - expected_coverage(60, 60, k=5)) < 3 * error[3]


def test_the_same_cells_lie_in_one_another_and_far_ones_do_not():
    real = _draw(0)
    same, far = precision_recall_density_coverage(real, real), precision_recall_density_coverage(real, real + 100)
    assert _values(same)[:2] == [1.0, 1.0]
    assert same.coverage.value == 1.0
    assert _values(far) == [0.0] * 4


def test_one_good_cell_over_and_over_is_precise_and_covers_little():
    real = _draw(0, 100)
    found = precision_recall_density_coverage(real, np.repeat(real[:1], 100, axis=0))
    assert found.precision.value == 1.0
    assert found.coverage.value < 0.3
    assert found.recall.value <= 0.01


def test_real_cells_that_are_copies_have_balls_of_radius_zero_which_hold_their_copies_only():
    copies = np.repeat(_draw(0, 10, 50) + 1e4, 7, axis=0)
    assert radii(copies, k=5).max() == 0
    found = precision_recall_density_coverage(copies, np.concatenate([copies, copies + 1e-3]))
    assert found.precision.value == 0.5
    assert found.coverage.value == 1.0


def test_intervals_are_over_wells_and_absent_without_them():
    real, generated, wells = _draw(0), _draw(1, shift=0.5), Blocks(np.arange(60) // 10, "wells")
    found = precision_recall_density_coverage(real, generated, blocks=(wells, wells), resamples=200)
    for name in NAMES:
        part = getattr(found, name)
        assert part.low <= part.value <= part.high
        assert (part.n, part.resampled) == (60, "wells")
    assert precision_recall_density_coverage(real, generated).recall.low is None
    assert found.to_dict()["precision"]["n"] == 60


def test_order_turns_and_offsets_change_nothing():
    real, generated = _draw(0), _draw(1, shift=0.5)
    turn = np.linalg.qr(_draw(2, 4))[0]
    expected = _values(precision_recall_density_coverage(real, generated))
    found = precision_recall_density_coverage(real[::-1] @ turn + 1e3, np.roll(generated, 5, axis=0) @ turn + 1e3)
    assert _values(found) == pytest.approx(expected, abs=1e-12)


def test_no_more_cells_than_neighbours_are_refused():
    with pytest.raises(ValueError, match="more than k = 5 are needed"):
        precision_recall_density_coverage(_draw(0, 5), _draw(1))
