"""A part of a Zarr array (v2 or v3), every chunk of it really there: one that was lost would read as zeros."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.errors import ImageError, in_one_line

_METADATA = ("zarr.json", ".zarray")


def is_zarr_array(folder: Path) -> bool:
    """Say whether a folder holds a Zarr array, of either version."""
    return any((folder / name).is_file() for name in _METADATA)


def read_zarr(folder: Path, index: tuple[int, ...]) -> np.ndarray:
    """Read what `index` leaves of an array after its leading axes.

    Raises
    ------
    ImageError : the folder holds no whole array of uint8 or uint16, the index is outside it, or a chunk is missing or damaged.
    """
    what = _name(folder, index)
    array = _opened(folder, index)
    dtype = np.dtype(array.dtype)
    if dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{folder}: type {dtype}, expected uint8 or uint16. Convert it without rescaling.")
    try:
        values = np.asarray(array[tuple(index)] if index else array[...])
    except Exception as error:  # damaged chunks make the codecs raise their own kinds
        raise ImageError(f"{what}: cannot be decoded ({in_one_line(error)}). Copy it again.") from None
    _require_no_empty_inner_chunk(array, index, values, what=what)
    return values


def describe_zarr(folder: Path, index: tuple[int, ...]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type of what `index` leaves of an array; no pixel is read.

    Raises
    ------
    ImageError : as for `read_zarr`, but for the type, and for chunks that are there but damaged.
    """
    array = _opened(folder, index)
    return tuple(array.shape)[len(index) :], np.dtype(array.dtype)


def _opened(folder: Path, index: tuple[int, ...]) -> Any:
    """Return the array, after checking that the chunks are there which a part lies in."""
    what = _name(folder, index)
    _require_plain(folder)
    import zarr

    try:
        array: Any = zarr.open_array(str(folder), mode="r")
        shape = tuple(array.shape)
    except Exception as error:  # zarr raises whatever its metadata makes it stumble over
        raise ImageError(f"{folder}: no Zarr array can be opened ({in_one_line(error)}). Copy it again.") from None
    if len(index) > len(shape) or any(i >= n for i, n in zip(index, shape, strict=False)):
        raise ImageError(f"{what}: outside the array's shape {shape} (indices count from 0). Correct the table.")
    _require_chunks(array, folder, _chunks_of(array, index), what=what)
    return array


def _name(folder: Path, index: tuple[int, ...]) -> str:
    return f"{folder}[{','.join(map(str, index))}]" if index else str(folder)


def _require_plain(folder: Path) -> None:
    """Refuse codecs that would run code, before anything is decoded."""
    text = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if text is None:
        raise ImageError(f"{folder}: holds no Zarr array (no zarr.json or .zarray). Correct the path in the table.")
    try:
        metadata = json.loads(text.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageError(f"{text}: is no JSON ({in_one_line(error)}). Copy it again.") from None
    codecs = [metadata.get(key) for key in ("filters", "compressor", "codecs")] if isinstance(metadata, dict) else []
    if "pickle" in json.dumps(codecs).lower():
        raise ImageError(f"{text}: its chunks are pickles, which could run code. Write the array with another codec.")


def _chunks_of(array: Any, index: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the grid coordinates of the files (chunks, or shards) that a part lies in."""
    sizes = array.shards or array.chunks
    fixed = [(i // size,) for i, size in zip(index, sizes, strict=False)]
    free = [range(-(-n // size)) for n, size in zip(array.shape[len(index) :], sizes[len(index) :], strict=True)]
    return list(itertools.product(*fixed, *free))


def _require_chunks(array: Any, folder: Path, chunks: list[tuple[int, ...]], *, what: str) -> None:
    for chunk in chunks:
        key = array.metadata.encode_chunk_key(chunk)
        if not (folder / key).is_file():
            raise ImageError(
                f"{what}: chunk {key} is missing and would read as zeros. Copy it again, or write it with empty chunks."
            )


def _require_no_empty_inner_chunk(array: Any, index: tuple[int, ...], values: np.ndarray, *, what: str) -> None:
    """Refuse an inner chunk of a shard that holds the fill value alone: one that was lost reads so, and no light does."""
    if array.shards is None:
        return
    sizes = array.chunks[len(index) :]
    starts = [range(0, n, size) for n, size in zip(values.shape, sizes, strict=True)]
    for corner in itertools.product(*starts):
        part = values[tuple(slice(a, a + size) for a, size in zip(corner, sizes, strict=True))]
        if bool((part == array.fill_value).all()):
            raise ImageError(
                f"{what}: the chunk at {corner} holds nothing but the fill value {array.fill_value}, as a lost one would. "
                "Copy it again."
            )
