"""Image files: whole ones are read exactly, damaged ones are refused."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellbridge.data.images import digest, file_md5, read_crop, read_plane, require_all
from cellbridge.data.planes import Plane
from cellbridge.errors import ImageError

FORMS = {"raw": {}, "zlib": {"compression": "zlib"}, "lzw": {"compression": "lzw"}, "tiled": {"tile": (64, 64)}}


def picture(dtype: type = np.uint16) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 200, (96, 80)).astype(dtype)
    image[:40] = 7
    return image


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("form", FORMS)
def test_a_tiff_is_read_to_the_count(form: str, dtype: type, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", picture(dtype), **FORMS[form])
    image = read_plane(tmp_path / "x.tif", full_scale=255 if dtype is np.uint8 else 65535)
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, picture(dtype))


@pytest.mark.parametrize("lost", [1, 7, 100, 0.5, 0.99])
@pytest.mark.parametrize("form", FORMS)
def test_a_tiff_that_lost_any_of_its_end_is_refused(form: str, lost: float, tmp_path: Path) -> None:
    file = tmp_path / "x.tif"
    tifffile.imwrite(file, picture(), **FORMS[form])
    data = file.read_bytes()
    file.write_bytes(data[: -int(lost if lost >= 1 else len(data) * lost)])
    with pytest.raises(ImageError, match=r"x\.tif: .*(truncated|cannot be decoded).*Copy it again"):
        read_plane(file, full_scale=65535)


@pytest.mark.parametrize(
    ("image", "full_scale", "message"),
    [
        (np.zeros((2, 8, 8), np.uint16), 65535, "expected one plane"),
        (np.zeros((8, 8), np.float32), 65535, "expected uint8 or uint16"),
        (np.zeros((8, 8), np.int16), 65535, "expected uint8 or uint16"),
        (np.full((8, 8), 5000, np.uint16), 4095, "above the full scale 4095"),
        (np.zeros((8, 8), np.uint8), 65535, "Correct bits"),
    ],
)
def test_a_plane_of_another_shape_or_type_is_refused(
    image: np.ndarray, full_scale: int, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", image)
    tifffile.imwrite(tmp_path / "x.tif", image, photometric="minisblack")
    for name in ("x.npy", "x.tif"):
        with pytest.raises(ImageError, match=message):
            read_plane(tmp_path / name, full_scale=full_scale)


@pytest.mark.parametrize("data", [b"", b"not an image", b"II*\x00garbage", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("name", ["x.tif", "x.npy", "x.jpg"])
def test_what_is_no_image_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=name):
        read_plane(tmp_path / name, full_scale=65535)
    with pytest.raises(ImageError, match="no such file"):
        read_plane(tmp_path / "gone.tif", full_scale=65535)


def test_a_pickle_inside_an_npy_is_never_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple:
            return (open, (str(canary), "w"))

    np.save(tmp_path / "x.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"no whole \.npy"):
        read_plane(tmp_path / "x.npy", full_scale=65535)
    assert not canary.exists()


def test_both_orders_of_axes_give_the_same_crop(tmp_path: Path) -> None:
    crop = np.random.default_rng(1).integers(0, 9, (3, 6, 7)).astype(np.uint16)
    np.save(tmp_path / "chw.npy", crop)
    np.save(tmp_path / "hwc.npy", np.moveaxis(crop, 0, 2))
    for name in ("chw.npy", "hwc.npy"):
        np.testing.assert_array_equal(read_crop(tmp_path / name, channels=3, axes=None, full_scale=65535), crop)


@pytest.mark.parametrize(("shape", "channels"), [((3, 5, 3), 3), ((4, 5, 6), 3), ((5, 5), 3), ((1, 2, 3, 3), 3)])
def test_a_crop_whose_channels_are_not_plain_is_refused(shape: tuple, channels: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint16))
    with pytest.raises(ImageError, match="shape"):
        read_crop(tmp_path / "x.npy", channels=channels, axes=None, full_scale=65535)


def test_an_ambiguous_crop_is_read_by_the_axes_given(tmp_path: Path) -> None:
    image = np.arange(45, dtype=np.uint16).reshape(3, 5, 3)
    np.save(tmp_path / "x.npy", image)
    read = read_crop(tmp_path / "x.npy", channels=3, axes="HWC", full_scale=65535)
    np.testing.assert_array_equal(read, np.moveaxis(image, 2, 0))


def test_all_problems_are_counted_and_five_are_shown() -> None:
    require_all([], total=9)
    with pytest.raises(ImageError) as caught:
        require_all([f"file{i}" for i in range(7)], total=240)
    assert str(caught.value).startswith("7 of 240 images cannot be used: file0 | file1")
    assert "file4" in str(caught.value)
    assert "file5" not in str(caught.value)
    assert "2 more" in str(caught.value)


def test_a_digest_depends_on_pixels_alone() -> None:
    image = picture()
    assert digest(image) == digest(np.asfortranarray(image)) != digest(image + 1)


@pytest.mark.parametrize("name", ["x.png", "x.bmp"])
def test_png_and_bmp_are_read_to_the_count_and_refused_when_cut(name: str, tmp_path: Path) -> None:
    import imagecodecs

    encode = imagecodecs.png_encode if name == "x.png" else imagecodecs.bmp_encode
    (tmp_path / name).write_bytes(encode(picture(np.uint8)))
    np.testing.assert_array_equal(read_plane(tmp_path / name, full_scale=255), picture(np.uint8))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(ImageError, match="truncated"):
        read_plane(tmp_path / name, full_scale=255)


@pytest.mark.parametrize(("index", "message"), [((3,), "the file has 3"), ((0, 1), "no such page")])
def test_a_page_that_is_not_there_is_refused(index: tuple[int, ...], message: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.stack([picture()] * 3), photometric="minisblack")
    with pytest.raises(ImageError, match=message):
        read_plane(Plane(tmp_path / "x.tif", index), full_scale=65535)


def test_a_file_has_the_md5_of_its_table_and_a_half_copied_one_is_told_of(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", picture())
    md5 = file_md5(tmp_path / "x.tif")
    read_plane(tmp_path / "x.tif", full_scale=65535, md5=md5.upper())
    with pytest.raises(ImageError, match=r"x\.tif: md5 .* is not the table's 0{32}"):
        read_plane(tmp_path / "x.tif", full_scale=65535, md5="0" * 32)
    (tmp_path / "x.tif").rename(tmp_path / "x.tif.part")
    with pytest.raises(ImageError, match=r"no such file, only x\.tif\.part, a copy that was not finished"):
        read_plane(tmp_path / "x.tif", full_scale=65535)
