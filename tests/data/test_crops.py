"""Light, nuclei, cells, and the images cut from them."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from cellbridge.data import crops
from cellbridge.data.illumination import FieldMedian, FlatField, block_means, correct, read_given
from cellbridge.data.objects import KnownObjects
from cellbridge.data.readers.tables import Table
from cellbridge.data.segmentation import Objects, find_cells, find_nuclei, segment, typical_nucleus_px
from cellbridge.data.survey import stored_bits, unused_bits
from cellbridge.errors import ImageError

# --- resampling


@pytest.mark.parametrize(("source", "target"), [(64, 32), (40, 32), (68, 48), (20, 32), (33, 32)])
def test_resampling_is_antialiased_bilinear_interpolation(source: int, target: int) -> None:
    images = np.random.default_rng(0).integers(0, 65535, (2, 3, source, source)).astype(np.uint16)
    size = (target, target)
    given = torch.from_numpy(images.astype(np.float64))
    expected = torch.nn.functional.interpolate(given, size=size, mode="bilinear", antialias=True).numpy()
    resampled = crops.resample(images, size_px=target)
    assert resampled.dtype == np.uint16
    assert np.abs(resampled - expected).max() <= 0.51


def test_resampling_keeps_a_constant_and_the_full_scale() -> None:
    for value in (0, 1, 65535):
        images = np.full((1, 50, 50), value, np.uint16)
        assert (crops.resample(images, size_px=32) == value).all()


def test_the_same_size_is_the_same_image() -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32)).astype(np.uint8)
    assert crops.resample(images, size_px=32) is images


@pytest.mark.parametrize("crop_px", [4, 5, 8])
def test_a_crop_is_centred_on_its_nucleus_within_half_a_pixel(crop_px: int) -> None:
    for centre in np.random.default_rng(0).uniform(10, 20, (50, 2)):
        top, left = crops.corner(centre, crop_px)
        middle = np.array([top, left]) + (crop_px - 1) / 2
        assert np.abs(middle - centre).max() <= 0.5


def test_cut_takes_the_pixels_around_the_centre() -> None:
    field = np.arange(2 * 20 * 20, dtype=np.uint16).reshape(2, 20, 20)
    (crop,) = crops.cut(field, np.array([[9.0, 12.0]]), crop_px=5, size_px=5)
    np.testing.assert_array_equal(crop, field[:, 7:12, 10:15])
    np.testing.assert_array_equal(crops.centre_crop(field, crop_px=4, what="x"), field[:, 8:12, 8:12])
    with pytest.raises(ImageError, match="smaller than crop_px 21"):
        crops.centre_crop(field, crop_px=21, what="x")


def disks(places: list[tuple[int, int, int]], shape: tuple[int, int] = (80, 80)) -> np.ndarray:
    rows, columns = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    for number, (row, column, radius) in enumerate(places, start=1):
        labels[np.hypot(rows - row, columns - column) <= radius] = number
    return labels


def test_cells_are_rejected_by_reason_and_kept_in_reading_order() -> None:
    nuclei = disks([(60, 40, 5), (20, 50, 5), (20, 20, 5), (2, 40, 5), (40, 40, 1), (40, 60, 12), (12, 40, 5)])
    chosen = crops.choose_cells(Objects(nuclei, nuclei), nucleus_px=10, crop_px=30, choice=crops.Choice())
    assert chosen.numbers == (3, 2, 1)
    assert chosen.rejected == {"border": 2, "too_small": 1, "too_large": 1}
    np.testing.assert_allclose(chosen.centres[0], [20, 20])


def test_masks_show_only_the_cell_itself() -> None:
    nuclei = disks([(30, 30, 5), (30, 44, 5)])
    objects = Objects(nuclei, find_cells(nuclei, None, nucleus_px=10, cell_reach=0.5))
    chosen = crops.choose_cells(objects, nucleus_px=10, crop_px=20, choice=crops.Choice())
    masks = crops.cut_masks(objects, chosen, crop_px=20, size_px=20)
    assert [int((mask == 2).sum()) for mask in masks] == [int((nuclei == n).sum()) for n in (1, 2)]
    assert (masks[0][:, 18:] == 0).all()
    shrunk = crops.cut_masks(objects, chosen, crop_px=20, size_px=10)
    assert set(np.unique(shrunk)) == {0, 1, 2}
    assert abs((shrunk == 2).mean() - (masks == 2).mean()) < 0.02


def test_a_crop_beyond_the_edge_is_reflected_without_repeating_it() -> None:
    image = np.random.default_rng(0).integers(0, 99, (2, 12, 15)).astype(np.uint16)
    padded = np.pad(image, ((0, 0), (9, 9), (9, 9)), mode="reflect")
    for centre in ((1.0, 2.0), (6.0, 7.0), (11.0, 14.0), (0.0, 13.4)):
        top, left = (place + 9 for place in crops.corner(np.array(centre), 8))
        found = crops.window(image, np.array(centre), crop_px=8)
        np.testing.assert_array_equal(found, padded[:, top : top + 8, left : left + 8])


def test_the_policy_of_borders_and_touching_cells_decides_who_is_kept() -> None:
    nuclei = disks([(12, 40, 5), (40, 30, 5), (40, 44, 5), (60, 60, 5), (2, 20, 5)])
    cells = find_cells(nuclei, None, nucleus_px=10, cell_reach=0.5)
    objects = Objects(nuclei, cells)
    assert crops.neighbours(cells) == {2: 1, 3: 1}

    def kept(**choice: str) -> tuple[set[int], dict[str, int]]:
        made = crops.choose_cells(objects, nucleus_px=10, crop_px=30, choice=crops.Choice(**choice))
        return set(made.numbers), made.rejected

    assert kept() == ({2, 3, 4}, {"border": 2})
    assert kept(border="reflect") == ({1, 2, 3, 4}, {"border": 1})
    assert kept(touching="reject") == ({4}, {"border": 2, "touching": 2})


def test_the_mask_of_a_crop_is_of_the_cell_in_its_middle_or_empty() -> None:
    nuclei = disks([(20, 20, 5), (40, 40, 6)])
    mask = crops.centre_mask(Objects(nuclei, nuclei), reach_px=5)
    np.testing.assert_array_equal(mask == 2, nuclei == 2)
    assert not crops.centre_mask(Objects(disks([(5, 5, 3)]), disks([(5, 5, 3)])), reach_px=5).any()


# --- light


def fields(light: np.ndarray, number: int = 24) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    made = []
    for _ in range(number):
        places = [(int(r), int(c), 7) for r, c in random.integers(0, 120, (8, 2))]
        cells = 4000.0 * (disks(places, light.shape) > 0)
        made.append(random.poisson((500 * random.uniform(0.9, 1.1) + cells) * light).astype(np.uint16))
    return made


def test_the_flat_field_is_found_behind_the_cells() -> None:
    v, u = np.meshgrid(np.linspace(-1, 1, 128), np.linspace(-1, 1, 120))
    light = 1.0 - 0.2 * (u**2 + v**2) + 0.05 * u
    median = FieldMedian()
    for image in fields(light):
        median.add(block_means(image), image.shape)
    found = median.estimate(what="plate").surface(light.shape)
    assert found.mean() == pytest.approx(1.0)
    assert np.abs(found / (light / light.mean()) - 1).max() < 0.01


def test_more_fields_than_are_kept_give_the_same_light() -> None:
    u = np.linspace(-1, 1, 40)[:, None] * np.ones((1, 40))
    image = np.rint(1000 * (1 - 0.1 * u**2)).astype(np.uint16)
    median = FieldMedian()
    for _ in range(600):
        median.add(block_means(image), image.shape)
    assert len(median) == 600
    np.testing.assert_allclose(median.estimate(what="p").surface((40, 40)), image / image.mean(), rtol=2e-3)


def test_correction_divides_rounds_and_stops_at_full_scale() -> None:
    image = np.array([[100, 65535], [7, 0]], np.uint16)
    corrected = correct(image, np.array([[0.5, 0.9], [2.0, 1.0]]), full_scale=65535)
    np.testing.assert_array_equal(corrected, [[200, 65535], [4, 0]])
    assert corrected.dtype == np.uint16
    assert correct(image, None, full_scale=65535) is image
    assert FlatField().is_flat
    np.testing.assert_array_equal(FlatField().surface((3, 4)), np.ones((3, 4)))


def test_a_flat_field_that_is_zero_or_steep_is_refused() -> None:
    zero, steep = FieldMedian(), FieldMedian()
    zero.add(block_means(np.zeros((64, 64), np.uint16)), (64, 64))
    steep.add(block_means(np.outer(np.ones(64), np.linspace(0, 1, 64) ** 6 * 60000 + 1).astype(np.uint16)), (64, 64))
    for median in (zero, steep):
        with pytest.raises(ImageError, match=r"plate 7.*illumination: none"):
            median.estimate(what="plate 7")


def test_a_given_illumination_function_is_checked_before_use(tmp_path: Path) -> None:
    shape = (6, 8)
    sound = np.linspace(0.8, 1.6, 48).reshape(shape)
    np.save(tmp_path / "sound.npy", sound)
    np.testing.assert_array_equal(read_given(tmp_path / "sound.npy", shape), sound.astype(np.float32))
    faults: dict[str, tuple[np.ndarray, str]] = {
        "nan": (np.where(np.arange(48).reshape(shape) == 7, np.nan, sound), "1 of 48 values are NaN, infinite, zero"),
        "zero": (np.where(sound > 1.5, 0.0, sound), "values are NaN, infinite, zero or negative"),
        "raw": (sound * 20000, "runs from 1.6e.04 to 3.2e.04, expected values around 1"),
        "small": (sound[:3], r"an illumination function of shape \(3, 8\).*for images of \(6, 8\)"),
        "text": (sound.astype(str), "and type <U"),
    }
    for name, (values, message) in faults.items():
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(ImageError, match=message):
            read_given(tmp_path / f"{name}.npy", shape)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "sound.npy").read_bytes()[:150])
    with pytest.raises(ImageError, match=r"no whole \.npy array"):
        read_given(tmp_path / "cut.npy", shape)
    with pytest.raises(ImageError, match="no such illumination function"):
        read_given(tmp_path / "missing.npy", shape)


@pytest.mark.parametrize(("shift", "found"), [(0, None), (4, 12), (8, 8)])
def test_counts_that_are_stored_shifted_are_seen(shift: int, found: int | None) -> None:
    counts = np.arange(1, 200, dtype=np.uint16) << shift
    told = stored_bits([int(np.bitwise_or.reduce(counts)), 0], full_scale=65535)
    assert (None if told is None else told["bits"]) == found
    if told is not None:
        assert f"multiple of {1 << shift}" in told["words"]
    assert unused_bits([0, 0]) == 0


# --- nuclei and cells


def test_nuclei_are_counted_and_touching_ones_split() -> None:
    places = [(20, 20, 6), (20, 30, 6), (60, 60, 7), (60, 20, 6)]
    image = 500 + 5000 * ndimage.gaussian_filter((disks(places) > 0).astype(float), 1.0)
    image = np.random.default_rng(0).poisson(image).astype(np.uint16)
    nuclei = find_nuclei(image, nucleus_px=12)
    assert nuclei.max() == 4
    assert len({int(nuclei[row, column]) for row, column, _ in places} - {0}) == 4
    assert typical_nucleus_px([image]) == pytest.approx(12, abs=2)


def test_dim_nuclei_among_bright_ones_are_found_at_their_own_edge() -> None:
    bright = [(20, 20, 4), (20, 50, 4), (50, 20, 4), (80, 80, 4), (50, 80, 4), (80, 50, 4)]
    dim = [(50, 50, 6), (80, 20, 6)]
    shape = (100, 100)
    image = 500 + 20000 * (disks(bright, shape) > 0) + 4000 * (disks(dim, shape) > 0)
    image = np.random.default_rng(0).poisson(ndimage.gaussian_filter(image.astype(float), 0.7)).astype(np.uint16)
    nuclei = find_nuclei(image, nucleus_px=11)
    assert nuclei.max() == len(bright) + len(dim)
    for row, column, radius in bright + dim:
        area = (nuclei == nuclei[row, column]).sum()
        assert area == pytest.approx((disks([(row, column, radius)], shape) > 0).sum(), rel=0.25)


def test_an_empty_field_has_no_nucleus() -> None:
    for level in (3, 500, 20000):
        image = np.random.default_rng(level).poisson(level, (200, 200)).astype(np.uint16)
        assert find_nuclei(image, nucleus_px=12).max() == 0
    with pytest.raises(ImageError, match="no nucleus stands out"):
        typical_nucleus_px([image])
    assert find_nuclei(np.zeros((64, 64), np.uint8), nucleus_px=12).max() == 0


def test_nuclei_do_not_depend_on_gain() -> None:
    places = [(20, 20, 6), (50, 30, 6)]
    image = 500 + 1000 * (disks(places) > 0)
    once, thrice = (find_nuclei((gain * image).astype(np.uint16), nucleus_px=12) for gain in (1, 3))
    np.testing.assert_array_equal(once, thrice)


def test_every_cell_contains_its_nucleus_and_keeps_its_number() -> None:
    nuclei = disks([(30, 30, 5), (30, 44, 5), (60, 20, 5)])
    stain = 300 + 3000 * (disks([(30, 32, 12), (30, 46, 12), (60, 20, 9)]) > 0)
    for image in (None, stain.astype(np.uint16)):
        cells = find_cells(nuclei, image, nucleus_px=10, cell_reach=0.8)
        np.testing.assert_array_equal(cells[nuclei > 0], nuclei[nuclei > 0])
        assert set(np.unique(cells)) == {0, 1, 2, 3}
        assert (cells > 0).sum() > (nuclei > 0).sum()
        assert (ndimage.distance_transform_edt(nuclei == 0)[cells > 0] <= 8.5).all()


@pytest.mark.parametrize(("name", "expected"), [("B7_01_1_3", 28), ("D6_01_1_2", 27), ("D7_01_1_1", 29)])
def test_real_schwann_nuclei_are_counted_and_outlined_as_cellprofiler_did(
    name: str, expected: int, real_data: Path
) -> None:
    folder = real_data / "nf1_schwann_3ch"
    image = tifffile.imread(folder / "images" / f"{name}_DAPI_001.tif")
    oracle = tifffile.imread(folder / "masks" / f"{name}_DAPI_001_MaskNuclei.tiff") > 0
    nuclei = find_nuclei(image, nucleus_px=typical_nucleus_px([image]))
    border = np.unique(np.concatenate([nuclei[0], nuclei[-1], nuclei[:, 0], nuclei[:, -1]]))
    inside = np.where(np.isin(nuclei, border), 0, nuclei)
    assert abs(len(np.unique(inside)) - 1 - expected) <= 1
    assert 2 * ((inside > 0) & oracle).sum() / ((inside > 0).sum() + oracle.sum()) >= 0.95


def test_touching_cells_part_where_their_stain_is_darkest() -> None:
    nuclei = disks([(40, 28, 5), (40, 52, 5)])
    columns = np.arange(80)
    stain = 3000 * (disks([(40, 28, 13), (40, 52, 13)]) > 0) * (1 - 0.8 * np.exp(-(((columns - 37) / 1.5) ** 2)))
    cells = find_cells(nuclei, (300 + stain).astype(np.uint16), nucleus_px=10)
    assert abs(int((cells[40] == 1).nonzero()[0].max()) - 37) <= 1


def test_real_human_nuclei_are_counted_as_cellprofiler_did(real_data: Path) -> None:
    image = tifffile.imread(real_data / "examplehuman_cellprofiler" / "AS_09125_050116030001_D03f00d0.tif")
    nuclei = segment(image, None, nucleus_px=typical_nucleus_px([image])).nuclei
    border = np.unique(np.concatenate([nuclei[0], nuclei[-1], nuclei[:, 0], nuclei[:, -1]]))
    inside = len(np.setdiff1d(np.unique(nuclei), border))
    assert abs(inside - 289) <= 0.02 * 289


# --- known objects


def objects(rows: list[tuple[str, ...]], columns: tuple[str, ...]) -> KnownObjects:
    table = Table("cells.csv", columns, tuple(dict(zip(columns, r, strict=True)) for r in rows), tuple(range(2, 9)))
    return KnownObjects(table)


def test_an_object_goes_to_its_nearest_cell_only_and_within_reach() -> None:
    columns = ("Metadata_Plate", "Metadata_Well", "Metadata_Site", "x", "y", "Truth_Phase", "kind")
    known = objects([("p", "a1", "1", "10", "20", "0.5", "u"), ("p", "A01", "1", "40", "20", "0.25", "v")], columns)
    field = {"Metadata_Plate": "p", "Metadata_Well": "A01", "Metadata_Site": "1"}
    centres = np.array([[20.0, 13.0], [20.0, 11.0], [20.0, 44.0], [60.0, 60.0]])
    matched = known.match(field, centres, radius_px=6.0)
    np.testing.assert_array_equal(matched, [-1, 0, 1, -1])
    np.testing.assert_array_equal(known.values("Truth_Phase", matched[1:3]), [0.5, 0.25])
    assert known.values("kind", matched[1:3]).tolist() == ["u", "v"]
    assert (known.match({**field, "Metadata_Site": "2"}, centres, radius_px=6.0) == -1).all()


def test_objects_are_those_of_the_image_s_own_condition_and_plate() -> None:
    columns = ("Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Concentration", "x", "y")
    known = objects([("01", "A01", "1", "1", "5", "5"), ("01", "A01", "1", "0.1", "5", "5")], columns)
    field = {"Metadata_Plate": "01", "Metadata_Well": "A01", "Metadata_Site": "1"}
    for dose, expected in (("1.0", 0), ("0.1", 1), ("2", -1)):
        matched = known.match({**field, "Metadata_Concentration": dose}, np.array([[5.0, 5.0]]), radius_px=6.0)
        assert matched.tolist() == [expected]
    other = {**field, "Metadata_Plate": "1", "Metadata_Concentration": "1"}
    assert known.match(other, np.array([[5.0, 5.0]]), radius_px=6.0).tolist() == [-1]
