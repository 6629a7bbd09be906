from itertools import pairwise

import numpy as np
import pytest

from cellbridge.plots.composite import composite
from cellbridge.plots.trajectory import Way, moving, strip

CHANNELS = ("DNA", "ER")
LIMITS = np.array([[-1.0, 1.0], [-1.0, 1.0]])


def ways(*frames: int) -> dict[str, Way]:
    """Return ways of two cells with so many frames each, brighter from frame to frame."""
    found = {}
    for number, count in enumerate(frames):
        level = np.linspace(-0.5, 0.5, count)[None, :, None, None, None]
        found[f"target {number}"] = Way(np.linspace(0, 1, count).tolist(), np.broadcast_to(level, (2, count, 2, 8, 8)))
    return found


def test_every_frame_of_every_cell_stands_at_its_place_with_its_time() -> None:
    given = ways(3, 4)
    ax = strip(given, CHANNELS, LIMITS, titles=["cell a", "a cell with a very long name"], pixel_um=1.0)
    (image,) = ax.get_images()
    canvas, text = image.get_array(), round(0.2 * 8)
    row = 0
    for way in given.values():
        for cell in way.images:
            top = row * (8 + text + 2) + text
            for column, frame in enumerate(cell):
                shown = canvas[top : top + 8, column * 10 : column * 10 + 8]
                assert np.allclose(shown, composite(frame, CHANNELS, LIMITS))
            row += 1
    words = [part.get_text() for part in ax.texts]
    assert words.count("0.33") == 2
    assert words.count("0.50") == 2
    assert "target 1\ncell a" in words
    assert any(word.startswith("target 0\n…") for word in words)
    assert any(word.endswith("µm") for word in words)


def test_a_moving_picture_has_a_picture_for_each_time_and_waits_at_the_end_of_a_shorter_way() -> None:
    pictures = moving(ways(2, 4), CHANNELS, LIMITS)
    assert len(pictures) == 4
    assert {picture.shape for picture in pictures} == {pictures[0].shape}
    assert pictures[0].dtype == np.uint8
    assert pictures[0].shape[2] == 3
    still = [np.array_equal(a[: len(a) // 3], b[: len(b) // 3]) for a, b in pairwise(pictures)]
    assert still == [False, True, True]
    assert not np.array_equal(pictures[-1], pictures[-2])


@pytest.mark.parametrize("pixel_um", [None, 0.5])
def test_a_scale_bar_is_drawn_where_the_pixels_size_is_known(pixel_um: float | None) -> None:
    ax = strip(ways(2), CHANNELS, LIMITS, pixel_um=pixel_um)
    assert bool(ax.lines) == (pixel_um is not None)
