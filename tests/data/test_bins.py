"""The bins that counts become under the intensity map, at every bit depth: where a dequantised value lies, and how wide its bin is."""

import numpy as np
import pytest
import torch

from cellbridge.data.dataset import CellData
from cellbridge.data.intensity import IntensityMaps

DEPTHS = [(255, 12, 90), (4095, 200, 1800), (65535, 900, 11264)]


def cells(full_scale: int, median: float, p999: float) -> CellData:
    """Four cells of evenly spread counts up to the full scale, black and full scale among them."""
    counts = np.linspace(0, full_scale, 4 * 2 * 8 * 8).round().astype(np.uint16).reshape(4, 2, 8, 8)
    maps = IntensityMaps.from_dict(
        {"P": {c: {"median": median, "p999": p999} for c in ("DNA", "ER")}},
        channels=("DNA", "ER"),
        full_scale=full_scale,
    )
    return CellData(counts, plates=["P"] * 4, intensity=maps, labels=torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(("full_scale", "median", "p999"), DEPTHS)
def test_a_value_dequantised_by_one_count_lies_in_the_bin_of_that_count(full_scale, median, p999):
    data, rows = cells(full_scale, median, p999), torch.arange(4)
    images = data.batch(rows, torch.Generator().manual_seed(0)).double()
    lower, upper = data.bin_edges(images, rows)
    assert ((lower < images) & (images < upper)).all()
    assert torch.isneginf(lower).any()
    assert torch.isposinf(upper).any()


@pytest.mark.parametrize(("full_scale", "median", "p999"), DEPTHS)
def test_bins_are_as_wide_as_the_intensity_map_says(full_scale, median, p999):
    data, rows = cells(full_scale, median, p999), torch.arange(4)
    counts = data.counts(rows)
    lower, upper = data.bin_edges(data.batch(rows), rows)
    maps = IntensityMaps.from_dict(
        {"P": {c: {"median": median, "p999": p999} for c in ("DNA", "ER")}},
        channels=("DNA", "ER"),
        full_scale=full_scale,
    )
    inner = (counts > 0) & (counts < full_scale)
    widths = maps.bin_width(counts, ["P"] * 4)
    assert torch.allclose((upper - lower)[inner].float(), widths[inner], rtol=1e-4)


def test_the_bins_of_neighbouring_counts_meet():
    data = cells(4095, 200, 1800)
    counts = torch.arange(16.0).double().view(1, 1, 1, 16)
    terms = data._terms.at(torch.tensor([0])).to("cpu", torch.float64)
    lower, upper = terms.bin_edges(terms.forward(counts)[:, :1], full_scale=4095)
    assert torch.allclose(lower[..., 1:], upper[..., :-1], atol=1e-12)
