"""Plate maps of the Cell Painting community: barcode_platemap.csv and one TAB-separated map per layout.

`barcode_platemap.csv` says which map a plate follows (`Assay_Plate_Barcode`, `Plate_Map_Name`); `platemap/<name>.txt` says what
every well holds (`well_position`, then any columns). Each column reaches the rows as `Metadata_<column>`.
"""

from collections.abc import Sequence
from pathlib import Path

from cellbridge.data.layout import parse_well
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.tables import read_table
from cellbridge.errors import ManifestError

BARCODE_TABLE = "barcode_platemap.csv"

WellContents = dict[str, dict[str, str]]


def read_platemaps(folders: Sequence[Path], *, plate_format: int) -> dict[str, WellContents]:
    """Return plate → well → `Metadata_*` columns.

    Raises
    ------
    ManifestError : a table or map is missing, a plate or well stands twice, or a well is outside the plate.
    """
    plates: dict[str, WellContents] = {}
    for folder in folders:
        with apart("platemap"):
            _read_folder(folder, plates, plate_format=plate_format)
    return plates


def _read_folder(folder: Path, plates: dict[str, WellContents], *, plate_format: int) -> None:
    """Add the plates of one folder."""
    table = read_table(folder / BARCODE_TABLE)
    table.require("Assay_Plate_Barcode", "Plate_Map_Name")
    maps: dict[str, WellContents] = {}
    for index, row in enumerate(table.rows):
        plate, name = row["Assay_Plate_Barcode"], row["Plate_Map_Name"]
        with apart("platemap"):
            if plate in plates:
                raise ManifestError(
                    f'{table.path} row {table.lines[index]}: plate "{plate}" stands twice. Remove one row.'
                )
            if name not in maps:
                maps[name] = _read_map(_map_file(folder, name, where=table.where(index)), plate_format=plate_format)
            plates[plate] = maps[name]


def _map_file(folder: Path, name: str, *, where: str) -> Path:
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise ManifestError(
            f'{where}: Plate_Map_Name "{name}" is no file name. Give the name of a map in {folder}/platemap.'
        )
    files = [folder / "platemap" / f"{name}{suffix}" for suffix in (".txt", ".tsv", ".csv")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ManifestError(f'{where}: no plate map "{name}", expected {files[0]}. Add the file or fix Plate_Map_Name.')
    return found


def _read_map(file: Path, *, plate_format: int) -> WellContents:
    table = read_table(file)
    table.require("well_position")
    wells: WellContents = {}
    for index, row in enumerate(table.rows):
        with apart("platemap"):
            well = parse_well(row["well_position"], plate_format=plate_format, where=table.where(index))
            if well in wells:
                raise ManifestError(f"{file} row {table.lines[index]}: well {well} stands twice. Remove one row.")
            wells[well] = {
                f"Metadata_{name.removeprefix('Metadata_')}": cell
                for name, cell in row.items()
                if name != "well_position"
            }
    return wells
