"""The plates and wells that a command was asked for, out of all that a data set's tables list."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from cellbridge.data.layout import parse_well
from cellbridge.data.readers.rows import ImageRow
from cellbridge.errors import ConfigError, ManifestError, did_you_mean


def _by_commas(given: Any) -> Any:
    many = [given] if isinstance(given, str) else given
    if not isinstance(many, list | tuple) or not all(isinstance(text, str) for text in many):
        return given
    return [part.strip() for text in many for part in text.split(",") if part.strip()]


Names = Annotated[tuple[str, ...], BeforeValidator(_by_commas)]
"""Plates or wells, as a list or parted by commas."""


@dataclass(frozen=True)
class Selection:
    """The plates and wells that were asked for; none: all.

    Parameters
    ----------
    wells : `B03`, on every plate, or `PLATE/B03`.
    """

    plates: frozenset[str] = frozenset()
    wells: frozenset[str] = frozenset()

    @classmethod
    def of(cls, plates: Iterable[str], wells: Iterable[str], *, plate_format: int) -> "Selection":
        """Read wells in any spelling; raise ConfigError for what is no well."""
        named = set()
        for text in wells:
            plate, slash, well = text.rpartition("/")
            try:
                named.add(plate + slash + parse_well(well, plate_format=plate_format))
            except ManifestError as error:
                found = str(error).removeprefix("well: ").partition(". ")[0]
                raise ConfigError(f"--wells: {found}. Give wells as B03 or PLATE/B03.") from None
        return cls(frozenset(plates), frozenset(named))

    def takes(self, plate: str, well: str = "") -> bool:
        """Say whether a file of this plate (and well, where it belongs to one) is asked for."""
        on_plate = not self.plates or plate in self.plates
        return on_plate and (not well or not self.wells or well in self.wells or f"{plate}/{well}" in self.wells)

    def takes_some_of(self, plate: str) -> bool:
        """Say whether anything of a plate is asked for."""
        named = {name.rpartition("/")[0] for name in self.wells}
        return self.takes(plate) and (not named or bool(named & {"", plate}))

    def takes_somewhere(self, well: str) -> bool:
        """Say whether a well is asked for on any plate."""
        return not self.wells or any(well == name.rpartition("/")[2] for name in self.wells)

    def require_known(self, places: Iterable[tuple[str, str]]) -> None:
        """Raise ConfigError for a plate or well that is none of these (plate, well)."""
        known = set(places)
        plates = {plate for plate, _ in known}
        for plate in sorted(self.plates - plates):
            raise ConfigError(f'--plates "{plate}": the tables have no such plate.{did_you_mean(plate, plates)}')
        wells = {name for plate, well in known if well and self.takes(plate) for name in (well, f"{plate}/{well}")}
        for well in sorted(self.wells - wells):
            offered = {name for name in wells if ("/" in name) == ("/" in well)}
            raise ConfigError(
                f'--wells "{well}": the tables have no image of it on the plates asked for.{did_you_mean(well, offered)}'
            )

    def chosen(self, rows: Sequence[ImageRow]) -> list[ImageRow]:
        """Return the rows asked for.

        Raises
        ------
        ConfigError : a plate or well has no row.
        """
        if rows:
            self.require_known((row.plate, row.well) for row in rows)
        return [row for row in rows if self.takes(row.plate, row.well)]


EVERYTHING = Selection()


def require_data_set(path: Path, plates: Sequence[str], wells: Sequence[str]) -> None:
    """Raise ConfigError where plates or wells are asked for of a store."""
    if plates or wells:
        raise ConfigError(f"{path}: --plates and --wells choose from a data set, and this is a store. Leave them out.")
