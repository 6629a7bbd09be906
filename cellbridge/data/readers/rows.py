"""What a reader gives: one row per image set, with its metadata as strings and its checked paths."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellbridge.data.planes import Plane

_AT_A_ROW = re.compile(r".+ row \d+", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A row of a plate map or metadata table, as it is joined to rows of images.

    Parameters
    ----------
    columns : `Metadata_*` → text.
    names : `Metadata_*` → what the table calls the column.
    where : table and row, for messages.
    """

    columns: Mapping[str, str]
    names: Mapping[str, str]
    where: str


@dataclass(frozen=True)
class ImageRow:
    """One field of view, or one ready-made crop.

    Parameters
    ----------
    metadata : `Metadata_*` → text.
    images : channel → where its pixels lie; for a crop, which holds all channels, the one key "".
    where : table and row, for messages.
    digests : key of `images` → the md5 of the file that the table gives.
    illumination : channel → the .npy file of the illumination function that its counts are to be divided by, where the tables
        name one.
    joined : what other tables have added to the metadata.
    names : `Metadata_*` → what the row's own table calls the column, for messages.
    lacking : whether a plate map or table that has to say more of it does not, where faults are listed.
    blank_control : whether it is control by its empty compound alone, as no pert_type or query says so.
    """

    metadata: dict[str, str]
    images: dict[str, Plane]
    where: str
    digests: dict[str, str] = field(default_factory=dict)
    illumination: dict[str, Path] = field(default_factory=dict)
    joined: tuple[Entry, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    blank_control: bool = False
    lacking: bool = False

    @property
    def plate(self) -> str:
        return self.metadata["Metadata_Plate"]

    @property
    def well(self) -> str:
        return self.metadata["Metadata_Well"]

    @property
    def site(self) -> str:
        return self.metadata["Metadata_Site"]

    @property
    def place(self) -> str:
        """`plate 27481 well B02 site 3`, for messages."""
        return f"plate {self.plate} well {self.well} site {self.site}"

    def at(self, column: str) -> str:
        """Return where a text of the metadata stands, in whichever table: `maps/platemap/m.txt row 4 concentration`."""
        text = self.metadata.get(column)
        entry = next((e for e in self.joined if column in e.columns and e.columns[column] == text), None)
        own = self.names.get(column, column)
        return at_column(self.where, own) if entry is None else f"{entry.where} {entry.names[column]}"


def at_column(where: str, column: str) -> str:
    """Return a place with its column, where the place is a row of a table and not a file."""
    return f"{where} {column}" if _AT_A_ROW.fullmatch(where) else where


def of_rows(rows: Sequence[ImageRow]) -> str:
    """Return how many rows a fault that is told once stands for; "" for one."""
    return f" (in {len(rows)} rows)" if len(rows) > 1 else ""


def natural(text: str) -> tuple[int, int, str]:
    """Return a sorting key that puts numbers in the order of their values, before other texts."""
    return (0, int(text), text) if text.isdecimal() else (1, 0, text)
