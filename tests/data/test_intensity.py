"""The intensity map: exact for every count, monotone, whole range; its fit against numpy's percentiles."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from cellbridge.data.intensity import IntensityMaps, PlateHistograms, fit_intensity
from cellbridge.errors import ManifestError, NumericalError, StoreError


def maps_of(median: float, p999: float, *, full_scale: int) -> IntensityMaps:
    table = {"P": {"DNA": {"median": median, "p999": p999}}}
    return IntensityMaps.from_dict(table, channels=["DNA"], full_scale=full_scale)


def every_count(full_scale: int) -> torch.Tensor:
    return torch.arange(full_scale + 1, dtype=torch.int32).reshape(1, 1, 1, -1)


FITS = [
    (900, 11264, 65535),
    (4048, 15952, 65535),
    (0, 1, 65535),
    (200, 65535, 65535),
    (65000, 65001, 65535),
    (12, 90, 255),
]


@pytest.mark.parametrize(("median", "p999", "full_scale"), FITS)
def test_every_integer_count_comes_back_exactly_from_float32(median, p999, full_scale):
    maps = maps_of(median, p999, full_scale=full_scale)
    images = maps.forward(every_count(full_scale), ["P"])
    assert images.dtype == torch.float32
    counts, clipped = maps.to_counts(images, ["P"])
    assert torch.equal(counts, every_count(full_scale))
    assert clipped == 0.0


@pytest.mark.parametrize(("median", "p999", "full_scale"), FITS)
def test_map_takes_the_whole_range_onto_minus_one_to_one_strictly_monotone(median, p999, full_scale):
    images = maps_of(median, p999, full_scale=full_scale).forward(every_count(full_scale), ["P"]).flatten()
    assert (images[0], images[-1]) == (-1.0, 1.0)
    assert bool((images.diff() > 0).all())


def test_map_is_the_documented_asinh():
    maps = maps_of(900, 10900, full_scale=65535)
    c = np.linspace(0, 65535, 999)
    g = np.arcsinh((c - 900) / 500)
    expected = 2 * (g - g[0]) / (g[-1] - g[0]) - 1
    found = maps.forward(torch.tensor(c).reshape(1, 1, 1, -1), ["P"]).flatten().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_inverse_continues_beyond_the_range_and_stored_counts_say_what_was_clipped():
    maps = maps_of(900, 10900, full_scale=65535)
    images = torch.tensor([-1.1, -1.0, 0.0, 1.2]).reshape(1, 1, 1, 4)
    free = maps.inverse(images, ["P"]).flatten()
    assert free[0] < 0
    assert free[3] > 65535
    counts, clipped = maps.to_counts(images, ["P"])
    assert counts.flatten()[[0, 3]].tolist() == [0, 65535]
    assert clipped == 0.5


def test_bin_widths_add_up_to_the_whole_range():
    maps = maps_of(12, 90, full_scale=255)
    widths = maps.bin_width(every_count(255), ["P"])
    assert bool((widths > 0).all())
    assert float(widths.double().sum()) == pytest.approx(2.0, abs=1e-5)


def test_each_image_goes_through_the_map_of_its_own_plate():
    rng = np.random.default_rng(0)
    control = {
        "A": rng.integers(0, 900, (4, 2, 8, 8)).astype(np.uint16),
        "B": rng.integers(0, 9000, (4, 2, 8, 8)).astype(np.uint16),
    }
    maps = fit_intensity(control, channels=["DNA", "ER"], full_scale=65535)
    counts = torch.from_numpy(control["A"][:2].astype(np.int32))
    mixed = maps.forward(counts, ["A", "B"])
    torch.testing.assert_close(mixed[:1], maps.forward(counts[:1], ["A"]), rtol=0, atol=0)
    torch.testing.assert_close(mixed[1:], maps.subset(["B"]).forward(counts[1:], ["B"]), rtol=0, atol=0)
    assert not torch.equal(mixed[1:], maps.forward(counts[1:], ["A"]))


@pytest.mark.parametrize("seed", range(4))
def test_fit_equals_numpy_percentiles_in_any_batches(seed):
    counts = np.random.default_rng(seed).gamma(2.0, 300.0, (7, 2, 9, 11)).astype(np.uint16)
    maps = fit_intensity({"P": (counts[i : i + 3] for i in (3, 0, 6))}, channels=["DNA", "ER"], full_scale=65535)
    for channel in range(2):
        for table, share in ((maps.median, 0.5), (maps.p999, 0.999)):
            expected = np.quantile(counts[:, channel], share, method="inverted_cdf")
            assert float(table[0, channel]) == expected


def test_fit_survives_json_bit_for_bit():
    counts = np.random.default_rng(1).gamma(2.0, 300.0, (7, 2, 9, 11)).astype(np.uint16)
    maps = fit_intensity({"0001053597806": counts, "NA": counts + 7}, channels=["DNA", "ER"], full_scale=65535)
    back = IntensityMaps.from_dict(json.loads(json.dumps(maps.to_dict())), channels=["DNA", "ER"], full_scale=65535)
    assert back.plates == ("0001053597806", "NA")
    assert torch.equal(back.median, maps.median)
    assert torch.equal(back.p999, maps.p999)


def test_plate_without_control_is_refused_by_name():
    counts = np.arange(512, dtype=np.uint16).reshape(1, 2, 16, 16)
    with pytest.raises(ManifestError, match=r'plate "P2": no control cell.*intensity_reference: all'):
        fit_intensity({"P1": counts}, channels=["DNA", "ER"], full_scale=65535, plates=["P1", "P2"])


def test_channel_that_shows_nothing_is_refused_by_name():
    counts = np.arange(512, dtype=np.uint16).reshape(1, 2, 16, 16)
    counts[:, 1] = 100
    with pytest.raises(ManifestError, match=r'plate "P1", channel "ER": shows nothing .*100 counts'):
        fit_intensity({"P1": counts}, channels=["DNA", "ER"], full_scale=65535)


def test_counts_above_full_scale_and_foreign_plates_are_refused():
    with pytest.raises(StoreError, match="counts from 300 to 300 do not lie in 0 to the full scale 255"):
        PlateHistograms(["DNA"], full_scale=255).add("P", np.full((1, 1, 4, 4), 300, np.uint16))
    with pytest.raises(StoreError, match=r'plate "Q" has no intensity map.*Known: P'):
        maps_of(1, 9, full_scale=255).forward(torch.zeros(1, 1, 2, 2), ["Q"])
    with pytest.raises(NumericalError, match="not finite"):
        maps_of(1, 9, full_scale=255).to_counts(torch.full((1, 1, 2, 2), float("nan")), ["P"])


def test_real_cells_use_most_of_the_range(real_data):
    folder = real_data / "bbbc021_cells"
    table = pd.read_csv(folder / "cells.csv", dtype=str, keep_default_na=False)
    rows = table[(table.Metadata_Plate == "Week4_27801") & (table.Metadata_Compound == "DMSO")].path[:200]
    counts = np.stack([np.load(folder / path).transpose(2, 0, 1) for path in rows])
    maps = fit_intensity({"P": counts}, channels=["DNA", "F-actin", "beta-tubulin"], full_scale=65535)
    images = maps.forward(torch.from_numpy(counts.astype(np.int32)), ["P"] * len(counts))
    low, high = np.percentile(images.numpy(), [0.1, 99.9], axis=(0, 2, 3))
    assert ((high - low) / 2 > 0.6).all()
    assert (images.std(dim=(0, 2, 3)) > 0.3).all()
    assert np.array_equal(maps.to_counts(images, ["P"] * len(counts))[0].numpy(), counts)
