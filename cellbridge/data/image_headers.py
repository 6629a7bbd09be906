"""Shape and type of an image from the head of its file: no pixel is decoded, and a file that ends too early is still found."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.data.images import TIFF_SUFFIXES, require_file, require_whole, why_not_loaded
from cellbridge.data.planes import Plane
from cellbridge.data.zarr_planes import describe_zarr, is_zarr_array
from cellbridge.errors import ImageError

_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Colour type → channels; 3, a palette, is decoded to three."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an image is said to be.

    Parameters
    ----------
    shape, dtype : of the array that reading it gives.
    n_bytes : size of its file; 0 for a part of a Zarr array, whose chunks may be shared.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    n_bytes: int


def read_header(plane: Plane) -> Header:
    """Read the head of an image.

    Raises
    ------
    ImageError : the file or a chunk is missing, the file is empty, cut short or of another format, or the page or part is not in it.
    """
    file = plane.file
    if is_zarr_array(file):
        shape, dtype = describe_zarr(file, plane.index)
        return Header(shape, dtype, 0)
    n_bytes = require_file(file)
    suffix = file.suffix.lower()
    readers = {".npy": _npy, ".png": _png, ".bmp": _bmp, **dict.fromkeys(TIFF_SUFFIXES, _tiff)}
    if suffix not in readers:
        raise ImageError(f"{file}: is none of TIFF (.tif, .tiff), .png, .bmp and .npy. Convert it.")
    try:
        shape, dtype = readers[suffix](plane)
    except ImageError:
        raise
    except Exception as error:  # damaged heads make the parsers raise whatever they stumble over
        reason = why_not_loaded(error)
        raise ImageError(
            f"{file}: its head cannot be read ({reason}); it is truncated or damaged. Copy it again."
        ) from None
    if suffix not in TIFF_SUFFIXES:
        shape = _part(shape, plane)
    return Header(tuple(int(size) for size in shape), np.dtype(dtype), n_bytes)


def _tiff(plane: Plane) -> tuple[tuple[int, ...], Any]:
    import tifffile

    with tifffile.TiffFile(plane.file) as tiff:
        require_whole(plane.file, tiff)
        if not plane.index:
            return tiff.series[0].shape, tiff.series[0].dtype
        if len(plane.index) > 1 or plane.index[0] >= len(tiff.pages):
            raise ImageError(
                f"{plane}: no such page; the file has {len(tiff.pages)}, counted from 0. Correct the page, or copy the file again."
            )
        page: Any = tiff.pages[plane.index[0]]
        return page.shape, page.dtype


def _npy(plane: Plane) -> tuple[tuple[int, ...], Any]:
    mapped = np.load(plane.file, mmap_mode="r", allow_pickle=False)  # a file too short for its shape cannot be mapped
    return mapped.shape, mapped.dtype


def _png(plane: Plane) -> tuple[tuple[int, ...], Any]:
    head, tail = _ends(plane.file, head=26, tail=16)
    if not head.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in tail:
        raise ImageError(f"{plane.file}: has no end; it is truncated. Copy it again.")
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    channels = _PNG_CHANNELS.get(colour, 3)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return shape, np.uint16 if bits == 16 else np.uint8


def _bmp(plane: Plane) -> tuple[tuple[int, ...], Any]:
    head, _ = _ends(plane.file, head=30, tail=0)
    size, width, height, bits = (*struct.unpack("<I", head[2:6]), *struct.unpack("<ii", head[18:26]), head[28])
    if plane.file.stat().st_size < size:
        raise ImageError(f"{plane.file}: is truncated ({plane.file.stat().st_size} bytes). Copy it again.")
    return ((abs(height), width) if bits <= 8 else (abs(height), width, bits // 8)), np.uint8


def _ends(file: Path, *, head: int, tail: int) -> tuple[bytes, bytes]:
    with file.open("rb") as stream:
        first = stream.read(head)
        stream.seek(-min(tail, file.stat().st_size), 2)
        return first, stream.read()


def _part(shape: tuple[int, ...], plane: Plane) -> tuple[int, ...]:
    if len(plane.index) > len(shape) or any(i >= n for i, n in zip(plane.index, shape, strict=False)):
        raise ImageError(f"{plane}: outside the shape {shape} (indices count from 0). Correct the table.")
    return shape[len(plane.index) :]
