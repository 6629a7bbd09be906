"""Focus, structure, saturation and debris of crops: closed forms, and what they must not depend on."""

import numpy as np
import pytest
from scipy import ndimage

from cellbridge.data import crops
from cellbridge.data.quality import Limits, measure, sharpness
from cellbridge.data.segmentation import segment

ROWS, COLUMNS = np.indices((64, 64)).astype(np.float64)


def crop(image: np.ndarray) -> np.ndarray:
    return np.rint(image).astype(np.uint16)[None, None]


def test_a_ramp_is_smooth_an_edge_sharp_and_noise_without_structure() -> None:
    """S(l) is l² for a ramp, l for an edge, and the same at every lag for noise."""
    focus, structure = sharpness(crop(1000 + 100 * ROWS + 50 * COLUMNS))
    assert focus.item() == pytest.approx((4 - 1) / (16 - 4))
    assert structure.item() == pytest.approx(1 - 1 / 16)
    edge = crop(1000 + 4000 * (COLUMNS >= 32))
    n = np.array([64 - lag for lag in (1, 2, 4)])
    s = np.array([1, 2, 4]) / n
    focus, structure = sharpness(edge)
    assert focus.item() == pytest.approx((s[1] - s[0]) / (s[2] - s[1]))
    assert structure.item() == pytest.approx(1 - s[0] / s[2])
    noise = np.random.default_rng(0).normal(5000, 300, (64, 64))
    assert sharpness(crop(noise))[1].item() == pytest.approx(0, abs=0.05)


def test_what_shows_nothing_has_neither_focus_nor_structure() -> None:
    for image in (np.full((64, 64), 700.0), np.zeros((64, 64))):
        focus, structure = sharpness(crop(image))
        assert focus.item() == structure.item() == 0
    assert not np.any(sharpness(crop(ROWS[:4, :4])))


def cell() -> np.ndarray:
    random = np.random.default_rng(3)
    texture = ndimage.gaussian_filter(random.standard_normal((64, 64)), 1.0)
    return 2000 + 8000 * (np.hypot(ROWS - 32, COLUMNS - 30) < 14) * (1 + texture)


def test_blur_lowers_focus_and_gain_offset_and_noise_do_not_change_it() -> None:
    found = [sharpness(crop(ndimage.gaussian_filter(cell(), width)))[0].item() for width in (0, 0.7, 1.5, 3)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 0.1
    other = crop(0.5 * cell() + 3000)
    np.testing.assert_allclose(sharpness(other)[0], found[0], atol=1e-3)
    noise = np.random.default_rng(4).normal(0, 300, (200, 64, 64))
    noisy = np.rint(cell() + noise).astype(np.uint16)[:, None]
    assert sharpness(noisy)[0].mean() == pytest.approx(found[0], abs=0.01)


def test_cells_are_judged_each_by_itself() -> None:
    both = np.concatenate([crop(cell()), crop(ROWS * 9)])
    np.testing.assert_array_equal(sharpness(both)[0][1:], sharpness(both[1:])[0])


def test_a_field_may_hold_no_cell() -> None:
    none = measure(np.zeros((0, 2, 64, 64), np.uint16), saturation=np.zeros((0, 2)), debris=np.zeros(0))
    assert none.reasons(Limits()) == []
    assert none.focus.shape == (0, 2)


def test_reasons_come_in_order_and_only_where_a_limit_is_set() -> None:
    counts = np.stack([np.concatenate([crop(cell())[0]] * 2)] * 4)
    counts[1, 1] = 7
    counts[2, :, :32] = 65535
    saturation = (counts == 65535).mean(axis=(2, 3))
    found = measure(counts, saturation=saturation, debris=np.array([0, 0, 0, 0.2]))
    assert found.reasons(Limits()) == ["", "empty_channel", "", ""]
    assert found.reasons(Limits(empty_channel=False)) == [""] * 4
    limits = Limits(min_focus=0.1, max_saturation=0.4, max_debris=0.1)
    assert found.reasons(limits) == ["", "empty_channel", "saturated", "debris"]
    assert found.reasons(Limits(min_focus=1.0)) == ["out_of_focus", "empty_channel", "out_of_focus", "out_of_focus"]
    table = found.columns(["DNA", "ER"])
    assert table["Quality_Saturation_ER"] == [0.0, 0.0, 0.5, 0.0]
    assert set(table) == {f"Quality_{n}_{c}" for n in ("Focus", "Structure", "Saturation") for c in ("DNA", "ER")} | {
        "Quality_Debris"
    }
    assert found.reasons(Limits(min_focus=None)) == measure(counts, saturation=saturation, debris=None).reasons(
        Limits()
    )


def test_debris_is_what_stands_out_and_belongs_to_no_nucleus() -> None:
    rows, columns = np.indices((120, 120))
    image = 500 + 6000 * (np.hypot(rows - 60, columns - 60) < 9)
    clean = segment(image.astype(np.uint16), None, nucleus_px=18)
    image = image + 6000 * (np.hypot(rows - 60, columns - 85) < 2)
    dirty = segment(image.astype(np.uint16), None, nucleus_px=18)
    assert clean.debris is not None
    assert dirty.debris is not None
    assert not clean.debris.any()
    assert dirty.nuclei.max() == 1
    assert 10 <= dirty.debris.sum() <= 30
    assert dirty.debris[60, 85]
    share = crops.shares(dirty.debris, np.array([[60.0, 60.0], [30.0, 30.0]]), crop_px=60)
    np.testing.assert_allclose(share, [dirty.debris.sum() / 3600, 0])
