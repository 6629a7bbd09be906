"""Where the counts of cells lie while batches are made of them: in the device's memory, in the host's, or in the store's files.

Batches are the same, bit for bit, wherever the counts lie; only the way to them differs.
"""

from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import numpy as np
import torch
from torch import Tensor

from cellbridge.errors import StoreError

if TYPE_CHECKING:
    from cellbridge.data.store import Store

Place = Literal["auto", "memory", "files"]

_CELLS_AT_ONCE = 8192
_SHARE = 0.5
"""How much of the memory that is free the counts may take: the rest is for the network's training."""


class Held(ABC):
    """The counts of some cells, by position."""

    shape: tuple[int, ...]
    """(cell, channel, y, x)."""
    device: torch.device
    """Where they lie; for files the CPU, which reads them."""

    @abstractmethod
    def gather(self, rows: Tensor) -> Tensor:
        """Return the bits of cells, (batch, channel, y, x): uint8, or int16 that stand for uint16, on `device`, as rows should be."""

    @abstractmethod
    def expect(self, rows: Tensor) -> None:
        """Take a hint which rows (on the CPU) are asked for next."""


@final
class InMemory(Held):
    """Counts in one piece on one device.

    Parameters
    ----------
    counts : (cell, channel, y, x), uint8 or uint16.
    """

    def __init__(self, counts: np.ndarray | Tensor, *, device: torch.device | str):
        held = torch.as_tensor(counts)
        # Few operations know uint16; int16 of the same bits is gathered, and masked once it is wider.
        self._bits = (held.view(torch.int16) if held.dtype == torch.uint16 else held).to(device)
        self.shape, self.device = tuple(held.shape), self._bits.device

    def gather(self, rows: Tensor) -> Tensor:
        """Return the bits of cells, on the device that holds them."""
        return self._bits.index_select(0, rows.to(self.device))

    def expect(self, rows: Tensor) -> None:
        """Do nothing: all are there."""


@final
class InFiles(Held):
    """Counts that stay in a store's shards; a batch is read, verified and decoded while the one before is in use, or when it is asked for.

    Parameters
    ----------
    rows : (cell,), rows of the store.
    """

    def __init__(self, store: "Store", rows: np.ndarray):
        self._reader, self._rows = store.reader("images"), rows
        self.shape = (len(rows), len(store.info.channels), store.info.size_px, store.info.size_px)
        self.device = torch.device("cpu")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cells")  # the only one that uses the reader
        self._coming: tuple[Tensor, Future[np.ndarray]] | None = None

    def gather(self, rows: Tensor) -> Tensor:
        """Return the bits of cells."""
        coming, self._coming = self._coming, None  # taken before it is looked at: another thread may hint meanwhile
        read = coming[1] if coming is not None and torch.equal(coming[0], rows) else self._begun(rows)
        counts = torch.from_numpy(read.result())
        return counts.view(torch.int16) if counts.dtype == torch.uint16 else counts

    def expect(self, rows: Tensor) -> None:
        """Begin to read the cells that are asked for next."""
        self._coming = rows, self._begun(rows)

    def _begun(self, rows: Tensor) -> "Future[np.ndarray]":
        return self._thread.submit(self._reader.read, self._rows[rows.numpy()])


def hold(store: "Store", rows: np.ndarray, *, device: torch.device, place: Place = "auto") -> Held:
    """Put the counts of a store's rows where batches are made fastest.

    Parameters
    ----------
    place : "memory", the device's; "files", where they are; "auto", the first of device, host and files that has room: counts
        take at most half of what is free.

    Raises
    ------
    StoreError : no cell is asked for.
    """
    if not len(rows):
        raise StoreError(f"{store.info.path}: no cell is left to make batches of. Check split, conditions and plates.")
    item = len(store.info.channels) * store.info.size_px**2 * (1 if store.info.full_scale <= 255 else 2)
    room = fits(len(rows) * item, device) if place == "auto" else device if place == "memory" else None
    if room is None:
        return InFiles(store, rows)
    parts = [store.counts(rows[start : start + _CELLS_AT_ONCE]) for start in range(0, len(rows), _CELLS_AT_ONCE)]
    return InMemory(np.concatenate(parts), device=room)


def fits(n_bytes: int, device: torch.device) -> torch.device | None:
    """Return where so many bytes have room: the device, else the CPU; None where neither has."""
    if device.type == "cuda" and n_bytes <= _SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    if n_bytes <= _SHARE * free_bytes():
        return torch.device("cpu") if device.type == "cuda" else device
    return None


def free_bytes() -> int:
    """Return how much of the host's memory is free, or of what the control group leaves of it."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    with suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 0)
