"""Claims about size and shape of masks."""

import numpy as np
import pytest
from skimage.measure import perimeter, regionprops

from cellbridge.metrics.shape import centroids, depths, shape


def _discs(radii=(4, 7.3, 10, 13), size=40):
    y, x = np.mgrid[:size, :size]
    centres = np.random.default_rng(0).uniform(14, 26, (len(radii), 2))
    return np.stack([np.hypot(y - cy, x - cx) <= r for r, (cy, cx) in zip(radii, centres, strict=True)])


def _blobs(n=12, size=40):
    """Irregular masks, some with notches, some at the border."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size]
    masks = []
    for _ in range(n):
        cy, cx, a, b, turn = *rng.uniform(8, 30, 2), *rng.uniform(3, 12, 2), rng.uniform(0, np.pi)
        u, v = (y - cy) * np.cos(turn) + (x - cx) * np.sin(turn), (x - cx) * np.cos(turn) - (y - cy) * np.sin(turn)
        masks.append((u / a) ** 2 + (v / b) ** 2 <= 1 + 0.3 * np.cos(3 * np.arctan2(v, u)))
    return np.stack(masks)


def test_a_rectangle_is_measured_exactly():
    masks = np.zeros((1, 20, 30), dtype=bool)
    masks[0, 5:11, 8:24] = True  # 6 × 16
    found = {name: values[0] for name, values in shape(masks).items()}
    assert (found["Area"], found["Extent"]) == (96, 1)
    assert found["Solidity"] == pytest.approx(1)
    assert (found["MinFeretDiameter"], found["MaxFeretDiameter"]) == pytest.approx((6, np.hypot(6, 16)))
    assert found["MajorAxisLength"] == pytest.approx(4 * np.sqrt((16**2 - 1) / 12))
    assert found["Perimeter"] == 2 * (5 + 15)
    assert found["MaximumRadius"] == 3
    np.testing.assert_allclose(centroids(masks), [[7.5, 15.5]])


def test_discs_are_round_solid_and_of_their_radius():
    found = shape(_discs())
    radii = np.array([4, 7.3, 10, 13])
    np.testing.assert_allclose(found["Area"], np.pi * radii**2, rtol=0.04)
    np.testing.assert_allclose(found["MajorAxisLength"], 2 * radii, rtol=0.04)
    assert (found["Eccentricity"] < 0.35).all()
    assert (found["Solidity"] > 0.88).all()
    np.testing.assert_allclose(found["FormFactor"], 1, atol=0.25)
    np.testing.assert_allclose(found["MaximumRadius"], radii, atol=1)


@pytest.mark.parametrize("masks", [_discs(), _blobs()], ids=["discs", "blobs"])
def test_measures_are_scikit_images(masks):
    found = shape(masks)
    for index, mask in enumerate(masks):
        expected = regionprops(mask.astype(int))[0]
        for ours, theirs in {
            "Area": expected.area,
            "Perimeter": expected.perimeter,
            "MajorAxisLength": expected.axis_major_length,
            "MinorAxisLength": expected.axis_minor_length,
            "Eccentricity": expected.eccentricity,
            "Extent": expected.extent,
        }.items():
            assert found[ours][index] == pytest.approx(theirs, rel=0.02, abs=0.02), ours
        assert perimeter(mask) == pytest.approx(found["Perimeter"][index])
        np.testing.assert_allclose(centroids(masks)[index], expected.centroid)
        assert found["Solidity"][index] == pytest.approx(expected.solidity, abs=0.12)
        assert found["MaxFeretDiameter"][index] == pytest.approx(expected.feret_diameter_max, abs=0.6)


def test_an_empty_mask_has_zeros_and_a_full_one_reaches_to_the_border():
    masks = np.zeros((2, 9, 9), dtype=bool)
    masks[1] = True
    found = shape(masks)
    assert all(values[0] == 0 for values in found.values())
    assert all(np.isfinite(values).all() for values in found.values())
    assert depths(masks)[1].max() == 5


def test_quarter_turns_and_shifts_change_nothing():
    masks = np.pad(_discs(), ((0, 0), (6, 6), (6, 6)))
    expected = shape(masks)
    for moved in (np.rot90(masks, axes=(1, 2)), np.roll(masks, (3, -4), axis=(1, 2))):
        for name, values in shape(moved).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-9, err_msg=name)
