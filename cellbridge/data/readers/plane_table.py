"""Any table with one row per plane: `path`, `channel`, plate, well, site, and whatever else it says of them.

A path may be a file, a page of a TIFF (`field.tif[2]`), or a part of a Zarr or NumPy array (`images.zarr/images[0,1]`). Plate, well
and site stand in `Metadata_Plate`, `plate` or `Plate`, and so on; every other column becomes `Metadata_<column>`.
"""

from pathlib import Path

from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.planes import Plane, split_index
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.places import PlaneRow, gather_fields, may_be_wanted
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import Table, read_table
from cellbridge.errors import ManifestError, did_you_mean

_PLACES = {name: f"Metadata_{name.capitalize()}" for name in ("source", "batch", "plate", "well", "site")}


def read_plane_table(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per field; no image is opened.

    Raises
    ------
    ManifestError : a table, column or value is missing, a channel is unknown, missing or there twice, or a path leaves the root.
    """
    planes: list[PlaneRow] = []
    for name in manifest.tables:
        with apart("table"):
            table = read_table(manifest.locate(name, root, where="tables"), root=root)
            planes.extend(row for row in _planes(table, manifest, root) if may_be_wanted(row.metadata, manifest))
    return gather_fields(planes, manifest)


def _planes(table: Table, manifest: Manifest, root: Path) -> list[PlaneRow]:
    special = {key: manifest.columns.get(key, key) for key in ("path", "channel", "md5")}
    table.require(special["path"], special["channel"])
    names = {name: _metadata_name(name) for name in table.columns if name not in special.values()}
    table.require_distinct(names)
    columns = {meaning: name for name, meaning in names.items()}
    for key in ("Metadata_Plate", "Metadata_Well"):
        if key not in {*names.values(), *manifest.constants}:
            raise ManifestError(
                f'{table.name}: no column "{key}" or "{key.removeprefix("Metadata_").lower()}". Rename one, or give it under '
                f"constants.{did_you_mean(key, table.columns)}"
            )
    rows = []
    for index, row in enumerate(table.rows):
        where = table.where(index)
        with apart("row"):
            text, part = split_index(row[special["path"]])
            file = resolve_path(text, root, where=f"{where} {special['path']}", prefixes=manifest.prefixes)
            metadata = {**manifest.constants, **{names[name]: row[name] for name in names}}
            rows.append(
                PlaneRow(
                    metadata, row[special["channel"]], Plane(file, part), where, row.get(special["md5"], ""), columns
                )
            )
    return rows


def _metadata_name(column: str) -> str:
    if column.startswith("Metadata_"):
        return column
    return _PLACES.get(column.casefold(), f"Metadata_{column}")
