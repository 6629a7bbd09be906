"""Arrays that come before their place is ready, held on disk instead of in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_BATCH_BYTES = 16 << 20


class Spool:
    """Append batches of equally shaped items to a file, then read them back in order.

    Parameters
    ----------
    file : a new file, which the caller removes with its folder.
    item : shape of one item.
    dtype : type of every item.
    """

    def __init__(self, file: Path, *, item: tuple[int, ...], dtype: np.dtype[Any]):
        self._file, self._item, self._dtype = file, item, np.dtype(dtype)
        self._stream = file.open("xb")
        self._count = 0

    def append(self, batch: Array) -> None:
        """Write a batch (n, *item) of the spool's type."""
        if batch.shape[1:] != self._item or batch.dtype != self._dtype:
            raise ValueError(f"a batch of {batch.shape} {batch.dtype}, expected (n, {self._item}) {self._dtype}")
        self._stream.write(np.ascontiguousarray(batch).data)
        self._count += len(batch)

    def __len__(self) -> int:
        return self._count

    def batches(self) -> Iterator[Array]:
        """Yield everything in batches of some megabytes, in the order in which it came."""
        self._stream.flush()
        size = int(np.prod(self._item))
        at_once = max(1, _BATCH_BYTES // (size * self._dtype.itemsize))
        with self._file.open("rb") as stream:
            for start in range(0, self._count, at_once):
                n = min(at_once, self._count - start)
                yield np.fromfile(stream, dtype=self._dtype, count=n * size).reshape(n, *self._item)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
