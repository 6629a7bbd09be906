"""Claims about what a stain shows inside a region."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.feature import graycomatrix, graycoprops

from cellbridge.metrics.stain import correlation, granularity, intensity, radial_distribution, texture


def _signal(seed, n=6, size=32):
    return np.random.default_rng(seed).random((n, size, size), dtype=np.float32)


def _disc(n=6, size=32, radius=10.0):
    y, x = np.mgrid[:size, :size]
    return np.repeat((np.hypot(y - 15.5, x - 15.5) <= radius)[None], n, axis=0)


def test_intensities_are_those_of_the_pixels_inside():
    signal, masks = _signal(0), _disc()
    masks[1, :16] = False
    found = intensity(signal, masks)
    for i, (image, mask) in enumerate(zip(signal, masks, strict=True)):
        inside = image[mask].astype(float)
        assert found["MeanIntensity"][i] == pytest.approx(inside.mean(), rel=1e-6)
        assert found["StdIntensity"][i] == pytest.approx(inside.std(), rel=1e-5)
        assert found["IntegratedIntensity"][i] == pytest.approx(inside.sum(), rel=1e-6)
        for q in (5, 50, 95):
            assert found[f"Quantile{q:02d}Intensity"][i] == pytest.approx(np.percentile(inside, q), rel=1e-5)
        off = np.subtract(ndimage.center_of_mass(image * mask), ndimage.center_of_mass(mask))
        assert found["MassDisplacement"][i] == pytest.approx(np.linalg.norm(off), abs=1e-5)


def test_a_flat_stain_is_even_over_rings_and_sectors_and_one_in_the_middle_is_not():
    cells, nuclei = _disc(), _disc(radius=4)
    flat, middle = np.full(cells.shape, 0.5, dtype=np.float32), nuclei.astype(np.float32)
    even, inner = radial_distribution([flat, middle], nuclei, cells)
    for ring in range(1, 5):
        np.testing.assert_allclose(even[f"MeanFrac_{ring}of4"], 1, rtol=1e-6)
        np.testing.assert_allclose(even[f"RadialCV_{ring}of4"], 0, atol=1e-6)
    assert (inner["MeanFrac_1of4"] > 3).all()
    np.testing.assert_allclose(inner["MeanFrac_4of4"], 0)


def test_a_stain_on_one_side_varies_over_sectors():
    cells, nuclei = _disc(), _disc(radius=4)
    side = np.zeros(cells.shape, dtype=np.float32)
    side[:, :, 16:] = 1
    (found,) = radial_distribution([side], nuclei, cells)
    np.testing.assert_allclose(found["RadialCV_3of4"], 1, atol=0.05)  # half the sectors at 1, half at 0


def test_texture_is_that_of_scikit_images_matrix_of_grey_levels():
    """Sixteen grey levels and the whole image, all four directions pooled, both ways round."""
    levels = np.random.default_rng(0).integers(0, 16, (3, 24, 24))
    levels = ndimage.median_filter(levels, size=(1, 3, 3))
    found = texture((levels / 16).astype(np.float32), np.ones(levels.shape, dtype=bool))
    for i, image in enumerate(levels):
        angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
        for step in (1, 3):
            # scikit-image rounds the place of a diagonal neighbour, which lies √2 steps away
            straight = graycomatrix(image.astype(np.uint8), [step], [angles[0], angles[2]], levels=16, symmetric=True)
            oblique = graycomatrix(
                image.astype(np.uint8), [step * np.sqrt(2)], [angles[1], angles[3]], levels=16, symmetric=True
            )
            pooled = (straight.sum(axis=3) + oblique.sum(axis=3)).astype(float)[..., None]
            pooled /= pooled.sum()
            expected = {name: graycoprops(pooled, name)[0, 0] for name in ("contrast", "correlation", "homogeneity")}
            assert found[f"Contrast_{step}"][i] * 16**2 == pytest.approx(expected["contrast"], rel=1e-5)
            assert found[f"Correlation_{step}"][i] == pytest.approx(expected["correlation"], rel=1e-4, abs=1e-5)
            assert found[f"InverseDifferenceMoment_{step}"][i] == pytest.approx(expected["homogeneity"], rel=1e-5)


def test_texture_outside_the_region_counts_for_nothing():
    signal, masks = _signal(0), _disc()
    other = np.where(masks, signal, 1 - signal)
    expected = texture(signal, masks)
    for name, values in texture(other, masks).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)


def test_texture_of_a_flat_stain_has_no_contrast_and_no_correlation():
    found = texture(np.full((2, 16, 16), 0.3, dtype=np.float32), np.ones((2, 16, 16), dtype=bool))
    np.testing.assert_allclose(found["Contrast_1"], 0)
    np.testing.assert_allclose(found["Correlation_1"], 0)
    np.testing.assert_allclose(found["InverseDifferenceMoment_3"], 1, rtol=1e-6)


def test_grains_are_lost_at_their_own_size():
    """Dots of 2 px are gone after an opening with 3 px, squares of 4 px survive it and go with one of 5 px, of 7 px with one of 9."""
    sides, signal = (2, 4, 7), np.zeros((3, 40, 40), dtype=np.float32)
    for i, side in enumerate(sides):
        for y in range(4, 32, 10):
            for x in range(4, 32, 10):
                signal[i, y : y + side, x : x + side] = 1
    found = granularity(signal, np.ones(signal.shape, dtype=bool))
    for i, name in enumerate(("1", "2", "4")):
        np.testing.assert_allclose(found[name], np.eye(3)[i], atol=1e-6)


def test_correlations_are_pearsons_over_the_region():
    signals, masks = [_signal(seed) for seed in range(3)], _disc()
    signals[1] = (signals[0] + signals[1]) / 2
    found = correlation(signals, masks)
    assert list(found) == [(0, 1), (0, 2), (1, 2)]
    for (a, b), values in found.items():
        for i, mask in enumerate(masks):
            expected = np.corrcoef(signals[a][i][mask], signals[b][i][mask])[0, 1]
            assert values[i] == pytest.approx(expected, abs=1e-6)


def test_over_no_pixels_and_no_signal_every_measure_is_zero():
    empty, dark = np.zeros((2, 16, 16), dtype=bool), np.zeros((2, 16, 16), dtype=np.float32)
    for signal, masks in ((_signal(0, 2, 16), empty), (dark, np.ones_like(empty))):
        nothing = [intensity(signal, masks), granularity(signal, masks)]
        nothing += list(radial_distribution([signal], empty, masks))
        for measures in nothing:
            assert all((values == 0).all() for values in measures.values())
        assert (correlation([signal, dark], masks)[0, 1] == 0).all()
        assert all(np.isfinite(values).all() for values in texture(signal, masks).values())
