"""OME-Zarr plates, written: OUT/PLATE.ome.zarr/ROW/COLUMN/FIELD/LEVEL, with the table of all cells beside the plates.

OUT/cells.parquet   the store's columns, and where each cell's image lies: Image_Plate (folder), Image_Path, Image_Field,
                    Image_Acquisition, and the corner Image_Y, Image_X of its tile in pixels
    PLATE.ome.zarr  one plate; images (channel, y, x) are counts in the camera's units
    manifest.json   size and sha256 of every file, written last
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.data.exporting import ngff
from cellbridge.data.exporting.cells import Cells
from cellbridge.data.exporting.chunks import write_array
from cellbridge.data.exporting.plates import Field, Plate
from cellbridge.tables import write_parquet

Counts = NDArray[np.unsignedinteger]
TABLE = "cells.parquet"
_SMALLEST_LEVEL = 256
"""A level that is no wider has none after it."""


@dataclass(frozen=True)
class Look:
    """How images are written and shown."""

    version: ngff.Version
    stains: Mapping[str, Sequence[ngff.Stain]]
    """Of each plate, by its own name."""


def write_plates(
    folder: Path, plates: Sequence[Plate], cells: Cells, look: Look, *, advance: Callable[[], None] = lambda: None
) -> None:
    """Write every plate and the table of cells into an empty folder.

    Parameters
    ----------
    advance : is called after every image.
    """
    for plate in plates:
        _write_plate(folder / plate.folder, plate, cells, look, advance)
    write_parquet(_table(plates, cells), folder / TABLE)


def mosaic(cells: Cells, field: Field) -> Counts:
    """Return a field's pixels (channel, y, x): its cells in their tiles, zeros in the others."""
    size, channels, (down, across) = cells.info.size_px, len(cells.info.channels), field.grid
    image = np.zeros((channels, down, size, across, size), cells.dtype)
    image[:, field.tiles // across, :, field.tiles % across] = cells.counts(field.rows)
    return image.reshape(channels, down * size, across * size)


def halved(image: Counts) -> Counts:
    """Return the mean of two by two pixels, halves rounded up; a last odd row or column is left out."""
    channels, height, width = image.shape
    parts = image[:, : height // 2 * 2, : width // 2 * 2].reshape(channels, height // 2, 2, width // 2, 2)
    return ((parts.sum(axis=(2, 4), dtype=np.uint32) + 2) // 4).astype(image.dtype)


def _write_plate(folder: Path, plate: Plate, cells: Cells, look: Look, advance: Callable[[], None]) -> None:
    version = look.version
    _write_group(folder, ngff.plate_attributes(plate, version=version), version=version)
    for fields in plate.of_well().values():
        well = (folder / fields[0].place).parent
        if not well.parent.exists():
            _write_group(well.parent, {}, version=version)
        _write_group(well, ngff.well_attributes(fields, version=version), version=version)
        for field in fields:
            _write_image(folder / field.place, plate, field, cells, look)
            advance()


def _write_image(folder: Path, plate: Plate, field: Field, cells: Cells, look: Look) -> None:
    levels = [mosaic(cells, field)]
    while max(levels[-1].shape[1:]) > _SMALLEST_LEVEL and min(levels[-1].shape[1:]) > 1:
        levels.append(halved(levels[-1]))
    first = cells.obs.iloc[field.rows[0]]
    acquisition = next(one.name for one in plate.acquisitions if one.number == field.acquisition)
    name = str(first["Metadata_Cell"]) if len(field.rows) == 1 else f"{field.well} {acquisition}"
    attributes = ngff.image_attributes(
        name,
        levels=len(levels),
        pixel_um=cells.info.pixel_um,
        stains=look.stains[plate.name],
        full_scale=cells.info.full_scale,
        own=_own(cells.obs, field),
        version=look.version,
    )
    _write_group(folder, attributes, version=look.version)
    for number, level in enumerate(levels):
        write_array(folder / str(number), level, version=look.version)


def _own(obs: pd.DataFrame, field: Field) -> dict[str, Any]:
    """Return what the store says of the cells in an image."""
    metadata = obs.filter(regex="^Metadata_").iloc[field.rows]
    if len(field.rows) == 1:
        return {str(name): str(value) for name, value in metadata.iloc[0].items()}
    return {"grid": list(field.grid), "tiles": dict(zip(metadata.index, field.tiles.tolist(), strict=True))}


def _write_group(folder: Path, attributes: dict[str, Any], *, version: ngff.Version) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if version == "0.5":
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        return _write_json(folder / "zarr.json", group)
    _write_json(folder / ".zgroup", {"zarr_format": 2})
    _write_json(folder / ".zattrs", attributes)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _table(plates: Sequence[Plate], cells: Cells) -> pd.DataFrame:
    """Return the store's table with where each cell lies."""
    size = cells.info.size_px
    places: list[dict[str, Any]] = [{}] * len(cells)
    for plate in plates:
        for field in plate.fields:
            for row, tile in zip(field.rows.tolist(), field.tiles.tolist(), strict=True):
                places[row] = {
                    "Image_Plate": plate.folder,
                    "Image_Path": field.place,
                    "Image_Field": field.path,
                    "Image_Acquisition": field.acquisition,
                    "Image_Y": tile // field.grid[1] * size,
                    "Image_X": tile % field.grid[1] * size,
                }
    return cells.obs.join(pd.DataFrame(places, index=cells.obs.index))
