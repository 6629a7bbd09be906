"""Tables of known objects (synthetic truth, another program's measurements), joined to cells by position."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from cellbridge.data.layout import parse_well
from cellbridge.data.readers.tables import Table
from cellbridge.errors import ManifestError

_PLACE = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
_MATCHED = (*_PLACE, "Metadata_Compound", "Metadata_Concentration")
_POSITIONS = (
    ("x", "y"),
    ("Location_Center_X", "Location_Center_Y"),
    ("Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"),
)

Array = np.ndarray[Any, np.dtype[Any]]


class KnownObjects:
    """Objects of each field (and condition, where the table has one), with the columns to be joined.

    Parameters
    ----------
    table : Metadata_Plate, _Well, _Site and where given _Compound and _Concentration say which image an object is in;
        x and y (or Location_Center_X and _Y) its position in pixels; every other column is joined. A column of numbers
        is joined as float64, unless it is Metadata_*.
    """

    def __init__(self, table: Table, *, plate_format: int = 384):
        table.require(*_PLACE)
        found = next((pair for pair in _POSITIONS if set(pair) <= set(table.columns)), None)
        if found is None:
            raise ManifestError(
                f'{table.name}: no columns "x" and "y" (or Location_Center_X and _Y). Add the positions.'
            )
        self.keys = tuple(name for name in _MATCHED if name in table.columns)
        self.columns = tuple(name for name in table.columns if name not in (*self.keys, *found))
        self._values = {name: _typed(name, [row[name] for row in table.rows]) for name in self.columns}
        self._positions = np.array([_position(table, index, found) for index in range(len(table.rows))])
        self._rows: dict[tuple[str, ...], list[int]] = {}
        for index, row in enumerate(table.rows):
            well = parse_well(row["Metadata_Well"], plate_format=plate_format, where=table.where(index))
            self._rows.setdefault(self._key({**row, "Metadata_Well": well}), []).append(index)

    def match(self, metadata: Mapping[str, str], centres: Array, *, radius_px: float) -> Array:
        """Return for each centre (row, column) the nearest object's index, or -1; an object goes to its nearest centre only."""
        rows = np.asarray(self._rows.get(self._key(metadata), []), dtype=np.int64)
        matched = np.full(len(centres), -1, dtype=np.int64)
        if not len(rows) or not len(centres):
            return matched
        distance, nearest = cKDTree(self._positions[rows]).query(centres, distance_upper_bound=radius_px)
        taken: set[int] = set()
        for index in np.argsort(distance, kind="stable").tolist():
            candidate = int(nearest[index])
            if np.isfinite(distance[index]) and candidate not in taken:
                taken.add(candidate)
                matched[index] = rows[candidate]
        return matched

    def values(self, name: str, indices: Array) -> Array:
        """Return a joined column for matched objects."""
        return self._values[name][indices]

    def _key(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(_canonical(name, metadata.get(name, "")) for name in self.keys)


def _canonical(name: str, text: str) -> str:
    """Let 1, 01 and 1.0 be one site or concentration; plates, wells and compounds are texts."""
    if name not in ("Metadata_Site", "Metadata_Concentration"):
        return text
    try:
        return repr(float(text))
    except ValueError:
        return text


def _typed(name: str, texts: Sequence[str]) -> Array:
    if name.startswith("Metadata_"):
        return np.array(texts, dtype=object)
    try:
        return np.array([float(text) for text in texts])
    except ValueError:
        return np.array(texts, dtype=object)


def _position(table: Table, index: int, columns: tuple[str, str]) -> tuple[float, float]:
    row = table.rows[index]
    try:
        x, y = float(row[columns[0]]), float(row[columns[1]])
    except ValueError:
        raise ManifestError(f"{table.where(index)}: {columns[0]}, {columns[1]} are no numbers. Fix the row.") from None
    return y, x
