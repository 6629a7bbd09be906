"""Images into arrays of counts: TIFF, PNG, BMP and NumPy files and Zarr arrays, read whole and checked, never executed."""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cellbridge.data.planes import Plane
from cellbridge.data.zarr_planes import is_zarr_array, read_zarr
from cellbridge.errors import ImageError, in_one_line

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".bmp", ".npy")
PARTIAL_SUFFIXES = (".incomplete", ".part", ".partial")
"""What a file is called while it is being copied or downloaded."""
Counts = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]

# Damage is told in one line by the errors below, not by tifffile's log as well.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_plane(source: Plane | Path, *, full_scale: int, md5: str = "") -> Counts:
    """Read one channel of a field: (y, x), uint8 or uint16.

    Parameters
    ----------
    md5 : of the file, where the tables give it.

    Raises
    ------
    ImageError : the file is missing, empty, truncated, of another format, not one plane, not 8 or 16 bit unsigned, or holds a
        count above the full scale, or its md5 is another.
    """
    image = _read(source)
    if md5:
        require_md5(source.file if isinstance(source, Plane) else source, md5)
    if image.ndim > 2:
        image = image.reshape([n for n in image.shape if n > 1] or [1, 1])
    if image.ndim != 2:
        raise ImageError(
            f"{source}: shape {image.shape}, expected one plane (y, x). Split it into one file per channel, or name the page or "
            "part that is meant, as in file.tif[0]."
        )
    return _checked(source, image, full_scale)


def read_crop(file: Plane | Path, *, channels: int, axes: Literal["HWC", "CHW"] | None, full_scale: int) -> Counts:
    """Read a crop of one cell: (channel, y, x), from a file with its channels last (HWC) or first (CHW).

    Raises
    ------
    ImageError : as for `read_plane`, or the number of channels differs, or the shape leaves the order of axes open.
    """
    image = _read(file)
    if image.ndim == 2 and channels == 1:
        image = image[None]
    elif image.ndim != 3:
        raise ImageError(f"{file}: shape {image.shape}, expected three axes of which one has {channels} channels.")
    elif axes is None:
        fits = [name for name, axis in (("HWC", 2), ("CHW", 0)) if image.shape[axis] == channels]
        if len(fits) != 1:
            problem = "which axis holds the channels is open" if fits else f"no axis has {channels} channels"
            raise ImageError(f"{file}: shape {image.shape}, {problem}. Correct channels, or set axes, in the manifest.")
        image = image if fits[0] == "CHW" else np.moveaxis(image, 2, 0)
    else:
        image = image if axes == "CHW" else np.moveaxis(image, 2, 0)
        if image.shape[0] != channels:
            raise ImageError(
                f"{file}: {image.shape[0]} channels by axes {axes}, expected {channels}. Correct the manifest."
            )
    return _checked(file, np.ascontiguousarray(image), full_scale)


def read_array(file: Plane | Path) -> np.ndarray:
    """Read a TIFF, PNG or .npy file as it is stored, in whatever shape and type.

    Raises
    ------
    ImageError : the file is missing, empty, truncated, damaged or of another format.
    """
    return _read(file)


def digest(image: np.ndarray) -> bytes:
    """Return a hash of an image's pixels, by which the same image is found again in another file."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def file_md5(file: Path) -> str:
    """Return a file's md5, as tables of public data sets list it (for integrity, not for security)."""
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def require_md5(file: Path, md5: str) -> None:
    """Raise ImageError where a file's md5 is not the one that its table gives."""
    if not file.is_file():
        raise ImageError(f"{file}: an md5 is given, but it is no single file. Leave the md5 out of the table.")
    found = file_md5(file)
    if found != md5.lower():
        raise ImageError(f"{file}: md5 {found} is not the table's {md5.lower()}. Copy it again.")


def require_all(problems: Iterable[str], *, total: int, show: int = 5) -> None:
    """Raise one ImageError that counts the problems found among `total` images, shows the first few and holds all."""
    found = list(problems)
    if not found:
        return
    first = " | ".join(found[:show])
    more = f" | … {len(found) - show} more" if len(found) > show else ""
    raise ImageError(f"{len(found)} of {total} images cannot be used: {first}{more}")


def _read(source: Plane | Path) -> np.ndarray:
    plane = source if isinstance(source, Plane) else Plane(source)
    file = plane.file
    if is_zarr_array(file):
        return read_zarr(file, plane.index)
    require_file(file)
    suffix = file.suffix.lower()
    if suffix in TIFF_SUFFIXES:
        return _read_tiff(plane)
    if suffix == ".npy":
        return _part(plane, _read_numpy(file))
    if suffix in (".png", ".bmp"):
        return _part(plane, _read_png(file) if suffix == ".png" else _read_bmp(file))
    raise ImageError(f"{file}: is none of TIFF (.tif, .tiff), .png, .bmp and .npy. Convert it.")


