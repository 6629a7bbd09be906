"""Sums and histograms over wells against numpy on the whole."""

import numpy as np
import pytest

from cellbridge.data.layout import SHAPES, parse_well, row_name, smallest_format, well_name, well_position
from cellbridge.data.overview import Overview, Well, bin_edges, binned, middle, on_plate, shrunk


@pytest.mark.parametrize("full_scale", [255, 4095, 65535])
def test_every_count_lies_in_exactly_the_bin_that_numpy_gives_it(full_scale: int) -> None:
    edges = bin_edges(full_scale)
    counts = np.random.default_rng(0).integers(0, full_scale + 1, (50, 60))
    expected, _ = np.histogram(counts, bins=edges)
    assert edges[0] == 0
    assert edges[-1] == full_scale + 1
    assert (np.diff(edges) > 0).all()
    assert binned(counts, full_scale).tolist() == expected.tolist()
    assert binned(np.array([0, full_scale]), full_scale).sum() == 2


def test_what_is_added_piece_by_piece_is_what_the_whole_would_be() -> None:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (6, 2, 4, 4))
    found = Overview(("DNA", "ER"), 255)
    for number, image in enumerate(images):
        flat = image.reshape(2, -1)
        seen = Well(number < 3, 1, 2, flat.sum(axis=1).astype(float), flat.shape[1])
        found.add("P", "B03" if number < 3 else "C04", seen, np.stack([binned(channel, 255) for channel in flat]))
    maps = found.maps("P", plate_format=96, per_unit=False)
    assert maps["cells"][1, 2] == 6
    assert found.maps("P", plate_format=96, per_unit=True)["cells"][1, 2] == 2
    assert maps["ER"][2, 3] == pytest.approx(images[3:, 1].mean())
    assert np.isfinite(maps["DNA"]).sum() == 2
    assert found.controls("P", plate_format=96).sum() == 1
    assert found.bins.sum(axis=-1).tolist() == [[48, 48], [48, 48]]


@pytest.mark.parametrize("plate_format", sorted(SHAPES))
def test_a_wells_position_is_where_its_name_comes_from(plate_format: int) -> None:
    rows, columns = SHAPES[plate_format]
    for row in range(rows):
        for column in (0, columns - 1):
            assert well_position(well_name(row, column)) == (row, column)
    last = parse_well(f"{row_name(rows - 1)}{columns}", plate_format=plate_format)
    assert on_plate({last: 1.0}, plate_format)[-1, -1] == 1.0


def test_the_smallest_plate_that_has_all_wells_is_taken() -> None:
    assert [smallest_format([well]) for well in ("H12", "I01", "A13", "P24", "Q01", "AF48")] == [
        96,
        384,
        384,
        384,
        1536,
        1536,
    ]


def test_shrinking_keeps_the_mean_and_the_middle_is_the_middle() -> None:
    image = np.arange(2 * 8 * 8, dtype=float).reshape(2, 8, 8)
    assert shrunk(image, step=2).mean() == image.mean()
    assert (middle(image, width_px=6) == image[:, 1:7, 1:7]).all()
    assert middle(image, width_px=4).shape == (2, 4, 4)
