"""Cells as they come out of the images, on disk until their intensity maps are known."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cellbridge.data.annotation import is_control
from cellbridge.data.extraction import Extracted
from cellbridge.data.intensity import IntensityMaps, PlateHistograms
from cellbridge.data.spool import Spool
from cellbridge.errors import ImageError

if TYPE_CHECKING:
    import pandas as pd

_OWN = ("Location_Center_X", "Location_Center_Y")


class Collector:
    """Takes cells row by row; afterwards gives the store's table, images, masks and intensity maps.

    Parameters
    ----------
    folder : an empty folder for what does not fit in memory, which the caller removes.
    channels : stain names.
    reference : which cells the intensity maps are fitted to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        channels: tuple[str, ...],
        full_scale: int,
        size_px: int,
        reference: Literal["control", "all"],
    ):
        dtype = np.dtype(np.uint8 if full_scale <= 255 else np.uint16)
        self.counts = Spool(folder / "counts", item=(len(channels), size_px, size_px), dtype=dtype)
        self.masks = Spool(folder / "masks", item=(size_px, size_px), dtype=np.dtype(np.uint8))
        self.rejected: Counter[str] = Counter()
        self.without_mask = 0
        self._reference = reference
        self._histograms = PlateHistograms(channels, full_scale=full_scale)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "Collector":
        return self

    def __exit__(self, *_: object) -> None:
        self.counts.close()
        self.masks.close()

    def add(self, extracted: Extracted) -> None:
        """Take the cells of one row."""
        self.rejected.update(extracted.rejected)
        if not extracted.cells:
            return
        self._rows.extend({**extracted.row.metadata, **cell} for cell in extracted.cells)
        self.counts.append(extracted.counts)
        if extracted.masks is not None:
            self.masks.append(extracted.masks)
            self.without_mask += int((extracted.masks == 0).all(axis=(1, 2)).sum())
        if self._reference == "all" or is_control(extracted.row):
            self._histograms.add(extracted.row.plate, extracted.counts)

    @property
    def has_masks(self) -> bool:
        """Whether every cell came with a mask."""
        return len(self.masks) == len(self._rows)

    def obs(self) -> "pd.DataFrame":
        """Return one row per cell: Metadata_* as text, "" where a table says nothing; then positions and joined numbers.

        Raises
        ------
        ImageError : no cell was kept.
        """
        import pandas as pd

        if not self._rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items()) or "nothing was found"
            raise ImageError(f"no cell is left to store ({reasons}). Look at the images, nucleus_px and crop_px.")
        names = dict.fromkeys(name for row in self._rows for name in row)
        ordered = sorted(names, key=lambda name: (not name.startswith("Metadata_"), name not in _OWN))
        columns = {name: [row.get(name, "") for row in self._rows] for name in ordered}
        return pd.DataFrame({name: _column(values) for name, values in columns.items()})

    def intensity(self, plates: list[str]) -> IntensityMaps:
        """Return the maps fitted to what was added; raise ManifestError for a plate without reference cells."""
        return self._histograms.fit(plates, reference=self._reference)


def _column(values: list[Any]) -> "np.ndarray[Any, np.dtype[Any]]":
    if all(isinstance(value, float) for value in values):
        return np.array(values, dtype=np.float64)
    return np.array([str(value) for value in values], dtype=object)
