"""The image table of BBBC021: one row per field, `Image_FileName_DAPI`, `Image_PathName_DAPI`, `Image_Metadata_Plate_DAPI`, compound.

It has no column for the site: the file names do (`G10_s1_w1….tif`).

References
----------
BBBC021_v1_image.csv of the Broad Bioimage Benchmark Collection; Ljosa et al. 2012, Nature Methods 9:637.
"""

import re
from pathlib import Path

from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.load_data import channel_planes, image_columns
from cellbridge.data.readers.places import place_metadata
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import Table, read_table
from cellbridge.errors import ManifestError

_SITE = re.compile(r"(?:.*_)?s([0-9]+)_w[0-9].*")
_METADATA = {
    "Image_Metadata_Plate_DAPI": "Metadata_Plate",
    "Image_Metadata_Well_DAPI": "Metadata_Well",
    "Replicate": "Metadata_Replicate",
    "Image_Metadata_Compound": "Metadata_Compound",
    "Image_Metadata_Concentration": "Metadata_Concentration",
}
_COLUMNS = {name: column for column, name in _METADATA.items()}


def read_bbbc021(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per field; no image is opened.

    Raises
    ------
    ManifestError : a table, column or value is missing, a well is outside its plate, a file name says no site, or a path leaves
        the root.
    """
    rows: list[ImageRow] = []
    for name in manifest.tables:
        with apart("table"):
            rows.extend(_rows(read_table(manifest.locate(name, root, where="tables"), root=root), manifest, root))
    return rows


def _rows(table: Table, manifest: Manifest, root: Path) -> list[ImageRow]:
    table.require(*_METADATA)
    files = image_columns(table, manifest)
    rows = []
    for index, row in enumerate(table.rows):
        where = table.where(index)
        with apart("row"):
            values = {name: row[column] for column, name in _METADATA.items()}
            column = next((kinds["FileName"] for kinds in files.values() if "FileName" in kinds), "Image_FileName")
            match = _SITE.fullmatch(row.get(column, ""))
            if match is None:
                raise ManifestError(
                    f'{where} {column}: "{row.get(column, "")}" says no site. Names such as G10_s1_w1….tif are expected; restore the name.'
                )
            metadata = {**manifest.constants, **values, "Metadata_Site": match[1]}
            rows.append(
                ImageRow(
                    metadata=place_metadata(metadata, plate_format=manifest.plate_format, where=where, names=_COLUMNS),
                    images=channel_planes(row, files, manifest, root, where=where),
                    where=where,
                    names=_COLUMNS,
                )
            )
    return rows
