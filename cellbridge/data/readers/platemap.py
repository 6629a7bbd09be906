"""Plate maps of the Cell Painting community: barcode_platemap.csv and one TAB-separated map per layout.

`barcode_platemap.csv` says which map a plate follows (`Assay_Plate_Barcode`, `Plate_Map_Name`); `platemap/<name>.txt` says what
every well holds (`well_position`, then any columns). Each column reaches the rows as `Metadata_<column>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellbridge.data.layout import parse_well
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.rows import Entry
from cellbridge.data.readers.tables import read_table
from cellbridge.errors import ManifestError

BARCODE_TABLE = "barcode_platemap.csv"


@dataclass(frozen=True)
class PlateMap:
    """What every well of a layout holds, what messages call the map, and whether it could be read."""

    name: str
    wells: Mapping[str, Entry]
    is_whole: bool = True


def read_platemaps(folders: Sequence[Path], *, plate_format: int, root: Path | None = None) -> dict[str, PlateMap]:
    """Return plate → its map.

    Parameters
    ----------
    root : what the names of tables in messages are relative to.

    Raises
    ------
    ManifestError : a table or map is missing, a plate or well stands twice, or a well is outside the plate.
    """
    plates: dict[str, PlateMap] = {}
    for folder in folders:
        with apart("platemap"):
            _read_folder(folder, plates, plate_format=plate_format, root=root)
    return plates


def _read_folder(folder: Path, plates: dict[str, PlateMap], *, plate_format: int, root: Path | None) -> None:
    """Add the plates of one folder."""
    if not folder.is_dir():
        raise ManifestError(
            f"{folder}: is no folder with a {BARCODE_TABLE}. Copy it there, or correct platemaps in the manifest."
        )
    table = read_table(folder / BARCODE_TABLE, root=root)
    table.require("Assay_Plate_Barcode", "Plate_Map_Name")
    maps: dict[str, PlateMap] = {}
    for index, row in enumerate(table.rows):
        plate, name = row["Assay_Plate_Barcode"], row["Plate_Map_Name"]
        with apart("platemap"):
            if plate in plates:
                raise ManifestError(
                    f'{table.where(index)} Assay_Plate_Barcode: plate "{plate}" stands twice. Remove one row.'
                )
            plates[plate] = PlateMap(name, {}, is_whole=False)  # as which it stays where its map is at fault
            if name not in maps:
                file = _map_file(folder, name, where=f"{table.where(index)} Plate_Map_Name")
                maps[name] = _read_map(file, plate_format=plate_format, root=root)
            plates[plate] = maps[name]


def _map_file(folder: Path, name: str, *, where: str) -> Path:
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise ManifestError(f'{where}: "{name}" is no file name. Give the name of a map in {folder}/platemap.')
    files = [folder / "platemap" / f"{name}{suffix}" for suffix in (".txt", ".tsv", ".csv")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ManifestError(f'{where}: no plate map "{name}", expected {files[0]}. Add the file or fix Plate_Map_Name.')
    return found


def _read_map(file: Path, *, plate_format: int, root: Path | None) -> PlateMap:
    table = read_table(file, root=root)
    table.require("well_position")
    named = [(f"Metadata_{n.removeprefix('Metadata_')}", n) for n in table.columns if n != "well_position"]
    names = dict(named)
    table.require_distinct({name: own for own, name in named})
    wells: dict[str, Entry] = {}
    for index, row in enumerate(table.rows):
        where = f"{table.where(index)} well_position"
        with apart("platemap"):
            well = parse_well(row["well_position"], plate_format=plate_format, where=where)
            if well in wells:
                raise ManifestError(
                    f"{where}: well {well} stands twice. Remove one row; several compounds in a well are one row and one name, such as "
                    "taxol + rotenone."
                )
            wells[well] = Entry({own: row[name] for own, name in names.items()}, names, table.where(index))
    return PlateMap(table.name, wells)
