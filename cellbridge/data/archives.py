"""Zip and tar archives, unpacked so that nothing leaves the target, no bomb fills the disk, and nothing is visible before all is well.

Only plain files and folders come out of an archive. A link, a device, a name that is absolute, climbs, or means another place on another
system, and two names for one place, are refused with the whole archive.
"""

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cellbridge.data.archive_names import Names, refused
from cellbridge.errors import FetchError, ResourceError, in_one_line

_BLOCK = 1 << 20
_HARMLESS_BYTES = 16 << 20
"""Below this no archive is called a bomb: a blank image compresses a thousandfold."""
_LONGEST_HEADER = 1 << 20
_MOST_MEMBERS = 2_000_000
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Member:
    """A file that came out of an archive."""

    size: int
    crc32: int


@dataclass(frozen=True)
class Limits:
    """What an archive may become.

    Parameters
    ----------
    ratio : how many times its own size.
    total_bytes : how much altogether.
    """

    ratio: float
    total_bytes: int


@dataclass
class _Budget:
    """Counts what comes out of an archive, as it comes: what the archive says of itself is not believed."""

    what: str
    allowed: int
    members: int = 0
    spent: int = 0

    @classmethod
    def of(cls, archive: Path, limits: Limits, what: str) -> "_Budget":
        by_ratio = max(_HARMLESS_BYTES, int(archive.stat().st_size * limits.ratio))
        return cls(what, min(limits.total_bytes, by_ratio))

    def require(self, total: int) -> None:
        """Raise FetchError where the archive would become, or has become, too large."""
        if total > self.allowed:
            raise FetchError(
                f"{self.what}: unpacks to {total} bytes or more, at most {self.allowed} are allowed; it may be a bomb, and nothing "
                "of it was kept. If it is right, raise fetch.max_unpacked_ratio or max_unpacked_gb in the manifest."
            )

    def spend(self, n_bytes: int) -> None:
        self.spent += n_bytes
        self.require(self.spent)

    def count(self) -> None:
        self.members += 1
        if self.members > _MOST_MEMBERS:
            raise FetchError(
                f"{self.what}: holds more than {_MOST_MEMBERS} members; it may be a bomb. Nothing of it was kept."
            )


def unpack(archive: Path, into: Path, *, limits: Limits, what: str) -> dict[str, Member]:
    """Unpack a zip or tar (also .gz, .bz2, .xz) archive into an empty folder of its own, and return what came out, by path.

    Parameters
    ----------
    into : a folder that nobody reads yet; on an error it is left for the caller to delete.
    what : the archive's name in messages.

    Raises
    ------
    FetchError : a member is no plain file or folder, its name is no plain relative path, the archive is damaged, or it becomes larger
        than `limits`.
    ResourceError : the disk has no room for what the archive says it holds.
    """
    budget, names = _Budget.of(archive, limits, what), Names(what)
    with archive.open("rb") as stream:
        is_zip = stream.read(4) in _ZIP_MAGIC
    members: dict[str, Member] = {}
    try:
        for name, content in (_zip_members if is_zip else _tar_members)(archive, budget, names, into):
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            members[name] = _write(content, path, budget)
        if not members:
            raise EOFError("holds no file")
    except _DAMAGE as error:
        reason = in_one_line(error)
        raise FetchError(
            f"{what}: cannot be unpacked ({reason}), expected a whole zip or tar archive. Fetch it again, or check its URL."
        ) from None
    return members


def publish(folder: Path, target: Path, members: Mapping[str, Member], *, known: Container[str], what: str) -> None:
    """Move unpacked members to their places beneath the target; all are looked at before the first is moved.

    Parameters
    ----------
    known : members that an earlier unpacking of the same archive left in the target, and that may be replaced.

    Raises
    ------
    FetchError : a place leads outside the target, or holds other content that did not come from here.
    """
    home = Path(os.path.realpath(target))
    taken = []
    for name, member in members.items():
        place = target / name
        if not Path(os.path.realpath(place.parent)).is_relative_to(home):
            raise refused(what, name, f"would leave {target} by a link that lies there")
        if os.path.lexists(place) and name not in known and not holds(place, member):
            taken.append(str(place))
    if taken:
        more = f" | … {len(taken) - 5} more" if len(taken) > 5 else ""
        raise FetchError(
            f"{what}: {len(taken)} of {len(members)} files exist already with other content: {' | '.join(taken[:5])}{more}. "
            "Move them away; nothing was replaced."
        )
    for name in members:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, place)


def holds(path: Path, member: Member) -> bool:
    """Say whether a file has a member's content."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != member.size:
        return False
    crc32 = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            crc32 = zlib.crc32(block, crc32)
    return crc32 == member.crc32


def _zip_members(archive: Path, budget: _Budget, names: Names, into: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        declared = sum(info.file_size for info in infos)
        budget.require(declared)
        _require_room(into, declared, budget.what)
        for info in infos:
            budget.count()
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise refused(budget.what, info.filename, "is a link or a device")
            if info.flag_bits & 0x1:
                raise refused(budget.what, info.filename, "is encrypted")
            # `filename` ends at a zero byte; `orig_filename` is what the archive says.
            name = names.place(info.orig_filename, is_folder=info.is_dir())
            if not info.is_dir():
                with opened.open(info) as content:
                    yield name, content


def _tar_members(archive: Path, budget: _Budget, names: Names, into: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with archive.open("rb") as raw:
        magic = raw.read(6)
        raw.seek(0)
        opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), None)
        stream = _Metered(raw if opener is None else opener(raw), budget)
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            for info in opened:
                budget.count()
                if not (info.isreg() or info.isdir()) or info.issparse():
                    raise refused(budget.what, info.name, "is a link, a device or another special file")
                name = names.place(info.name, is_folder=info.isdir())
                if info.isdir():
                    continue
                budget.require(budget.spent + info.size)
                _require_room(into, info.size, budget.what)
                content = opened.extractfile(info)
                assert content is not None
                yield name, content
                setattr(opened, "members", [])  # noqa: B010 - or every header stays in memory
            if stream.latest != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header, or none, for the end
                raise tarfile.ReadError(f"no header and no end at byte {opened.offset}")
        while stream.read(_BLOCK):  # to the end, where the compressed stream's own checksum stands
            pass


class _Metered(io.RawIOBase):
    """A decompressed stream whose length counts against the budget, and of which no header can be read that fills the memory."""

    def __init__(self, stream: IO[bytes], budget: _Budget):
        self._stream, self._budget = stream, budget
        self.latest = b""
        """What was read last: after the members, the block that should say that there are no more."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_HEADER:
            raise FetchError(
                f"{self._budget.what}: has a header of {size} bytes; it is damaged or a bomb. Nothing of it was kept."
            )
        self.latest = data = self._stream.read(size)
        self._budget.require(self._stream.tell())
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _write(content: IO[bytes], path: Path, budget: _Budget) -> Member:
    size = crc32 = 0
    with path.open("xb") as out:
        while block := content.read(_BLOCK):
            budget.spend(len(block))
            out.write(block)
            size, crc32 = size + len(block), zlib.crc32(block, crc32)
    return Member(size, crc32)


def _require_room(folder: Path, n_bytes: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise ResourceError(
            f"{what}: unpacks to {n_bytes} bytes, {free} are free at {folder}. Free some space and run the same command again."
        )
