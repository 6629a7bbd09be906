"""Distances by shifts are scipy's, bit for bit, wherever objects lie."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import morphology

from cellbridge.data import distances


def blobs(seed: int, shape: tuple[int, int], share: float, width: float) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), width)
    return smooth > np.quantile(smooth, 1 - share)


CASES = [
    blobs(seed, shape, share, width)
    for seed, (shape, share, width) in enumerate(
        [((80, 90), 0.2, 3.0), ((61, 40), 0.6, 2.0), ((33, 200), 0.95, 4.0), ((7, 5), 0.5, 0.5), ((64, 64), 0.02, 0.1)]
    )
]


@pytest.mark.parametrize("mask", CASES)
def test_distances_inside_are_those_of_scipy(mask: np.ndarray) -> None:
    expected = ndimage.distance_transform_edt(mask).astype(np.float32)
    np.testing.assert_array_equal(distances.inside(mask), expected)


@pytest.mark.parametrize("mask", CASES)
@pytest.mark.parametrize("reach", [0.0, 0.9, 1.0, 1.5, 5.0, np.sqrt(13), 19.2, 150.0])
def test_what_lies_within_reach_is_what_scipy_finds(mask: np.ndarray, reach: float) -> None:
    np.testing.assert_array_equal(distances.within(mask, reach), ndimage.distance_transform_edt(~mask) <= reach)


def test_objects_wider_than_shifts_are_worth_are_scipy_s() -> None:
    mask = np.zeros((300, 310), bool)
    mask[10:290, 5:305] = True
    expected = ndimage.distance_transform_edt(mask).astype(np.float32)
    np.testing.assert_array_equal(distances.inside(mask), expected)


def test_an_empty_image_is_at_no_distance_and_within_no_reach() -> None:
    nothing = np.zeros((20, 30), bool)
    assert not distances.inside(nothing).any()
    assert not distances.within(nothing, 5.0).any()
    one_row = np.array([[False, True, True, False]])
    np.testing.assert_array_equal(distances.inside(one_row), [[0, 1, 1, 0]])


@pytest.mark.parametrize("mask", CASES)
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_opening_by_a_disk_is_scipy_s(mask: np.ndarray, radius: int) -> None:
    expected = ndimage.binary_opening(mask, morphology.disk(radius))
    np.testing.assert_array_equal(distances.opened(mask, radius), expected)
