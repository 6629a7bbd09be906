"""Ready-made crops of one cell each, listed in a table: `path`, `Metadata_*`, and where known the file's `md5`."""

from pathlib import Path

from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.planes import Plane, split_index
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.places import place_metadata
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import Table, read_table


def read_crop_table(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per crop, as the tables have them; no image is opened.

    Raises
    ------
    ManifestError : a table, column or value is missing, a well is outside its plate, or a path leaves the root.
    """
    rows: list[ImageRow] = []
    for name in manifest.tables:
        with apart("table"):
            rows.extend(_read_rows(read_table(manifest.locate(name, root, where="tables"), root=root), manifest, root))
    return rows


def _read_rows(table: Table, manifest: Manifest, root: Path) -> list[ImageRow]:
    table.require("path", "Metadata_Plate", "Metadata_Well")
    kept = [name for name in table.columns if name.startswith(("Metadata_", "Location_"))]
    rows = []
    for index, row in enumerate(table.rows):
        where = table.where(index)
        with apart("row"):
            values = {**manifest.constants, **{name: row[name] for name in kept}}
            text, part = split_index(row["path"])
            file = resolve_path(text, root, where=f"{where} path", prefixes=manifest.prefixes)
            rows.append(
                ImageRow(
                    metadata=place_metadata(values, plate_format=manifest.plate_format, where=where),
                    images={"": Plane(file, part)},
                    where=where,
                    digests={"": row["md5"].lower()} if row.get("md5") else {},
                )
            )
    return rows
