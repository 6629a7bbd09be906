"""Finished pieces of long work, kept on disk until its result is whole: what was done before a stop is not done again.

    FOLDER/00000017     length of the head (8 bytes) · head as JSON · body · BLAKE2b of all that (16 bytes)

A piece says what it was made from (its fingerprint), so that one of other settings or other files is not taken for it, and has a
checksum, so that one that a crash or a full disk cut short is made again. No piece is a part of any result's format.
"""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from cellbridge import runs
from cellbridge.errors import CellbridgeError, RunError, StoppedBySignal, StoreError

_LENGTH_BYTES = 8
_SUM_BYTES = 16
_DECIDING = ("cellpose", "imagecodecs", "numcodecs", "numpy", "scikit-image", "scipy", "tifffile", "torch", "zarr")
"""Packages that read, segment, resample or compress images; some are not everywhere."""
_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Piece:
    """What was found out about one unit of work.

    Parameters
    ----------
    head : plain values, as JSON has them.
    body : byte strings that the head describes.
    """

    head: dict[str, Any]
    body: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Pieces:
    """The finished pieces of one kind of work, by number, in a folder of their own."""

    folder: Path

    @classmethod
    def under(cls, folder: Path, name: str) -> "Pieces":
        """Return the pieces that lie in FOLDER/NAME, which is made where it is not there."""
        (folder / name).mkdir(parents=True, exist_ok=True)
        return cls(folder / name)

    def write(self, number: int, piece: Piece, *, fingerprint: str) -> None:
        """Keep a piece; it appears whole or not at all. Several processes may write at once."""
        told = {"fingerprint": fingerprint, "parts": [len(part) for part in piece.body], "head": piece.head}
        head = json.dumps(told, ensure_ascii=False).encode()
        parts = [len(head).to_bytes(_LENGTH_BYTES, "little"), head, *piece.body]
        target = self.folder / f"{number:08d}"
        temporary = self.folder / f".{target.name}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as stream:
                stream.writelines([*parts, _sum(parts)])
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def find(self, number: int, *, fingerprint: str) -> Piece | None:
        """Return a piece; None where there is none, where it was made from something else, or where it is damaged."""
        try:
            stored = (self.folder / f"{number:08d}").read_bytes()
        except FileNotFoundError:
            return None
        if len(stored) < _LENGTH_BYTES + _SUM_BYTES or _sum([memoryview(stored)[:-_SUM_BYTES]]) != stored[-_SUM_BYTES:]:
            return None
        begin = _LENGTH_BYTES + int.from_bytes(stored[:_LENGTH_BYTES], "little")
        told = json.loads(stored[_LENGTH_BYTES:begin])
        if told["fingerprint"] != fingerprint:
            return None
        body = []
        for length in told["parts"]:
            body.append(stored[begin : begin + length])
            begin += length
        return Piece(told["head"], tuple(body))

    def read(self, number: int, *, fingerprint: str) -> Piece:
        """Return a piece that was found or written before; raise StoreError where that is no longer so."""
        piece = self.find(number, fingerprint=fingerprint)
        if piece is None:
            raise StoreError(
                f"{self.folder}/{number:08d}: was removed or changed while it was in use. Run the same command again."
            )
        return piece


def fingerprint(*values: Any) -> str:
    """Return a hash of plain values: texts, numbers, None, and lists and dictionaries of them."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def stamps(files: Iterable[Path]) -> list[list[Any]]:
    """Return name, size and time of change of each file, by which an edited one is told; for a folder those of all in it."""
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> list[Any]:
    if file.is_dir():
        return list(_folder_stamp(file))
    try:
        found = file.stat()
    except OSError:  # whoever reads it says so better
        return [str(file), None, None]
    return [str(file), found.st_size, found.st_mtime_ns]


@lru_cache(maxsize=64)
def _folder_stamp(folder: Path) -> tuple[Any, ...]:
    found = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return str(folder), sum(entry.st_size for entry in found), max((entry.st_mtime_ns for entry in found), default=0)


@lru_cache(maxsize=1)
def code_sum() -> str:
    """Return a hash of this package's source and of the versions of what decides pixels and bytes beneath it.

    So pieces of another version of either are made again: no store is of two.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    digest.update(json.dumps({name: _version(name) for name in _DECIDING}).encode())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sum(parts: Sequence[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=_SUM_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


@contextmanager
def kept_beside(out: Path) -> Iterator[Path]:
    """Yield the folder of finished pieces of `out`, `.OUT.preparing` beside it, held for this process alone.

    It is removed when the block ends well, and where the very first attempt ends by refusing its input; whatever else ends the
    block leaves it to the next attempt. SIGTERM and SIGHUP end the block as Ctrl-C does.

    Raises
    ------
    RunError : another process holds it.
    StoppedBySignal : the block was stopped.
    """
    _folder_stamp.cache_clear()  # an array may have been changed since an earlier call in this process
    folder = out.with_name(f".{out.name}.preparing")
    fresh = not folder.exists()
    try:
        with runs.exclusive(runs.RunDir(folder)), _stoppable(out):
            _remove_unfinished(out)
            yield folder
    except CellbridgeError as error:
        if fresh and error.exit_code == CellbridgeError.exit_code and not isinstance(error, RunError):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stoppable(out: Path) -> Iterator[None]:
    """Turn the first signal that asks for the end into StoppedBySignal; outside the main thread Python allows no handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for asked in before:
            signal.signal(asked, signal.SIG_IGN)
        raise StoppedBySignal(
            f"{out}: stopped. What is finished is kept beside it, and the same command goes on from there.",
            signal_number=number,
        )

    asking = [number for number in _ASKING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in asking}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _remove_unfinished(out: Path) -> None:
    """Remove what a killed process had begun to write as `out`; nobody else writes it, since the pieces are held."""
    for path in out.parent.glob(f".{out.name}.*.tmp"):
        if path.name.removeprefix(f".{out.name}.").removesuffix(".tmp").isdecimal():
            shutil.rmtree(path, ignore_errors=True)
