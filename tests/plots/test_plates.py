"""Plates and histograms show the numbers that they are given, where they belong."""

import numpy as np

from cellbridge.plots.canvas import new_axes
from cellbridge.plots.plates import histogram, plate_map, plate_maps, row_letters


def test_a_well_stands_at_its_row_and_column_and_an_absent_one_is_masked():
    values = np.full((16, 24), np.nan)
    values[1, 2] = 7.0
    axes = plate_map(values, marked=np.isfinite(values))
    drawn = axes.images[0].get_array()
    assert drawn[1, 2] == 7.0
    assert drawn.mask.sum() == 16 * 24 - 1
    assert axes.collections[0].get_offsets().tolist() == [[2.0, 1.0]]
    assert [tick.get_text() for tick in axes.get_yticklabels()][:2] == ["A", "C"]


def test_areas_of_a_histogram_are_one_per_decade():
    edges = np.array([0, 1, 10, 100, 1000])
    axes = histogram(edges, {"control": np.array([0, 3, 0, 1]), "treated": np.array([1, 1, 1, 1])})
    for patch in axes.patches:
        density, shown, _ = patch.get_data()
        assert np.isclose((density * np.diff(np.log10(shown))).sum(), 1.0)


def test_rows_of_the_largest_plate_have_letters():
    assert (row_letters(0), row_letters(25), row_letters(26), row_letters(31)) == ("A", "Z", "AA", "AF")
    assert plate_map(np.ones((32, 48))).get_xticklabels()[1].get_text() == "5"


def test_names_are_drawn_as_they_are_and_on_the_axes_given():
    axes = new_axes(3, 2)
    assert plate_map(np.ones((8, 12)), title=r"$\frac$", ax=axes) is axes
    axes.figure.canvas.draw()  # mathematics would be refused here
    maps = {name: np.ones((8, 12)) for name in "abcd"}
    assert [ax.get_title() for ax in plate_maps(maps, title="$")] == list("abcd")


def test_a_plate_without_values_and_a_group_without_pixels_can_be_drawn():
    plate_map(np.full((8, 12), np.nan)).figure.canvas.draw()
    histogram(np.array([0, 1, 2]), {"treated": np.zeros(2)}, full_scale=255).figure.canvas.draw()
