"""The samplesheet of nf-core/cellpainting: one row per field and channel, `channel,path,source,batch,plate,well,site,row,col`.

References
----------
nf-core/cellpainting, assets/samplesheet.csv; `field_id` and `plane_id` are optional there.
"""

from collections.abc import Mapping
from pathlib import Path

from cellbridge.data.layout import parse_well
from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.planes import Plane, split_index
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.places import PlaneRow, gather_fields, may_be_wanted, well_of
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import Table, read_table
from cellbridge.errors import ManifestError

_METADATA = {
    "source": "Metadata_Source",
    "batch": "Metadata_Batch",
    "plate": "Metadata_Plate",
    "well": "Metadata_Well",
    "site": "Metadata_Site",
}


def read_samplesheet(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per field; no image is opened.

    Raises
    ------
    ManifestError : a table, column or value is missing, a channel is unknown, missing or there twice, or a path leaves the root.
    """
    planes: list[PlaneRow] = []
    for name in manifest.tables:
        with apart("table"):
            table = read_table(manifest.locate(name, root, where="tables"), root=root)
            table.require("channel", "path", "plate", "site")
            planes.extend(row for row in _planes(table, manifest, root) if may_be_wanted(row.metadata, manifest))
    return gather_fields(planes, manifest)


def _planes(table: Table, manifest: Manifest, root: Path) -> list[PlaneRow]:
    if "well" not in table.columns:
        table.require("row", "col")
    named = {name: _METADATA.get(name, f"Metadata_{name}") for name in table.columns if name not in _OF_A_PLANE}
    table.require_distinct(named)
    names = {meaning: name for name, meaning in named.items()}
    rows = []
    for index, row in enumerate(table.rows):
        where = table.where(index)
        with apart("row"):
            text, part = split_index(row["path"])
            metadata = {meaning: row[name] for name, meaning in named.items()}
            metadata["Metadata_Well"] = _well(row, manifest, where=where)
            file = resolve_path(text, root, where=f"{where} path", prefixes=manifest.prefixes)
            metadata = {**manifest.constants, **metadata}
            rows.append(PlaneRow(metadata, row["channel"], Plane(file, part), where, names=names))
    return rows


def _well(row: Mapping[str, str], manifest: Manifest, *, where: str) -> str:
    """Return the well, on which `well` has to agree with `row` and `col` where a row has both."""
    named, at, places = row.get("well", ""), f"{where} row, col", (row.get("row", ""), row.get("col", ""))
    if named and not all(text.isdecimal() for text in places):
        return named
    by_place = well_of(*places, where=at)
    if named:
        size = manifest.plate_format
        found = [parse_well(text, plate_format=size, where=f"{where} well") for text in (named, by_place)]
        if found[0] != found[1]:
            raise ManifestError(
                f"{at}: row {row['row']} and column {row['col']} are well {found[1]}, well says {found[0]}. Correct one of the two."
            )
    return named or by_place


_OF_A_PLANE = ("channel", "path")
