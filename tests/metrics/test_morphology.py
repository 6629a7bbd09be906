"""Claims about morphology as a table and as an extractor."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from cellbridge.errors import ModelError
from cellbridge.metrics.features import extract, standardised
from cellbridge.metrics.morphology import morphology, morphology_extractor

CHANNELS = ("DNA", "ER", "Mito")


def _cells(n=30, size=32, radius=5.0, brightness=0.4, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    images = np.full((n, 3, size, size), -0.9, dtype=np.float32)
    for image in images:
        out = np.hypot(y - size / 2 - rng.uniform(-2, 2), x - size / 2 - rng.uniform(-2, 2))
        own = radius * rng.uniform(0.9, 1.1)
        image[0][out <= own] = 0.5
        image[1][out <= 2 * own] = brightness
        image[2][(out <= 2 * own) & (out > own)] = 0.3
    return images + 0.03 * rng.standard_normal(images.shape).astype(np.float32)


def _column(found, name):
    names, values = found
    return values[:, names.index(name)]


def test_larger_nuclei_and_brighter_stains_are_seen_in_their_own_measures():
    plain, larger, brighter = (
        morphology(images, CHANNELS) for images in (_cells(), _cells(radius=6.5), _cells(brightness=0.7))
    )
    area = "Nuclei_AreaShape_Area"
    assert np.median(_column(larger, area)) == pytest.approx(1.69 * np.median(_column(plain, area)), rel=0.1)
    mean = "Cells_Intensity_MeanIntensity_ER"
    gain = np.median(_column(brighter, mean)) - np.median(_column(plain, mean))
    assert 0.1 < gain < 0.16  # the stain's rise is 0.15, and the outline takes in some background
    np.testing.assert_allclose(
        _column(brighter, "Nuclei_Intensity_MeanIntensity_DNA"), _column(plain, "Nuclei_Intensity_MeanIntensity_DNA")
    )
    assert (
        _column(plain, "Nuclei_Intensity_MeanIntensity_Mito") < _column(plain, "Cytoplasm_Intensity_MeanIntensity_Mito")
    ).all()


def test_names_are_unique_and_say_place_kind_measure_and_stain():
    names, values = morphology(_cells(4), CHANNELS)
    assert len(names) == len(set(names)) == values.shape[1]
    assert all(name.split("_")[0] in {"Image", "Nuclei", "Cytoplasm", "Cells"} for name in names)
    for stain in CHANNELS:
        assert sum(stain in name.split("_") for name in names) > 30
    assert "Cells_Correlation_ER_Mito" in names


def test_each_cell_is_measured_by_itself_whatever_stands_beside_it():
    images = _cells(70)
    _, together = morphology(images, CHANNELS)
    np.testing.assert_array_equal(morphology(images[66:68], CHANNELS)[1], together[66:68])
    np.testing.assert_array_equal(morphology(images[::-1], CHANNELS)[1], together[::-1])


def test_flips_and_quarter_turns_change_nothing():
    images = _cells()
    names, expected = morphology(images, CHANNELS)
    steady = [i for i, name in enumerate(names) if "RadialCV" not in name]  # sectors begin at one direction
    for turned in (np.rot90(images, axes=(2, 3)), images[:, :, ::-1], images[:, :, :, ::-1]):
        found = morphology(np.ascontiguousarray(turned), CHANNELS)[1]
        np.testing.assert_allclose(found[:, steady], expected[:, steady], rtol=1e-4, atol=1e-4)


def test_given_masks_are_measured_and_found_ones_agree_with_them():
    images = _cells()
    masks = np.zeros((30, 32, 32), dtype=np.uint8)
    masks[:, 8:24, 8:24], masks[:, 12:20, 12:20] = 1, 2
    found = morphology(images, CHANNELS, masks)
    assert (_column(found, "Nuclei_AreaShape_Area") == 64).all()
    assert (_column(found, "Cells_AreaShape_Area") == 256).all()


def test_a_dropped_stain_and_an_empty_image_are_finite_and_said():
    images = _cells(4)
    images[0, 0], images[1] = -1, -1
    names, values = morphology(images, CHANNELS)
    assert np.isfinite(values).all()
    assert values[:, names.index("Nuclei_Found")].tolist() == [0, 0, 1, 1]
    of_nuclei = [i for i, name in enumerate(names) if name.startswith("Nuclei_")]
    assert (values[1, of_nuclei] == 0).all()
    assert (values[0, of_nuclei] == 0).all()


def test_the_extractor_gives_the_same_numbers_and_its_hash_names_its_channels():
    images = _cells()
    extractor = morphology_extractor(CHANNELS)
    found = extract(extractor, torch.from_numpy(images), batch_size=7)
    np.testing.assert_allclose(found.numpy(), morphology(images, CHANNELS)[1], rtol=1e-6, atol=1e-6)
    assert (
        extractor.sha256 == morphology_extractor(CHANNELS).sha256 != morphology_extractor(("DNA", "ER", "AGP")).sha256
    )
    scaled = extract(standardised(extractor, torch.from_numpy(images), name="30 cells"), torch.from_numpy(images))
    assert float(scaled.abs().max()) < 10


def test_channels_without_a_nucleus_or_of_another_number_are_refused():
    with pytest.raises(ModelError, match="shows the nucleus"):
        morphology_extractor(("ER", "Mito"))
    with pytest.raises(ModelError, match="expected"):
        morphology(_cells(2), ("DNA", "ER"))


def test_cp_measure_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cp_measure", None)
    with pytest.raises(ModelError, match="cp_measure is not installed"):
        morphology_extractor(CHANNELS, by="cp_measure")


def _as_cp_measure(monkeypatch):
    """Stand in for cp_measure's featurizer: area and mean of each stain, one row for each object, NaN in a dark stain."""

    def featurize(image, masks, config):
        assert (image.min(), image.max()) >= (0, 0)
        assert config == (["DNA", "ER", "Mito"], ["Nuclei", "Cells"])
        rows = []
        for mask in masks:
            means = [image[c][mask == 1].mean() or np.nan for c in range(3)]
            rows.append([float((mask == 1).sum()), *means])
        return np.array(rows), ["Area", "m0", "m1", "m2"], []

    package, module = ModuleType("cp_measure"), ModuleType("cp_measure.featurizer")
    module.featurize = featurize
    module.make_featurizer_config = lambda channels, *, objects: (channels, objects)
    monkeypatch.setitem(sys.modules, "cp_measure", package)
    monkeypatch.setitem(sys.modules, "cp_measure.featurizer", module)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.19")


def test_cp_measure_is_given_both_regions_and_its_gaps_are_zero(monkeypatch):
    _as_cp_measure(monkeypatch)
    images = _cells(3)
    images[1, 0], images[2, 1] = -1, -1
    extractor = morphology_extractor(CHANNELS, by="cp_measure")
    found = extract(extractor, torch.from_numpy(images)).reshape(3, 2, 5)
    own = morphology(images, CHANNELS)
    np.testing.assert_allclose(found[:, 0, 0], _column(own, "Nuclei_AreaShape_Area"))
    np.testing.assert_allclose(found[:, 1, 0], _column(own, "Cells_AreaShape_Area"))
    assert found[1, 0].tolist() == [0] * 5  # no nucleus: nothing is measured of it, and its last column says so
    assert found[2, 0, 2] == 0
    assert extractor.name == "cp_measure 0.1.19"
