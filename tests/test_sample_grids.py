"""Grids of images that a training draws."""

import numpy as np

from cellbridge.sample_grids import CELLS, evenly


def test_cells_are_shown_evenly_over_all_of_a_condition():
    names = np.array(["DMSO", "taxol@1"] * 50, dtype=object)
    rows = evenly(names, "taxol@1")
    assert rows.tolist() == [1, 19, 39, 59, 79, 99]
    assert len(rows) == CELLS
    assert evenly(names[:4], "taxol@1").tolist() == [1, 3]
