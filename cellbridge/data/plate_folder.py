"""A plate's files as a laboratory has them: one TIFF per field and channel, load_data.csv, plate maps.

References
----------
Cell Painting Gallery, documentation/data_structure.md (load_data.csv, platemaps); CellProfiler, module LoadData.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellbridge.conditions import Condition


def write_field(
    counts: NDArray[np.uint16], root: Path, folder: str, *, channels: Sequence[str], well: str, site: int
) -> dict[str, str]:
    """Write `<root>/<folder>/<well>_s<site>_<channel>.tif` for each channel of (channel, y, x) counts.

    Returns
    -------
    FileName_<channel> and PathName_<channel> (relative to the root), as they stand in load_data.csv.
    """
    (root / folder).mkdir(parents=True, exist_ok=True)
    columns = {}
    for channel, image in zip(channels, counts, strict=True):
        name = f"{well}_s{site}_{channel}.tif"
        tifffile.imwrite(root / folder / name, image, photometric="minisblack", metadata=None)
        columns[f"FileName_{channel}"], columns[f"PathName_{channel}"] = name, folder
    return columns


def condition_columns(condition: Condition) -> dict[str, str]:
    """Return Metadata_Compound and Metadata_Concentration (micromolar, empty where there is none)."""
    dose = "" if condition.dose_um is None else f"{condition.dose_um:g}"
    return {"Metadata_Compound": condition.compound, "Metadata_Concentration": dose}


def write_platemaps(
    folder: Path, *, name: str, plates: Sequence[str], wells: Mapping[str, Condition], control: str
) -> None:
    """Write barcode_platemap.csv and platemap/<name>.txt (columns compound, concentration_um, solvent, pert_type).

    Parameters
    ----------
    plates : the barcodes, which all follow this one map.
    wells : well → what it holds; the compound called `control` is the vehicle.
    """
    barcodes = [{"Assay_Plate_Barcode": plate, "Plate_Map_Name": name} for plate in plates]
    write_table(folder / "barcode_platemap.csv", barcodes)
    rows = [
        {
            "plate_map_name": name,
            "well_position": well,
            "compound": condition.compound,
            "concentration_um": condition_columns(condition)["Metadata_Concentration"],
            "solvent": control,
            "pert_type": "negcon" if condition.compound == control else "trt",
        }
        for well, condition in wells.items()
    ]
    write_table(folder / "platemap" / f"{name}.txt", rows, delimiter="\t")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], *, delimiter: str = ",") -> None:
    """Write rows that all have the first row's columns as delimited text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else [], delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
