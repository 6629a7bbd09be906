"""Cells drawn by lot: of the plate that was asked for, and each as often as another or once more."""

import numpy as np

from cellbridge.evaluation.arms import by_lot

PLATES = np.array(["P1", "P2"] * 10, dtype=object)
POOL = np.arange(6, 14)


def test_every_cell_is_of_its_plate_and_none_is_drawn_twice_before_all_were_once():
    wanted = np.array(["P2"] * 3 + ["P1"] * 10, dtype=object)
    rows = by_lot(wanted, POOL, PLATES, seed=0)
    assert (PLATES[rows] == wanted).all()
    assert set(rows) <= set(POOL)
    assert len(set(rows[:3])) == 3
    assert sorted(np.unique(rows[3:], return_counts=True)[1]) == [2, 2, 3, 3]


def test_the_lot_is_a_function_of_the_seed_and_of_the_plates_own_cells():
    wanted = np.array(["P1", "P2", "P1", "P2"], dtype=object)
    rows = by_lot(wanted, POOL, PLATES, seed=1)
    assert (rows == by_lot(wanted, POOL, PLATES, seed=1)).all()
    assert any((rows != by_lot(wanted, POOL, PLATES, seed=seed)).any() for seed in range(2, 6))


def test_each_cell_of_the_plate_is_as_likely():
    wanted = np.array(["P1"], dtype=object)
    drawn = [by_lot(wanted, POOL, PLATES, seed=seed)[0] for seed in range(2000)]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 4
    assert counts.min() > 430  # 500 in the mean, 3.6 standard deviations


def test_a_plate_without_a_cell_has_none():
    assert by_lot(np.array(["P3", "P1"], dtype=object), POOL, np.append(PLATES, "P3"), seed=0)[0] == -1
