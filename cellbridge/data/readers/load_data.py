"""CellProfiler's and the Cell Painting Gallery's load_data.csv: one row per field, one file per channel.

A channel's file stands in `FileName_<Channel>` with its folder in `PathName_<Channel>`, or in `URL_<Channel>`; `Image_` in front
and `Orig` before the channel are understood, columns for illumination functions (`…_Illum<Channel>`) are passed over.

References
----------
Cell Painting Gallery, documentation/data_structure.md; CellProfiler, module LoadData.
"""

import re
from pathlib import Path

from cellbridge.data.layout import parse_well
from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.planes import Plane
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import Table, read_table
from cellbridge.errors import ManifestError, did_you_mean

_IMAGE_COLUMN = re.compile(r"(?:Image_)?(FileName|PathName|URL)_(?:Orig(?=[A-Z]))?(?!Illum)(.+)")
_METADATA_COLUMN = re.compile(r"(?:Image_)?(Metadata_.+)")


def read_load_data(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per field, as the tables have them; no image is opened.

    Raises
    ------
    ManifestError : a table, channel column or value is missing, a well is outside its plate, or a path leaves the root.
    """
    rows: list[ImageRow] = []
    for name in manifest.tables:
        table = read_table(resolve_path(name, root, where="tables"))
        rows.extend(_read_rows(table, manifest, root))
    return rows


def _read_rows(table: Table, manifest: Manifest, root: Path) -> list[ImageRow]:
    files = _image_columns(table)
    for channel in manifest.channels_to_read:
        if channel not in files:
            raise ManifestError(
                f'{table.path}: no column for channel "{channel}" (FileName_{channel} or URL_{channel}).'
                f"{did_you_mean(channel, files)}"
            )
    metadata = {match[1]: name for name in table.columns if (match := _METADATA_COLUMN.fullmatch(name))}
    for key in ("Metadata_Plate", "Metadata_Well"):
        if key not in metadata:
            raise ManifestError(f'{table.path}: no column "{key}".{did_you_mean(key, table.columns)}')
    rows = []
    for index, row in enumerate(table.rows):
        values = {key: row[column] for key, column in metadata.items()}
        rows.append(
            ImageRow(
                metadata=place_metadata(values, plate_format=manifest.plate_format, where=table.where(index)),
                images={
                    channel: Plane(_path(row, files[channel], manifest, root, table.where(index)))
                    for channel in manifest.channels_to_read
                },
                where=table.where(index),
            )
        )
    return rows


def place_metadata(values: dict[str, str], *, plate_format: int, where: str) -> dict[str, str]:
    """Return the metadata with the well as `A01`, and site 1 where the table has no sites."""
    if not values.get("Metadata_Plate"):
        raise ManifestError(f"{where}: Metadata_Plate is empty. Fill it in, or remove the row.")
    well = parse_well(values.get("Metadata_Well", ""), plate_format=plate_format, where=where)
    site = values.get("Metadata_Site", "1")
    if not re.fullmatch(r"[\w.-]+", site):
        raise ManifestError(f'{where}: Metadata_Site "{site}" is no name of a site. Use a number, such as 1.')
    return {**values, "Metadata_Well": well, "Metadata_Site": site}


def _image_columns(table: Table) -> dict[str, dict[str, str]]:
    """Channel → kind (FileName, PathName, URL) → column; a channel counts where a file or URL is given."""
    found: dict[str, dict[str, str]] = {}
    for name in table.columns:
        if match := _IMAGE_COLUMN.fullmatch(name):
            found.setdefault(match[2], {})[match[1]] = name
    return {channel: kinds for channel, kinds in found.items() if "FileName" in kinds or "URL" in kinds}


def _path(row: dict[str, str], columns: dict[str, str], manifest: Manifest, root: Path, where: str) -> Path:
    if "FileName" in columns and row[columns["FileName"]]:
        folder = row[columns["PathName"]] if "PathName" in columns else ""
        name = row[columns["FileName"]]
        text = f"{folder.rstrip('/')}/{name}" if folder else name
        where = f"{where} {columns['FileName']}"
    else:
        column = columns.get("URL", columns.get("FileName", ""))
        text, where = row[column], f"{where} {column}"
    return resolve_path(text, root, where=where, prefixes=manifest.prefixes)
