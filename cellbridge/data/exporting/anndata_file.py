"""AnnData: `obs` is the store's table, `X` the features, `obsm["images"]` the counts; what scanpy and squidpy open.

X                  (cell, feature)
obs                the store's columns; Metadata_* are text (categories), indexed by unique names of the cells
var                `channel` of features that name a stain
obsm["images"]     (cell, channel, y, x) counts in the camera's units, one compressed and checksummed chunk per cell
obsm["masks"]      (cell, y, x): 0 other, 1 cytoplasm, 2 nucleus, where every store has them
uns["cellbridge"]  channels, pixel_um, full_scale, control, intensity (JSON: the maps to [-1, 1]), provenance (JSON), stores;
                   and `store` in obs say where the counts of a cell lie, for files without images
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd

from cellbridge.data.exporting.cells import Cells
from cellbridge.errors import StoreError
from cellbridge.runs import publish_file

UNS = "cellbridge"
MADE_BY = "cellbridge export"
_AT_ONCE = 256


def write_anndata(
    out: Path, cells: Cells, features: pd.DataFrame, *, with_images: bool, provenance: Mapping[str, Any]
) -> None:
    """Write one .h5ad, published when it is whole; the images pass through memory some cells at a time.

    Parameters
    ----------
    features : one row per cell, in their order.

    Raises
    ------
    StoreError : a column's name holds a slash, which HDF5 takes for a folder.
    """
    slashed = [name for name in cells.obs.columns if "/" in str(name)]
    if slashed:
        raise StoreError(f'{cells.info.path}: column "{slashed[0]}" holds a slash, which no .h5ad can keep. Rename it.')
    obs = cells.obs.assign(Image_Store=cells.owner, Image_Row=cells.row)
    table = anndata.AnnData(
        X=features.to_numpy(),
        obs=obs,
        var=pd.DataFrame(
            {"channel": [_channel(str(name), cells.info.channels) for name in features]}, index=features.columns
        ),
        uns={UNS: _about(cells, provenance)},
    )
    with publish_file(out) as temporary:
        table.write_h5ad(temporary)
        if with_images:
            with h5py.File(temporary, "r+") as file:
                _append_images(file["obsm"], cells)


def made_here(file: Path) -> bool:
    """Say whether a file is an .h5ad that `write_anndata` wrote."""
    try:
        with h5py.File(file, "r") as opened:
            return bool(opened[f"uns/{UNS}/made_by"].asstr()[()] == MADE_BY)
    except (OSError, KeyError, AttributeError, TypeError):
        return False


def _about(cells: Cells, provenance: Mapping[str, Any]) -> dict[str, Any]:
    info = cells.info
    about: dict[str, Any] = {
        "made_by": MADE_BY,
        "channels": np.array(info.channels, dtype=object),
        "full_scale": info.full_scale,
        "control": info.control,
        "intensity": json.dumps(dict(info.intensity), ensure_ascii=False),
        "provenance": json.dumps(dict(provenance), ensure_ascii=False),
        "stores": np.array([str(store.info.path) for store in cells.stores], dtype=object),
    }
    return about | ({} if info.pixel_um is None else {"pixel_um": info.pixel_um})


def _channel(feature: str, channels: tuple[str, ...]) -> str:
    """Return the stain that a feature's name ends with; of two that do the longer, "" where none does."""
    return max((name for name in channels if feature.endswith(f"_{name}")), key=len, default="")


def _append_images(obsm: h5py.Group, cells: Cells) -> None:
    size, n_channels = cells.info.size_px, len(cells.info.channels)
    parts: list[tuple[str, Any, tuple[int, ...], Any]] = [
        ("images", cells.counts, (n_channels, size, size), cells.dtype)
    ]
    if cells.has_masks:
        parts.append(("masks", cells.masks, (size, size), np.uint8))
    for name, read, item, dtype in parts:
        array = obsm.create_dataset(
            name,
            (len(cells), *item),
            dtype=dtype,
            chunks=(1, *item),
            compression="gzip",
            compression_opts=4,
            shuffle=True,
            fletcher32=True,
        )
        # What anndata knows an array by.
        array.attrs["encoding-type"], array.attrs["encoding-version"] = "array", "0.2.0"
        for rows in cells.blocks(_AT_ONCE):
            array[rows[0] : rows[-1] + 1] = read(rows)
