"""Images that are made cell by cell for every target, and stored target by target: kept on disk in between."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from cellbridge.data.spool import Array, Spool
from cellbridge.errors import StoreError


class Regrouping:
    """Take the images of a few cells under all targets at a time; give them back one target after the other.

    Memory holds one batch, whatever the number of cells and targets. On disk lie the counts of every image and, once per cell, its
    noise, uncompressed.

    Parameters
    ----------
    folder : an empty folder, which the caller removes.
    targets : how many images are made of each cell.
    image_shape : (channel, y, x).
    full_scale : the largest count: up to 255 is kept in 8 bits, more in 16.
    """

    def __init__(self, folder: Path, *, targets: int, image_shape: tuple[int, ...], full_scale: int):
        dtype = np.dtype(np.uint8 if full_scale <= 255 else np.uint16)
        self._counts = [Spool(folder / f"counts-{target}", item=image_shape, dtype=dtype) for target in range(targets)]
        self._x_T = Spool(folder / "x_T", item=image_shape, dtype=np.dtype(np.float32))
        self._dtype = dtype
        self._clipped = self._values = 0

    def __enter__(self) -> "Regrouping":
        return self

    def __exit__(self, *_: object) -> None:
        for spool in (*self._counts, self._x_T):
            spool.close()

    def add(self, counts: Tensor, x_T: Tensor | None = None, *, clipped: int) -> None:
        """Take some cells.

        Parameters
        ----------
        counts : (target, cell, channel, y, x), integers.
        x_T : (cell, channel, y, x), float32: the noise that a cell's images share; of all cells or of none.
        clipped : how many of the values were beyond the range of counts.
        """
        for spool, of_target in zip(self._counts, counts.numpy(), strict=True):
            spool.append(of_target.astype(self._dtype))
        if x_T is not None:
            self._x_T.append(x_T.numpy())
        self._clipped += clipped
        self._values += counts.numel()

    @property
    def share_clipped(self) -> float:
        """The share of all values that were beyond the range of counts."""
        return self._clipped / max(self._values, 1)

    def counts(self) -> Iterator[Array]:
        """Yield batches of (cell, channel, y, x): all cells under the first target, then under the second …"""
        for spool in self._counts:
            yield from spool.batches()

    def x_T(self) -> Iterator[Array] | None:
        """Yield the noise of each of these images, in the same order; None where none was given.

        Raises
        ------
        StoreError : some cells came with noise and some without.
        """
        if not len(self._x_T):
            return None
        if len(self._x_T) != len(self._counts[0]):
            raise StoreError(f"{len(self._x_T)} of {len(self._counts[0])} cells came with their noise, expected all.")
        return (batch for _ in self._counts for batch in self._x_T.batches())
