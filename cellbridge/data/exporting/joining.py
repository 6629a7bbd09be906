"""Which cells or wells a table of features speaks of, and what the stores know of them besides."""

from pathlib import Path

import numpy as np
import pandas as pd

from cellbridge.data.exporting.cells import MODEL, ORIGIN, Cells
from cellbridge.data.exporting.feature_tables import Features
from cellbridge.data.layout import parse_well
from cellbridge.errors import ManifestError, did_you_mean

CELL, PLATE, WELL, ARM = "Metadata_Cell", "Metadata_Plate", "Metadata_Well", "Metadata_Arm"
_LARGEST_PLATE = 1536


def described(features: Features, cells: Cells, *, file: Path) -> pd.DataFrame:
    """Return the metadata of the table's rows, with what the stores know of the same cells, or of the same wells.

    Rows are told by `Metadata_Cell` (and by `Metadata_Model` where several models translated one cell), else by plate and well, to
    which real cells give what all of them agree on. The rows of an evaluation (`Metadata_Arm`) are images of a cell rather than the cell:
    its condition is not theirs, and they stay as they are.

    Raises
    ------
    ManifestError : a row names no cell or well, one that the stores do not have, or another plate or well than they do.
    """
    given = features.metadata
    if ARM in given:
        return _require(given, PLATE, WELL, file=file)
    if CELL in given:
        return _by_cell(given, cells, file=file)
    return _by_well(_require(given, PLATE, WELL, file=file), cells, file=file)


def rows_of_cells(features: Features, cells: Cells, *, file: Path) -> np.ndarray:
    """Return for every cell the table's row that speaks of it.

    Raises
    ------
    ManifestError : the table has no `Metadata_Cell`, or not exactly one row per cell.
    """
    given = _require(features.metadata, CELL, file=file)
    if ARM in given:
        raise ManifestError(
            f"{file}: its rows are the arms of an evaluation, several to a cell. Export it to profiles."
        )
    places = _places(given, cells, file=file)
    order = np.full(len(cells), -1)
    order[places] = np.arange(len(places))
    lacking = np.flatnonzero(order < 0)
    if len(lacking) or len(places) != len(cells):
        which = f'cell "{cells.obs.index[lacking[0]]}" is not in it' if len(lacking) else "some cells stand twice"
        raise ManifestError(f"{file}: {len(places)} rows for {len(cells)} cells; {which}. Give one row per cell.")
    return order


def _by_cell(given: pd.DataFrame, cells: Cells, *, file: Path) -> pd.DataFrame:
    known = cells.obs.filter(regex="^Metadata_").iloc[_places(given, cells, file=file)].reset_index(drop=True)
    for name in (PLATE, WELL):
        if name not in given:
            continue
        same = _as_wells(given[name]) == _as_wells(known[name]) if name == WELL else given[name] == known[name]
        if not same.all():
            row = int(np.flatnonzero(~same.to_numpy())[0])
            raise ManifestError(
                f'{file} row {row + 2}: {name} "{given[name].iloc[row]}" of cell "{given[CELL].iloc[row]}", but '
                f'"{known[name].iloc[row]}" in {cells.info.path}. Give the table of this store.'
            )
    return known.join(given[[name for name in given.columns if name not in known]].reset_index(drop=True))


def _places(given: pd.DataFrame, cells: Cells, *, file: Path) -> np.ndarray:
    """Return the position among the cells of each row's cell."""
    ids = cells.obs[CELL]
    if ids.is_unique:
        places = pd.Index(ids).get_indexer(pd.Index(given[CELL]))
    else:
        _require(given, MODEL, file=file)
        known = pd.MultiIndex.from_arrays([ids, cells.obs[MODEL]])
        places = known.get_indexer(pd.MultiIndex.from_frame(given[[CELL, MODEL]]))
    if (places < 0).any():
        row = int(np.flatnonzero(places < 0)[0])
        raise ManifestError(
            f'{file} row {row + 2}: cell "{given[CELL].iloc[row]}" is not in {cells.info.path}. Give the store that the table was made from.'
        )
    return np.asarray(places)


def _by_well(given: pd.DataFrame, cells: Cells, *, file: Path) -> pd.DataFrame:
    real = cells.obs[cells.obs.get(ORIGIN, pd.Series("", index=cells.obs.index)) != "generated"]
    real = real.filter(regex="^Metadata_").assign(**{WELL: _as_wells(real[WELL])})
    groups = real.groupby([PLATE, WELL], sort=False)
    agreed = [name for name in real.columns if name not in (PLATE, WELL) and (groups[name].nunique() == 1).all()]
    known = groups[agreed].first()
    wells = pd.MultiIndex.from_arrays([given[PLATE], _as_wells(given[WELL])])
    places = known.index.get_indexer(wells)
    if (places < 0).any():
        row = int(np.flatnonzero(places < 0)[0])
        raise ManifestError(
            f'{file} row {row + 2}: well {wells[row][1]} of plate "{wells[row][0]}" is not in {cells.info.path} '
            f"(plates: {', '.join(cells.info.plates[:12])}). Give the store of these plates."
        )
    found = known.iloc[places].reset_index(drop=True)
    own = given.assign(**{WELL: list(wells.get_level_values(1))}).reset_index(drop=True)
    return own.join(found[[name for name in found.columns if name not in own]])


def _as_wells(texts: pd.Series) -> pd.Series:
    """Return wells as `A01`; what is no well stays as it is, and is found or not found by its own name."""
    names = {text: _as_well(text) for text in texts.unique()}
    return texts.map(names).reset_index(drop=True).set_axis(texts.index)


def _as_well(text: str) -> str:
    try:
        return parse_well(text, plate_format=_LARGEST_PLATE)
    except ManifestError:
        return text


def _require(given: pd.DataFrame, *columns: str, file: Path) -> pd.DataFrame:
    for name in columns:
        if name not in given:
            raise ManifestError(
                f"{file}: no column {name}, so it does not say what its rows are.{did_you_mean(name, given.columns)}"
            )
    return given
