"""The cells that leave: those of a store, then those of stores translated from it, as one table with one way to their pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.data.shards import Reader
from cellbridge.data.store import Store, StoreInfo
from cellbridge.errors import StoreError

Rows = NDArray[np.int64]
ORIGIN, MODEL = "Metadata_Origin", "Metadata_Model"


@dataclass(frozen=True)
class Cells:
    """Cells of several stores in one order: the rows of `obs`, by which everything here counts them."""

    stores: tuple[Store, ...]
    obs: pd.DataFrame
    """Text in every Metadata_* column ("" where a store has no such column), indexed by unique names: `Metadata_Cell`, with the model
    behind it where several models translated one cell."""
    owner: Rows
    """Which store each cell is from."""
    row: Rows
    """Its row there."""

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def info(self) -> StoreInfo:
        """What the first store says of itself; channels, width, pixel size and full scale are the same in all."""
        return self.stores[0].info

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(np.uint8 if self.info.full_scale <= 255 else np.uint16)

    @property
    def has_masks(self) -> bool:
        """Whether every store has masks."""
        return all(store.masks(np.empty(0, np.int64)) is not None for store in self.stores)

    def counts(self, rows: Rows) -> NDArray[np.unsignedinteger]:
        """Return counts (cell, channel, y, x), uint8 or uint16, in the camera's units."""
        size = self.info.size_px
        counts = np.empty((len(rows), len(self.info.channels), size, size), self.dtype)
        for store, where, some in self._by_store(rows):
            counts[where] = self._readers[store.info.path].read(some)
        return counts

    def masks(self, rows: Rows) -> NDArray[np.uint8]:
        """Return masks (cell, y, x): 0 other, 1 cytoplasm, 2 nucleus; only where `has_masks`."""
        masks = np.empty((len(rows), self.info.size_px, self.info.size_px), np.uint8)
        for store, where, some in self._by_store(rows):
            found = store.masks(some)
            assert found is not None
            masks[where] = found
        return masks

    def blocks(self, at_once: int) -> Iterator[Rows]:
        """Yield all rows in order, so many at a time."""
        for start in range(0, len(self), at_once):
            yield np.arange(start, min(start + at_once, len(self)), dtype=np.int64)

    @cached_property
    def _readers(self) -> dict[Path, Reader]:
        return {store.info.path: store.reader("images") for store in self.stores}

    def _by_store(self, rows: Rows) -> Iterator[tuple[Store, Rows, Rows]]:
        for number, store in enumerate(self.stores):
            where = np.flatnonzero(self.owner[rows] == number)
            if len(where):
                yield store, where, self.row[rows[where]]


def gather_cells(stores: Sequence[Store]) -> Cells:
    """Put the cells of several stores one after another. Beside others, those of the first that do not say their origin are real.

    Raises
    ------
    StoreError : the stores differ in channels, width, pixel size or full scale, or two cells have one id.
    """
    first = stores[0].info
    for other in (store.info for store in stores[1:]):
        for what in ("channels", "size_px", "pixel_um", "full_scale"):
            if getattr(other, what) != getattr(first, what):
                raise StoreError(
                    f"{other.path}: {what} {getattr(other, what)}, but {getattr(first, what)} in {first.path}. "
                    "Give stores that were translated from it."
                )
    tables = [store.obs for store in stores]
    if len(stores) > 1 and ORIGIN not in tables[0]:
        tables[0] = tables[0].assign(**{ORIGIN: "real"})
    sizes = [len(table) for table in tables]
    obs = _one_table(tables)
    return Cells(
        stores=tuple(stores),
        obs=obs,
        owner=np.repeat(np.arange(len(stores)), sizes),
        row=np.concatenate([np.arange(size) for size in sizes]),
    )


def _one_table(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    # A truth value beside a missing one would be neither text nor number.
    numbers = [table.astype(dict.fromkeys(table.select_dtypes("bool").columns, float)) for table in tables]
    obs = pd.concat(numbers if len(tables) > 1 else tables)
    for column in [name for name in obs.columns if obs[name].dtype.kind == "O"]:
        obs[column] = obs[column].fillna("")
    if obs.index.has_duplicates and MODEL in obs:
        model = obs[MODEL].to_numpy(dtype=object)
        names = [f"{cell} by {by}" if by else cell for cell, by in zip(obs.index, model, strict=True)]
        obs.index = pd.Index(names, dtype=object)
    twice = obs.index.duplicated()
    if twice.any():
        raise StoreError(
            f'cell "{obs.index[twice][0]}" is there twice. Give each translation once, and each model a name of its own '
            "(`translate --name`)."
        )
    return obs
