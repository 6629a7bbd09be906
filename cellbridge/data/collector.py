"""Finished pieces of cells put together: the store's table, its intensity maps, and its images in order."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cellbridge.data import shards
from cellbridge.data.annotation import is_control
from cellbridge.data.cutting import Cutting, RowCells
from cellbridge.data.intensity import IntensityMaps, PlateHistograms
from cellbridge.data.survey import Duplicates
from cellbridge.data.tally import Tally
from cellbridge.errors import ImageError

if TYPE_CHECKING:
    import pandas as pd

_OWN = ("Location_Center_X", "Location_Center_Y")


class Collector:
    """Goes through all pieces once, in order; then gives table and maps, and reads the images again while they are stored.

    Memory holds the table, and of the images one piece at a time.

    Parameters
    ----------
    cutting : whose pieces are all finished.
    splits : plate, well → Metadata_Split; {} where the pieces have their own.
    reference : which cells the intensity maps are fitted to.

    Raises
    ------
    LeakError, ManifestError : a ready-made crop comes twice (see `Duplicates`).
    """

    def __init__(
        self, cutting: Cutting, *, splits: Mapping[tuple[str, str], str], reference: Literal["control", "all"]
    ):
        self.rejected: Counter[str] = Counter()
        self.without_cells = Tally()
        self.without_mask = 0
        self.bits = 0
        self.has_masks = True
        self._cutting, self._splits, self._reference = cutting, splits, reference
        self._histograms = PlateHistograms(cutting.manifest.stains, full_scale=cutting.manifest.full_scale)
        self._rows: list[RowCells] = []
        self._duplicates = Duplicates(splits)
        for number in range(len(cutting.units)):
            self._take(number)

    def _take(self, number: int) -> None:
        piece = self._cutting.cells(number)
        first = 0
        for cells in piece.rows:
            self.rejected.update(cells.rejected)
            self.bits |= cells.bits
            self.without_mask += cells.without_mask
            self._duplicates.add(cells.digest, cells.row, "")
            if not cells.n:
                self.without_cells.add(f"{cells.row.place}: {_told(cells.rejected)}")
                continue
            self._rows.append(_compact(cells))
            self.has_masks &= piece.masks is not None
            if self._reference == "all" or is_control(cells.row):
                some = shards.part(piece.counts, first, first + cells.n)
                self._histograms.add(cells.row.plate, shards.decode(some))
            first += cells.n

    def obs(self) -> "pd.DataFrame":
        """Return one row per cell: Metadata_* as text, "" where a table says nothing; then positions and other numbers.

        Raises
        ------
        ImageError : no cell was kept.
        """
        import pandas as pd

        if not self._rows:
            raise ImageError(
                f"no cell is left to store ({_told(self.rejected)}). Look at the images, nucleus_px and crop_px."
            )
        names = dict.fromkeys(
            name for cells in self._rows for name in (*cells.row.metadata, *cells.columns, "Metadata_Split")
        )
        ordered = sorted(names, key=lambda name: (not name.startswith("Metadata_"), name not in _OWN))
        return pd.DataFrame({name: self._column(name) for name in ordered})

    def intensity(self, plates: list[str]) -> IntensityMaps:
        """Return the maps fitted to the cells; raise ManifestError for a plate without reference cells."""
        return self._histograms.fit(plates, reference=self._reference)

    def images(self) -> tuple[Iterator[shards.Encoded], Iterator[shards.Encoded] | None]:
        """Return the images and the masks of all cells, in order, to be taken side by side, images first.

        Pieces are read once: masks, which are small when they are compressed, wait until it is their turn.
        """
        waiting: deque[shards.Encoded] = deque()

        def counts() -> Iterator[shards.Encoded]:
            for number in range(len(self._cutting.units)):
                piece = self._cutting.cells(number)
                if self.has_masks and piece.masks is not None:
                    waiting.append(piece.masks)
                yield piece.counts

        def masks() -> Iterator[shards.Encoded]:
            while waiting:
                yield waiting.popleft()

        return counts(), masks() if self.has_masks else None

    def _column(self, name: str) -> "np.ndarray[Any, np.dtype[Any]]":
        parts = [self._values(name, cells) for cells in self._rows]
        if all(part.dtype == np.float64 for part in parts):
            return np.concatenate(parts)
        values = np.empty(sum(len(part) for part in parts), dtype=object)
        values[:] = [value if isinstance(value, str) else str(value) for part in parts for value in part.tolist()]
        return values

    def _values(self, name: str, cells: RowCells) -> "np.ndarray[Any, np.dtype[Any]]":
        if name in cells.columns:
            return np.asarray(cells.columns[name])
        if name == "Metadata_Split":
            text = self._splits[cells.row.plate, cells.row.well]
        else:
            text = cells.row.metadata.get(name, "")
        return np.full(cells.n, text, dtype=object)


def _told(rejected: Mapping[str, int]) -> str:
    """`8 border, 1 too_small`."""
    return ", ".join(f"{count} {reason}" for reason, count in rejected.items()) or "nothing was found"


def _compact(cells: RowCells) -> RowCells:
    """Keep numbers as arrays: a million cells have tens of them each."""
    columns: dict[str, Any] = {}
    for name, values in cells.columns.items():
        numbers = all(isinstance(value, float) for value in values)
        columns[name] = np.array(values, dtype=np.float64 if numbers else object)
    return RowCells(cells.row, columns, cells.n, cells.without_mask, cells.rejected, cells.digest, cells.bits)
