"""Claims about figures: they draw on the axes given, leave pyplot alone, and show what they are told."""

import sys

import numpy as np
import pytest

from cellbridge.metrics.gaussianity import radial_spectrum
from cellbridge.plots.canvas import new_axes
from cellbridge.plots.composite import composite
from cellbridge.plots.curves import loss_curve, running_mean
from cellbridge.plots.latents import quantiles, spectrum
from cellbridge.plots.montage import montage, stains, triptychs
from cellbridge.plots.panels import cell_panels, noise_panels

CHANNELS, LIMITS = ["DNA", "ER"], np.array([[-1.0, 1.0], [-1.0, 1.0]])
CELLS = np.random.default_rng(0).uniform(-1, 1, (4, 2, 16, 16))


def _words(axes):
    return {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("draw", [montage, triptychs])
def test_rows_are_named_and_pictures_lie_where_they_belong(draw):
    axes = draw({"source": CELLS, "translated": CELLS[::-1]}, CHANNELS, LIMITS)
    assert {"source", "translated", "■ DNA", "■ ER"} <= _words(axes)
    canvas = axes.images[0].get_array()
    assert (canvas[:16, :16] == composite(CELLS[0], CHANNELS, LIMITS)).all()
    assert (canvas[:16, 18:34] == composite(CELLS[1], CHANNELS, LIMITS)).all()


def test_triptychs_give_the_range_of_every_picture():
    words = _words(triptychs({"source": CELLS}, CHANNELS, LIMITS, titles=["c1", "c2", "c3", "c4"]))
    assert {"c1", "c2", "c3", "c4"} <= words
    assert sum(word.count("/") == 2 for word in words) == 4


def test_stains_show_every_channel_and_their_sum():
    axes = stains({"source": CELLS[0]}, CHANNELS, LIMITS)
    canvas = axes.images[0].get_array()
    assert canvas.shape[1] == 3 * 18 - 2
    assert (canvas[:16, 36:52] == composite(CELLS[0], CHANNELS, LIMITS)).all()
    assert set(CHANNELS) <= _words(axes)


def test_plots_draw_on_the_axes_they_are_given():
    axes = new_axes(3, 2)
    assert loss_curve(np.arange(1, 40), 1 / np.arange(1, 40), label="loss", ax=axes) is axes
    assert quantiles(np.random.default_rng(0).standard_normal(1000), ax=axes) is axes
    assert spectrum(*radial_spectrum(CELLS), ax=axes) is axes


def test_figures_leave_pyplot_alone():
    panels = cell_panels(
        {"source": CELLS, "translated": CELLS}, {"real": CELLS}, CHANNELS, titles=["a", "b"], pixel_um=None
    )
    panels |= noise_panels({"ddib": CELLS}, {"ddib": radial_spectrum(CELLS)})
    assert set(panels) == {"cells", "stains", "montage", "differences", "spectrum", "quantiles"}
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_the_running_mean_looks_back_only():
    assert running_mean(np.array([1.0, 3.0, 5.0, 7.0]), window=2).tolist() == [1.0, 2.0, 4.0, 6.0]
