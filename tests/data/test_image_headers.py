"""What the head of a file says is what decoding it gives; a file that ends too early is refused by its head alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr

from cellbridge.data.image_headers import read_header
from cellbridge.data.images import read_array
from cellbridge.data.planes import Plane
from cellbridge.errors import ImageError

COUNTS = np.random.default_rng(0).integers(1, 60000, (24, 20)).astype(np.uint16)
EIGHT = (COUNTS % 256).astype(np.uint8)


def zarr_array(file: Path) -> Any:
    return zarr.create_array(str(file), data=COUNTS, chunks=(12, 20))


FORMS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "raw TIFF": ("a.tif", lambda file: tifffile.imwrite(file, COUNTS)),
    "LZW": ("a.tif", lambda file: tifffile.imwrite(file, COUNTS, compression="lzw")),
    "zlib tiles": ("a.tif", lambda file: tifffile.imwrite(file, COUNTS, compression="zlib", tile=(16, 16))),
    "npy": ("a.npy", lambda file: np.save(file, COUNTS)),
    "16-bit PNG": ("a.png", lambda file: file.write_bytes(imagecodecs.png_encode(COUNTS))),
    "8-bit PNG": ("a.png", lambda file: file.write_bytes(imagecodecs.png_encode(EIGHT))),
    "colour PNG": ("a.png", lambda file: file.write_bytes(imagecodecs.png_encode(np.stack([EIGHT] * 3, axis=2)))),
    "BMP": ("a.bmp", lambda file: file.write_bytes(imagecodecs.bmp_encode(EIGHT))),
    "Zarr": ("a.zarr", zarr_array),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_head_says_what_decoding_gives(form: str, tmp_path: Path) -> None:
    name, write = FORMS[form]
    write(tmp_path / name)
    header, image = read_header(Plane(tmp_path / name)), read_array(Plane(tmp_path / name))
    assert (header.shape, header.dtype) == (image.shape, image.dtype)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "Zarr"])
def test_a_file_that_was_cut_is_refused_by_its_head(form: str, tmp_path: Path) -> None:
    name, write = FORMS[form]
    write(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match=r"Copy it again\."):
        read_header(Plane(tmp_path / name))


def test_pages_and_parts_have_heads_of_their_own(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([COUNTS, COUNTS]), photometric="minisblack")
    np.save(tmp_path / "a.npy", np.stack([COUNTS, COUNTS]))
    zarr_array(tmp_path / "a.zarr")
    for name in ("a.tif", "a.npy"):
        assert read_header(Plane(tmp_path / name, (1,))).shape == COUNTS.shape
        with pytest.raises(ImageError, match="from 0"):
            read_header(Plane(tmp_path / name, (2,)))
    (tmp_path / "a.zarr/c/1/0").unlink()
    with pytest.raises(ImageError, match="missing and would read as zeros"):
        read_header(Plane(tmp_path / "a.zarr"))
