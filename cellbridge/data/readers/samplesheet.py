"""The samplesheet of nf-core/cellpainting: one row per field and channel, `channel,path,source,batch,plate,well,site,row,col`.

References
----------
nf-core/cellpainting, assets/samplesheet.csv; `field_id` and `plane_id` are optional there.
"""

from pathlib import Path

from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.planes import Plane, split_index
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.places import PlaneRow, gather_fields, may_be_wanted, well_of
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import Table, read_table

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
    rows = []
    for index, row in enumerate(table.rows):
        where = table.where(index)
        with apart("row"):
            text, part = split_index(row["path"])
            metadata = {
                _METADATA.get(name, f"Metadata_{name}"): cell for name, cell in row.items() if name not in _OF_A_PLANE
            }
            if not metadata.get("Metadata_Well"):
                metadata["Metadata_Well"] = well_of(row.get("row", ""), row.get("col", ""), where=f"{where} row, col")
            file = resolve_path(text, root, where=f"{where} path", prefixes=manifest.prefixes)
            rows.append(PlaneRow({**manifest.constants, **metadata}, row["channel"], Plane(file, part), where))
    return rows


_OF_A_PLANE = ("channel", "path")