def require_file(file: Path) -> int:
    """Return how many bytes a file has; raise ImageError where there is none, or it is empty."""
    try:
        size = file.stat().st_size
    except OSError:
        raise ImageError(f"{file}: no such file{_left_over(file)}. Copy it there, or remove its row.") from None
    if not file.is_file():
        raise ImageError(f"{file}: is no file. Correct the path in the table.")
    if size == 0:
        raise ImageError(f"{file}: is empty (0 bytes). Copy it again.")
    return size


def _left_over(file: Path) -> str:
    """Say so where a copy of the file was begun and not finished."""
    found = next((file.name + end for end in PARTIAL_SUFFIXES if (file.parent / (file.name + end)).exists()), None)
    return f", only {found}, a copy that was not finished" if found else ""


def _part(plane: Plane, image: np.ndarray) -> np.ndarray:
    if len(plane.index) > image.ndim or any(i >= n for i, n in zip(plane.index, image.shape, strict=False)):
        raise ImageError(f"{plane}: outside the shape {image.shape} (indices count from 0). Correct the table.")
    part: np.ndarray = image[plane.index] if plane.index else image
    return part


def _read_tiff(plane: Plane) -> np.ndarray:
    import tifffile

    file = plane.file
    try:
        with tifffile.TiffFile(file) as tiff:
            require_whole(file, tiff)
            if not plane.index:
                return tiff.asarray()
            if len(plane.index) > 1 or plane.index[0] >= len(tiff.pages):
                raise ImageError(
                    f"{plane}: no such page; the file has {len(tiff.pages)}, counted from 0. Correct the page, or copy the file again."
                )
            return np.asarray(tiff.pages[plane.index[0]].asarray())
    except ImageError:
        raise
    # Damaged files make the decoders raise whatever they stumble over.
    except Exception as error:
        reason = in_one_line(error)
        raise ImageError(f"{file}: cannot be decoded ({reason}); it is truncated or damaged. Copy it again.") from None


def _read_png(file: Path) -> np.ndarray:
    import imagecodecs

    data = file.read_bytes()
    if b"IEND" not in data[-16:]:  # the decoder returns the rows that it has
        raise ImageError(f"{file}: has no end; it is truncated. Copy it again.")
    try:
        return np.asarray(imagecodecs.png_decode(data))
    except Exception as error:  # the codec raises its own kinds
        reason = in_one_line(error)
        raise ImageError(f"{file}: cannot be decoded ({reason}). Copy it again.") from None


def _read_bmp(file: Path) -> np.ndarray:
    import imagecodecs

    data = file.read_bytes()
    if len(data) < int.from_bytes(data[2:6], "little"):  # its header's own size
        raise ImageError(f"{file}: is truncated ({len(data)} bytes). Copy it again.")
    try:
        return np.asarray(imagecodecs.bmp_decode(data))
    except Exception as error:  # the codec raises its own kinds
        reason = in_one_line(error)
        raise ImageError(f"{file}: cannot be decoded ({reason}). Copy it again.") from None


def require_whole(file: Path, tiff: Any) -> None:
    """Refuse a TIFF file whose pixels end before their index says; some decoders would fill in zeros."""
    size = file.stat().st_size
    for page in tiff.pages:
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > size:
            raise ImageError(f"{file}: is truncated ({size} bytes, its index needs {max(ends)}). Copy it again.")
        if any(count == 0 for count in page.databytecounts):
            raise ImageError(f"{file}: holds a strip or tile without data. Copy it again.")


def _read_numpy(file: Path) -> np.ndarray:
    try:
        loaded: np.ndarray = np.load(file, allow_pickle=False)
        return loaded
    except (ValueError, EOFError, OSError) as error:
        raise ImageError(
            f"{file}: is no whole .npy array of numbers ({why_not_loaded(error)}). Copy it again."
        ) from None


def why_not_loaded(error: Exception) -> str:
    """Return what NumPy says of a file that it refuses, without its advice to load pickles all the same."""
    return "it is none, or holds pickled objects" if "allow_pickle" in str(error) else in_one_line(error)


def _checked(file: Plane | Path, image: np.ndarray, full_scale: int) -> Counts:
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{file}: type {image.dtype}, expected uint8 or uint16. Convert it without rescaling.")
    if image.dtype == np.uint8 and full_scale > 255:
        raise ImageError(
            f"{file}: type uint8, but the full scale is {full_scale}. Correct bits in the manifest, or the file."
        )
    if 0 in image.shape:
        raise ImageError(f"{file}: shape {image.shape} holds no pixel. Copy it again.")
    largest = int(image.max())
    if largest > full_scale:
        raise ImageError(
            f"{file}: a count of {largest} above the full scale {full_scale}. Correct bits in the manifest."
        )
    return image.astype(image.dtype.newbyteorder("="), copy=False)
