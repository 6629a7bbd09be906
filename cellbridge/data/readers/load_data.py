"""CellProfiler's and the Cell Painting Gallery's load_data.csv: one row per field, one file per channel.

A channel's file stands in `FileName_<Channel>` with its folder in `PathName_<Channel>`, or in `URL_<Channel>`; `Image_` in front and
`Orig` before the channel are understood. `Frame_<Channel>` is a page of a file with several, `MD5Digest_<Channel>` the file's sum.
`load_data_with_illum.csv` also names each channel's illumination function (`…_Illum<Channel>`), which is handed on.

References
----------
Cell Painting Gallery, documentation/data_structure.md; CellProfiler, module LoadData.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cellbridge.data.images import TIFF_SUFFIXES
from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.planes import Plane
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.places import place_metadata
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import Table, read_table
from cellbridge.errors import ManifestError, did_you_mean

Columns = dict[str, dict[str, str]]
"""Channel → kind (FileName, PathName, URL …) → column."""

_KINDS = "FileName|PathName|URL|Frame|Series|MD5Digest"
_IMAGE_COLUMN = re.compile(rf"(?:Image_)?({_KINDS})_(?:Orig(?=[A-Z]))?(?!Illum)(.+)")
_ILLUMINATION_COLUMN = re.compile(rf"(?:Image_)?({_KINDS})_Illum(.+)")
_METADATA_COLUMN = re.compile(r"(?:Image_)?(Metadata_.+)")


def read_load_data(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per field, as the tables have them; no image is opened.

    Raises
    ------
    ManifestError : a table, channel column or value is missing, a well is outside its plate, or a path leaves the root.
    """
    rows: list[ImageRow] = []
    for name in manifest.tables:
        with apart("table"):
            table = read_table(manifest.locate(name, root, where="tables"), root=root)
            rows.extend(_read_rows(table, manifest, root))
    return rows


def _read_rows(table: Table, manifest: Manifest, root: Path) -> list[ImageRow]:
    files = image_columns(table, manifest)
    light = _columns(table, _ILLUMINATION_COLUMN, manifest)
    named = [(match[1], name) for name in table.columns if (match := _METADATA_COLUMN.fullmatch(name))]
    metadata = dict(named)
    table.require_distinct({column: key for key, column in named})
    for key in ("Metadata_Plate", "Metadata_Well"):
        if key not in {*metadata, *manifest.constants}:
            raise ManifestError(
                f'{table.name}: no column "{key}". Add it, or give it under constants.{did_you_mean(key, table.columns)}'
            )
    rows = []
    for index, row in enumerate(table.rows):
        where = table.where(index)
        with apart("row"):
            values = {**manifest.constants, **{key: row[column] for key, column in metadata.items()}}
            digests = {
                c: row[files[c]["MD5Digest"]] for c in manifest.channels_to_read if "MD5Digest" in files.get(c, {})
            }
            rows.append(
                ImageRow(
                    metadata=place_metadata(values, plate_format=manifest.plate_format, where=where, names=metadata),
                    images=channel_planes(row, files, manifest, root, where=where),
                    where=where,
                    digests={channel: md5.lower() for channel, md5 in digests.items() if md5},
                    illumination=_illumination(row, light, manifest, root, where=where),
                    names=metadata,
                )
            )
    return rows


def image_columns(table: Table, manifest: Manifest) -> Columns:
    """Return the columns of every channel for which a file or URL is given.

    Raises
    ------
    ManifestError : the table has none for a channel that the manifest reads.
    """
    files = _columns(table, _IMAGE_COLUMN, manifest)
    if not files:
        raise ManifestError(
            f"{table.name}: no column lists images (FileName_<Channel> or URL_<Channel>). Restore its header, or correct kind in the "
            f"manifest.{did_you_mean('FileName_DNA', table.columns)}"
        )
    for channel in manifest.channels_to_read:
        with apart("missing_channel"):
            if channel not in files:
                raise ManifestError(
                    f'{table.name}: no column for channel "{channel}" (FileName_{channel} or URL_{channel}). Say under '
                    f"channel_names what the table calls it, or correct channels.{did_you_mean(channel, files)}"
                )
    return files


def channel_planes(
    row: Mapping[str, str], files: Columns, manifest: Manifest, root: Path, *, where: str
) -> dict[str, Plane]:
    """Return where the pixels of every channel to read lie.

    Raises
    ------
    ManifestError : a path is empty or leaves the root, or a frame is no page.
    """
    planes = {}
    for channel in (name for name in manifest.channels_to_read if name in files):
        with apart("row"):
            columns = files[channel]
            file = _path(row, columns, manifest, root, where)
            planes[channel] = Plane(file, _page(row, columns, file, where=where))
    return planes


def _columns(table: Table, pattern: re.Pattern[str], manifest: Manifest) -> Columns:
    found: Columns = {}
    for name in table.columns:
        if match := pattern.fullmatch(name):
            channel = manifest.channel_names.get(match[2], match[2])
            first = found.setdefault(channel, {}).setdefault(match[1], name)
            differ = any(row[first] != row[name] for row in table.rows)
            if differ and channel in manifest.channels_to_read:
                raise ManifestError(
                    f'{table.name}: columns "{first}" and "{name}" are both channel "{channel}". Remove or rename one of the two, or '
                    "correct channel_names in the manifest."
                )
    return {channel: kinds for channel, kinds in found.items() if "FileName" in kinds or "URL" in kinds}


def _illumination(
    row: Mapping[str, str], light: Columns, manifest: Manifest, root: Path, *, where: str
) -> dict[str, Path]:
    """Return channel → illumination function, for every channel to read that the table names one for."""
    wanted: Sequence[str] = [channel for channel in manifest.channels_to_read if channel in light]
    return {channel: _path(row, light[channel], manifest, root, where) for channel in wanted}


def _page(row: Mapping[str, str], columns: Mapping[str, str], file: Path, *, where: str) -> tuple[int, ...]:
    """Return the page that Frame_ names; 0 of 0 series is what CellProfiler writes for every file with one image."""
    series = row[columns["Series"]] if "Series" in columns else ""
    if series not in ("", "0"):
        raise ManifestError(
            f'{where} {columns["Series"]}: series "{series}" is not understood, only pages (Frame) are. Export one file per series.'
        )
    text = row[columns["Frame"]] if "Frame" in columns else ""
    if text and not text.isdecimal():
        raise ManifestError(f'{where} {columns["Frame"]}: "{text}" is no page. Write a number, counted from 0.')
    if not text or (text == "0" and file.suffix.lower() not in TIFF_SUFFIXES):
        return ()
    return (int(text),)


def _path(row: Mapping[str, str], columns: Mapping[str, str], manifest: Manifest, root: Path, where: str) -> Path:
    if "FileName" in columns and row[columns["FileName"]]:
        folder = row[columns["PathName"]] if "PathName" in columns else ""
        name = row[columns["FileName"]]
        text = f"{folder.rstrip('/')}/{name}" if folder else name
        where = f"{where} {columns['FileName']}"
    else:
        column = columns.get("URL", columns.get("FileName", ""))
        text, where = row[column], f"{where} {column}"
    return resolve_path(text, root, where=where, prefixes=manifest.prefixes)
