"""Every cell of a store's shards, read and looked at; one that is damaged does not hide the others."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.data.shards import Reader
from cellbridge.data.splits import image_hashes
from cellbridge.data.store import REMEDY, StoreInfo, read_info
from cellbridge.data.validation.problems import Problem
from cellbridge.errors import StoreError

_ROWS_AT_ONCE = 256
_MASK_VALUES = 2


@dataclass(frozen=True)
class SeenCells:
    """What one shard of every array was found to be.

    Parameters
    ----------
    n_read : how many of its images could be read.
    digests : of the pixels of each cell; "" where they cannot be read, or have one value.
    saturated : (cell, channel) of those with too many pixels at the largest count, and the share.
    """

    n_read: int
    digests: tuple[str, ...]
    saturated: tuple[tuple[int, int, float], ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class ReadingShards:
    """Read a shard's cells, of every array: number of the shard → what was found.

    Parameters
    ----------
    names : of the arrays.
    shard : how many cells are read for one number.
    """

    path: Path
    names: tuple[str, ...]
    shard: int
    n_cells: int
    channels: tuple[str, ...]
    max_saturated: float

    def __call__(self, number: int) -> SeenCells:
        import zarr

        first = number * self.shard
        last = min(first + self.shard, self.n_cells)
        info = read_info(self.path)
        digests, saturated, problems, n_read = [""] * (last - first), [], [], 0
        for name in self.names:
            array: Any = zarr.open_array(str(self.path / name), mode="r")
            reader = Reader(array, self.path / name)
            for start in range(first, last, _ROWS_AT_ONCE):
                rows = np.arange(start, min(start + _ROWS_AT_ONCE, last))
                whole, values, lost = _read(reader, rows, file=self.path / name)
                problems += lost
                problems += self._wrong(name, whole, values, info.full_scale)
                if name == "images":
                    n_read += len(whole)
                    for row, digest in zip(whole.tolist(), image_hashes(values), strict=True):
                        digests[row - first] = digest
                    saturated += self._saturated(whole, values, info)
            reader.close()
        return SeenCells(n_read, tuple(digests), tuple(saturated), tuple(_together(problems)))

    def _wrong(self, name: str, rows: np.ndarray, values: np.ndarray, full_scale: int) -> Iterator[Problem]:
        file = str(self.path / name)
        again = "Prepare the store again."
        if name == "masks":
            for row in rows[(values > _MASK_VALUES).reshape(len(rows), -1).any(axis=1)]:
                yield Problem("cells", file, int(row), "", "a mask holds other values than 0, 1 and 2", again)
        elif name == "x_T":
            for row in rows[~np.isfinite(values).reshape(len(rows), -1).all(axis=1)]:
                yield Problem("nan", file, int(row), "", "its noise holds values that are NaN or infinite", again)
        else:
            low, high = values.min(axis=(2, 3)), values.max(axis=(2, 3))
            for index, channel in np.argwhere(low == high):
                kind = "zero" if high[index, channel] == 0 else "constant"
                found = f"every pixel is {high[index, channel]}"
                yield Problem(kind, file, int(rows[index]), self.channels[channel], found, "Leave the cell out.")
            for index in np.flatnonzero((high > full_scale).any(axis=1)):
                found = f"a count of {high[index].max()} above the full scale {full_scale}"
                yield Problem("bit_depth", file, int(rows[index]), "", found, again)

    def _saturated(self, rows: np.ndarray, values: np.ndarray, info: StoreInfo) -> list[tuple[int, int, float]]:
        shifted = info.attributes.get("stored_bits") or {}
        unused = int(shifted.get("shifted_by", 0))
        share = (values >= (info.full_scale >> unused << unused)).mean(axis=(2, 3))
        return [(int(rows[i]), int(c), float(share[i, c])) for i, c in np.argwhere(share > self.max_saturated)]


def _read(reader: Reader, rows: np.ndarray, *, file: Path) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Return the rows that can be read, their values, and the others as problems."""
    try:
        return rows, reader.read(rows), []
    except StoreError:
        pass
    whole, values, lost = [], [], []
    for row in rows:
        try:
            values.append(reader.read(np.array([row])))
            whole.append(row)
        except StoreError as error:
            found = str(error).removesuffix(REMEDY).rstrip(". ")
            lost.append(Problem("damaged_cell", str(file), int(row), "", found, REMEDY))
    read = np.concatenate(values) if values else reader.read(rows[:0])
    return np.array(whole, dtype=np.int64), read, lost


def _together(problems: Sequence[Problem]) -> list[Problem]:
    """Tell of cells that one damage took as one problem: a shard that is gone takes all of its cells."""
    damaged = [problem for problem in problems if problem.kind == "damaged_cell"]
    counts = Counter((problem.file, problem.found) for problem in damaged)
    first: set[tuple[str, str]] = set()
    kept = []
    for problem in problems:
        key = (problem.file, problem.found)
        if problem.kind == "damaged_cell" and counts[key] > 1:
            if key in first:
                continue
            first.add(key)
            problem = Problem(
                problem.kind, problem.file, problem.row, "", f"{counts[key]} cells: {problem.found}", REMEDY
            )
        kept.append(problem)
    return kept
