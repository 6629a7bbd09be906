"""A small Zarr array per image, written whole: metadata and chunks as zarr-python would, without its event loop, whose latency is longer
than the writing of a cell.

Chunks are blosc (zstd, bytes shuffled); in Zarr v3 each has a CRC-32C behind it, for which v2 has no codec that all readers know. Chunks of
zeros are written, too: one that is left out cannot be told from one that was lost.
"""

import itertools
import json
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

_LARGEST = 1024
_SMALL_BYTES = 1 << 20
"""A plate of single cells has as many files as cells, or as channels of cells."""


def write_array(folder: Path, image: NDArray[np.unsignedinteger], *, version: Literal["0.5", "0.4"]) -> None:
    """Write an image (channel, y, x) as an array of Zarr v3 (OME-Zarr 0.5) or v2 (0.4).

    A small image is one chunk; of a larger one each channel has its own, 1024 px wide at most.
    """
    folder.mkdir(parents=True)
    channels = len(image) if image.nbytes <= _SMALL_BYTES else 1
    chunk = (channels, *(min(size, _LARGEST) for size in image.shape[1:]))
    described = _of_version_3(image, chunk) if version == "0.5" else _of_version_2(image, chunk)
    name = "zarr.json" if version == "0.5" else ".zarray"
    (folder / name).write_text(json.dumps(described, indent=1), encoding="utf-8")
    compressor = Blosc(cname="zstd", clevel=5, shuffle=Blosc.SHUFFLE)
    for place in itertools.product(*(range(-(-size // step)) for size, step in zip(image.shape, chunk, strict=True))):
        corner = tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, chunk, strict=True))
        whole = np.zeros(chunk, image.dtype.newbyteorder("<"))
        part = image[corner]
        whole[tuple(slice(0, size) for size in part.shape)] = part
        packed = bytes(compressor.encode(whole))
        if version == "0.5":
            packed += google_crc32c.value(packed).to_bytes(4, "little")
        file = folder.joinpath(*(["c"] if version == "0.5" else []), *map(str, place))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(packed)


def _of_version_3(image: NDArray[np.unsignedinteger], chunk: tuple[int, ...]) -> dict[str, Any]:
    blosc = {"typesize": image.dtype.itemsize, "cname": "zstd", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(image.shape),
        "data_type": image.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc},
            {"name": "crc32c"},
        ],
        "dimension_names": ["c", "y", "x"],
        "attributes": {},
    }


def _of_version_2(image: NDArray[np.unsignedinteger], chunk: tuple[int, ...]) -> dict[str, Any]:
    return {
        "zarr_format": 2,
        "shape": list(image.shape),
        "chunks": list(chunk),
        "dtype": "|u1" if image.dtype.itemsize == 1 else "<u2",
        "compressor": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 0},
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }
