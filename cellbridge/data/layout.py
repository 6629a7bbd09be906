"""Wells and plate formats: `a1`, `A1` and `A01` are one well, and a well must lie on its plate."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from cellbridge.errors import ManifestError

PlateFormat = Literal[6, 12, 24, 48, 96, 384, 1536]

SHAPES: dict[int, tuple[int, int]] = {
    6: (2, 3),
    12: (3, 4),
    24: (4, 6),
    48: (6, 8),
    96: (8, 12),
    384: (16, 24),
    1536: (32, 48),
}
"""Plate format → (rows, columns)."""

_WELL = re.compile(r"([A-Za-z]{1,2})\s*0*([0-9]{1,3})")


def row_name(row: int) -> str:
    """Return the letters of a row counted from 0: A … Z, AA … AF."""
    return chr(65 + row) if row < 26 else "A" + chr(65 + row - 26)


def well_name(row: int, column: int) -> str:
    """Return `B03` for row 1 and column 2, both counted from 0."""
    return f"{row_name(row)}{column + 1:02d}"


def parse_well(text: str, *, plate_format: int = 384, where: str = "well") -> str:
    """Return the well in the form `A01`.

    Parameters
    ----------
    text : letters, then a number, in either case, with or without leading zeros.
    plate_format : number of wells of the plate.
    where : file and row, for the message.

    Raises
    ------
    ManifestError : the text is no well, or the well is outside the plate.
    """
    rows, columns = SHAPES[plate_format]
    match = _WELL.fullmatch(text.strip())
    if match is None:
        raise ManifestError(f'{where}: "{text}" is no well. Write it as letters and a number, such as B03.')
    letters, column = match[1].upper(), int(match[2])
    row = ord(letters) - 65 if len(letters) == 1 else 26 + ord(letters[1]) - 65
    if (len(letters) == 2 and letters[0] != "A") or row >= rows or not 1 <= column <= columns:
        larger = [size for size, (r, c) in SHAPES.items() if row < r and 1 <= column <= c]
        remedy = f"Fix the row or set plate_format: {larger[0]}." if larger else "Fix the row."
        raise ManifestError(
            f'{where}: well "{text.strip()}" is outside a {plate_format}-well plate (A01–{well_name(rows - 1, columns - 1)}). {remedy}'
        )
    return well_name(row, column - 1)


def well_position(well: str) -> tuple[int, int]:
    """Return row and column, both counted from 0, of a well in the form `A01`."""
    letters = well.rstrip("0123456789")
    row = ord(letters[-1]) - 65 + (26 if len(letters) == 2 else 0)
    return row, int(well[len(letters) :]) - 1


def smallest_format(wells: Iterable[str], *, among: Sequence[int] = (96, 384, 1536)) -> int:
    """Return the first of some plate formats that has all of the wells; the last where none has."""
    places = [well_position(well) for well in wells]
    rows, columns = (max((place[axis] for place in places), default=0) for axis in (0, 1))
    return next((size for size in among if rows < SHAPES[size][0] and columns < SHAPES[size][1]), among[-1])
