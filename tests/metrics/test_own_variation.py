"""Claims about how much of what is a cell's own is left in its translation."""

import numpy as np
import pytest

from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.own_variation import own_variation

RNG = np.random.default_rng(0)
PLATES = np.repeat(["P1", "P2"], 300)
CELLS = RNG.standard_normal((600, 2, 4, 4)) + np.where(PLATES == "P1", 0.0, 3.0)[:, None, None, None]
SETTINGS = {"plates": PLATES, "blocks": Blocks(np.arange(600) // 20, "wells"), "resamples": 200, "seed": 0}


def test_noise_of_the_cells_own_size_leaves_the_root_of_a_half():
    found = own_variation(CELLS + RNG.standard_normal(CELLS.shape), CELLS, **SETTINGS)
    assert found.value == pytest.approx(0.5**0.5, abs=0.01)
    assert found.low < 0.5**0.5 < found.high


def test_pearson_of_numpy_on_one_plate():
    one = {**SETTINGS, "plates": np.full(600, "P1")}
    outputs = 0.5 * CELLS + RNG.standard_normal(CELLS.shape)
    expected = np.corrcoef((outputs - outputs.mean(axis=0)).ravel(), (CELLS - CELLS.mean(axis=0)).ravel())[0, 1]
    assert own_variation(outputs, CELLS, **one).value == pytest.approx(expected)


def test_one_change_for_every_cell_of_a_plate_and_a_change_of_contrast_leave_all():
    change = np.where(PLATES == "P1", 1.0, -2.0)[:, None, None, None] * RNG.standard_normal((2, 4, 4))
    assert own_variation(0.3 * CELLS + change, CELLS, **SETTINGS).value == pytest.approx(1.0)


def test_cells_of_the_plate_by_lot_leave_nothing_though_plates_differ():
    by_lot = np.concatenate([RNG.permutation(CELLS[:300]), RNG.permutation(CELLS[300:])])
    assert own_variation(by_lot, CELLS, **SETTINGS).value == pytest.approx(0.0, abs=0.03)


def test_outputs_that_are_all_alike_have_nothing_to_correlate():
    assert own_variation(np.zeros_like(CELLS), CELLS, **SETTINGS) is None
