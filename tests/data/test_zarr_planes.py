"""Parts of Zarr arrays: exact, or refused; a lost chunk never reads as zeros."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cellbridge.data.images import read_plane
from cellbridge.data.planes import Plane
from cellbridge.errors import ImageError

LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2, "chunks": (1, 1, 4, 6)},
    "v3": {"zarr_format": 3, "chunks": (1, 2, 8, 3)},
    "sharded": {"zarr_format": 3, "chunks": (1, 1, 4, 3), "shards": (2, 2, 8, 6)},
}


def counts() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 60000, (2, 3, 8, 6)).astype(np.uint16)


def write(folder: Path, layout: str) -> Path:
    zarr.create_array(str(folder / "a.zarr"), data=counts(), **LAYOUTS[layout])
    return folder / "a.zarr"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_plane_is_read_to_the_count(layout: str, tmp_path: Path) -> None:
    array = write(tmp_path, layout)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(read_plane(Plane(array, index), full_scale=65535), counts()[index])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lost_chunk_is_refused_where_it_is_needed(layout: str, tmp_path: Path) -> None:
    array = write(tmp_path, layout)
    chunks = sorted(
        file for file in array.rglob("*") if file.is_file() and file.name not in ("zarr.json", ".zarray", ".zattrs")
    )
    chunks[0].unlink()
    with pytest.raises(ImageError, match=r"a\.zarr\[0,0\]: chunk .* is missing and would read as zeros"):
        read_plane(Plane(array, (0, 0)), full_scale=65535)
    np.testing.assert_array_equal(read_plane(Plane(array, (1, 2)), full_scale=65535), counts()[1, 2])


def test_an_inner_chunk_of_a_shard_without_light_is_refused(tmp_path: Path) -> None:
    values = counts()
    values[0, 0, 4:, 3:] = 0
    zarr.create_array(str(tmp_path / "a.zarr"), data=values, **LAYOUTS["sharded"])
    with pytest.raises(ImageError, match=r"the chunk at \(4, 3\) holds nothing but the fill value"):
        read_plane(Plane(tmp_path / "a.zarr", (0, 0)), full_scale=65535)


@pytest.mark.parametrize(
    ("index", "message"),
    [((2, 0), "outside the array's shape"), ((0, 0, 0, 0, 0), "outside"), ((0,), "expected one plane")],
)
def test_an_index_that_names_no_plane_is_refused(index: tuple[int, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=message):
        read_plane(Plane(write(tmp_path, "v3"), index), full_scale=65535)


def test_chunks_that_are_pickles_are_never_decoded(tmp_path: Path) -> None:
    array = write(tmp_path, "v2")
    metadata = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps({**metadata, "filters": [{"id": "pickle"}]}))
    with pytest.raises(ImageError, match="its chunks are pickles"):
        read_plane(Plane(array, (0, 0)), full_scale=65535)


def test_a_truncated_chunk_and_a_broken_description_are_refused(tmp_path: Path) -> None:
    array = write(tmp_path, "v2")
    chunk = array / "0.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(ImageError, match=r"cannot be decoded .* Copy it again"):
        read_plane(Plane(array, (0, 0)), full_scale=65535)
    (array / ".zarray").write_text("{")
    with pytest.raises(ImageError, match="is no JSON"):
        read_plane(Plane(array, (0, 0)), full_scale=65535)
