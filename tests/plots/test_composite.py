"""Claims about cells in stain colours."""

import numpy as np
import pytest

from cellbridge.plots.composite import composite, contrast_limits, show_cell, stain_colour, value_range

LIMITS = np.array([[-1.0, 1.0], [-1.0, 1.0]])


def test_one_stain_at_full_scale_has_its_colour_and_none_is_black():
    image = np.full((2, 4, 4), -1.0)
    assert (composite(image, ["DNA", "ER"], LIMITS) == 0).all()
    image[0] = 1.0
    assert composite(image, ["DNA", "ER"], LIMITS)[0, 0] == pytest.approx(stain_colour("DNA"))


def test_colours_stay_in_range_whatever_the_values():
    image = np.random.default_rng(0).uniform(-9, 9, (5, 8, 8))
    limits = np.tile([-1.0, 1.0], (5, 1))
    shown = composite(image, ["DNA", "ER", "RNA", "AGP", "Mito"], limits)
    assert shown.shape == (8, 8, 3)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_a_stain_has_one_colour_by_any_of_its_names_and_unknown_ones_differ():
    assert (stain_colour("dapi") == stain_colour("DNA")).all()
    assert (stain_colour("F-actin") == stain_colour("Actin")).all()
    assert (stain_colour("new", position=0) != stain_colour("other", position=1)).any()


def test_limits_are_percentiles_of_each_channel_over_all_images():
    images = np.stack([np.linspace(0, 1, 1001), np.linspace(0, 10, 1001)])[None, :, :, None]
    assert contrast_limits(images, black=10, white=90) == pytest.approx(np.array([[0.1, 0.9], [1.0, 9.0]]))


def test_a_picture_does_not_depend_on_the_others_beside_it():
    """A dim cell stays dim next to a bright one: limits are given, never taken from what is shown."""
    images = np.random.default_rng(1).uniform(-1, 1, (3, 2, 4, 4))
    together = composite(images, ["DNA", "ER"], LIMITS)
    assert (together[1] == composite(images[1], ["DNA", "ER"], LIMITS)).all()


def test_a_cell_is_shown_with_its_range_and_a_scale_bar():
    image = np.linspace(-1, 1, 2 * 32 * 32).reshape(2, 32, 32)
    axes = show_cell(image, ["DNA", "ER"], LIMITS, title="a", pixel_um=0.5)
    assert axes.get_title() == f"a\n{value_range(image)}" == "a\n-1.00 / 0.00 / 1.00"
    assert value_range(np.array([235, 1292.4, 26168])) == "235 / 9,232 / 26,168"
    assert [text.get_text() for text in axes.texts] == ["5 µm"]
    (bar,) = axes.lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(10)


def test_without_a_pixel_size_there_is_no_scale_bar():
    assert not show_cell(np.zeros((2, 8, 8)), ["DNA", "ER"], LIMITS).lines
