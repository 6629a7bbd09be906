"""Which cell goes where on an OME-Zarr plate: real cells and each translation of them are acquisitions of the wells they come from."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.data.exporting.cells import MODEL, ORIGIN, Cells
from cellbridge.data.layout import SHAPES, parse_well, row_name, smallest_format, well_position
from cellbridge.errors import StoreError

Fields = Literal["cell", "well"]
REAL = "real"
_APART = (ORIGIN, MODEL, "Metadata_TargetCondition", "Metadata_Sample", "Metadata_Frame")
"""Cells that differ in one of these are different acquisitions of a well."""
_LARGEST_PLATE = 1536
_MAX_NAME = 80


@dataclass(frozen=True)
class Acquisition:
    """Images of the wells of one origin: the microscope's, or one model's translation to one condition."""

    number: int
    name: str


@dataclass(frozen=True)
class Field:
    """One image of a well: one cell, or a grid of cells row by row with `columns` tiles in a row; tiles that stay empty hold zeros."""

    well: str
    path: str
    acquisition: int
    rows: NDArray[np.int64]
    """Its cells, as rows of `Cells`."""
    tiles: NDArray[np.int64]
    """The tile of each."""
    grid: tuple[int, int]
    """Tiles down and across."""

    @property
    def place(self) -> str:
        """Path below the plate, such as B/03/0."""
        return f"{well_path(self.well)}/{self.path}"


@dataclass(frozen=True)
class Plate:
    """A plate: its own name, a folder name that is safe anywhere, its size in wells, and its fields in the order of wells."""

    name: str
    folder: str
    shape: tuple[int, int]
    acquisitions: tuple[Acquisition, ...]
    fields: tuple[Field, ...]

    def of_well(self) -> dict[str, list[Field]]:
        """Return the fields of each well."""
        found: dict[str, list[Field]] = {}
        for field in self.fields:
            found.setdefault(field.well, []).append(field)
        return found


def arrange(cells: Cells, *, fields: Fields) -> list[Plate]:
    """Return every plate of the cells.

    Parameters
    ----------
    fields : `cell` makes each cell an image of its own; `well` makes one image of all cells of a well and acquisition, in which a cell
        and its translations lie in the same tile.

    Raises
    ------
    StoreError : a cell has no well.
    """
    wells = _wells(cells)
    acquisitions, of_cell = _acquisitions(cells.obs)
    plates = cells.obs["Metadata_Plate"].to_numpy(dtype=object)
    names = sorted(set(plates))
    made = []
    for name, folder in zip(names, folder_names(names), strict=True):
        rows = np.flatnonzero(plates == name)
        of_well = {well: rows[wells[rows] == well] for well in sorted(set(wells[rows]), key=well_position)}
        if fields == "cell":
            found = [field for well, here in of_well.items() for field in _singly(well, here, of_cell)]
        else:
            found = _together(of_well, of_cell, cells.obs)
        numbers = {field.acquisition for field in found}
        shown = tuple(one for one in acquisitions if one.number in numbers)
        made.append(Plate(name, folder, SHAPES[smallest_format(set(wells[rows]))], shown, tuple(found)))
    return made


def well_path(well: str) -> str:
    """Return B/03 for B03."""
    row, column = well_position(well)
    return f"{row_name(row)}/{column + 1:02d}"


def folder_names(names: Sequence[str]) -> list[str]:
    """Return names of folders that are safe on any file system and unlike one another whatever the case of letters."""
    taken: set[str] = set()
    found = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:_MAX_NAME].strip("_") or "plate"
        candidate, number = plain, 2
        while candidate.casefold() in taken:
            candidate, number = f"{plain}-{number}", number + 1
        taken.add(candidate.casefold())
        found.append(f"{candidate}.ome.zarr")
    return found


def _wells(cells: Cells) -> NDArray[np.object_]:
    texts = cells.obs["Metadata_Well"]
    names = {}
    for text in texts.unique():
        if not text.strip():
            cell = cells.obs.index[(texts == text).to_numpy()][0]
            raise StoreError(f'cell "{cell}" has no well, and a plate holds wells only. Export it with --to anndata.')
        names[text] = parse_well(text, plate_format=_LARGEST_PLATE, where="Metadata_Well")
    return np.array([names[text] for text in texts], dtype=object)


def _acquisitions(obs: pd.DataFrame) -> tuple[list[Acquisition], NDArray[np.int64]]:
    """Return the acquisitions in the order in which they come, and the number of each cell's."""
    columns = [name for name in _APART if name in obs]
    keys = list(obs[columns].itertuples(index=False, name=None)) if columns else [()] * len(obs)
    varying = {name for name in columns if name in _APART[3:] and obs.loc[obs[name] != "", name].nunique() > 1}
    numbers: dict[tuple[str, ...], int] = {}
    of_cell = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    named = [Acquisition(n, _name(dict(zip(columns, key, strict=True)), varying)) for key, n in numbers.items()]
    return named, of_cell


def _name(key: dict[str, str], varying: Iterable[str]) -> str:
    target, model = key.get("Metadata_TargetCondition", ""), key.get(MODEL, "")
    name = " → ".join(part for part in (model, target) if part) or key.get(ORIGIN) or REAL
    more = [f"{column.removeprefix('Metadata_').lower()} {key[column]}" for column in sorted(varying) if key[column]]
    return ", ".join([name, *more])


def _singly(well: str, rows: NDArray[np.int64], of_cell: NDArray[np.int64]) -> list[Field]:
    ordered = rows[np.argsort(of_cell[rows], kind="stable")]
    tile = np.zeros(1, dtype=np.int64)
    return [
        Field(well, str(path), int(of_cell[row]), np.array([row]), tile, (1, 1)) for path, row in enumerate(ordered)
    ]


def _together(of_well: Mapping[str, NDArray[np.int64]], of_cell: NDArray[np.int64], obs: pd.DataFrame) -> list[Field]:
    """Return an image per well and acquisition. All of a plate have the grid of its fullest well: viewers put its wells side by side."""
    tiles = {well: _tiles(rows, obs) for well, rows in of_well.items()}
    most = max(int(tile.max()) + 1 for tile in tiles.values())
    columns = int(np.ceil(np.sqrt(most)))
    grid = (-(-most // columns), columns)
    return [
        Field(well, str(path), number, rows[of_cell[rows] == number], tiles[well][of_cell[rows] == number], grid)
        for well, rows in of_well.items()
        for path, number in enumerate(sorted(set(of_cell[rows].tolist())))
    ]


def _tiles(rows: NDArray[np.int64], obs: pd.DataFrame) -> NDArray[np.int64]:
    """Return the tile of each cell of a well: a cell and all that it was translated to share one."""
    own = obs["Metadata_Cell"].to_numpy(dtype=object)[rows]
    if "Metadata_SourceCell" in obs:
        source = obs["Metadata_SourceCell"].to_numpy(dtype=object)[rows]
        own = np.where(source == "", own, source)
    tiles: dict[str, int] = {}
    return np.array([tiles.setdefault(cell, len(tiles)) for cell in own], dtype=np.int64)
