"""Claims about difference maps and matrices: what is not changed is white, one scale holds for all, and the sign shows."""

import numpy as np
import pytest

from cellbridge.plots.differences import difference_limit, difference_maps, matrix
from cellbridge.plots.panels import cell_panels

SOURCE = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 2, 16, 16))


def _picture(canvas, *, block, stain, column):
    top = block * (2 * 18 - 2 + 3) + stain * 18
    return canvas[top : top + 16, column * 18 : column * 18 + 16]


def test_what_is_not_changed_is_white_and_signs_have_their_colours():
    others = {"copy": SOURCE, "brighter": SOURCE + 0.2, "darker": SOURCE - 0.2}
    canvas = np.asarray(difference_maps(SOURCE, others, ["DNA", "ER"]).images[0].get_array())
    unchanged, red, blue = (_picture(canvas, block=block, stain=1, column=2) for block in range(3))
    assert np.ptp(unchanged, axis=-1).max() < 0.01
    assert unchanged.min() > 0.95
    assert (red[..., 0] > red[..., 2] + 0.2).all()
    assert (blue[..., 2] > blue[..., 0] + 0.2).all()


def test_one_scale_holds_for_all_blocks_stains_and_cells():
    small, large = SOURCE + 0.05, SOURCE.copy()
    large[0, 0] += 0.8
    alone = np.asarray(difference_maps(SOURCE, {"small": small}, ["DNA", "ER"], limit=0.8).images[0].get_array())
    both = difference_maps(SOURCE, {"small": small, "large": large}, ["DNA", "ER"], limit=0.8)
    canvas = np.asarray(both.images[0].get_array())
    np.testing.assert_array_equal(canvas[: alone.shape[0]], alone)
    assert difference_limit({"a": small - SOURCE, "b": large - SOURCE}) == pytest.approx(0.8)


def test_the_mean_change_of_each_stain_stands_beside_it():
    axes = difference_maps(SOURCE, {"shifted": SOURCE + np.array([0.1, -0.3])[:, None, None]}, ["DNA", "ER"])
    assert {"DNA", "ER", "shifted", "0.100", "0.300"} <= {text.get_text() for text in axes.texts}


def test_rows_of_other_cells_have_no_difference():
    paired = {"source": SOURCE, "nearest real taxol@1": SOURCE[::-1]}
    assert "differences" not in cell_panels(paired, {}, ["DNA", "ER"], titles=["a"], pixel_um=None)
    drawn = cell_panels({**paired, "ddib": SOURCE}, {}, ["DNA", "ER"], titles=["a"], pixel_um=None)["differences"]
    words = {text.get_text() for text in drawn.axes.texts}
    assert "ddib" in words
    assert "nearest real taxol@1" not in words


def test_a_matrix_gives_its_numbers_and_leaves_out_what_was_not_computed():
    axes = matrix(np.array([[0.9, 0.1], [np.nan, -0.25]]), rows=["a", "b"], columns=["a", "b"])
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.10", "–", "−0.25"]
