"""What was fetched and verified here: one line per file, so that the next run knows it without its server and without reading it all."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cellbridge.data.archives import Member, holds
from cellbridge.data.fetch.items import STATE, Item
from cellbridge.data.fetch.transfer import file_sums, satisfies


@dataclass(frozen=True)
class Entry:
    """A file as it was when it was verified, or an archive as it was when its content was in place.

    Parameters
    ----------
    path : relative to the root.
    size, mtime_ns : of the file here; 0 for an archive, which is not kept.
    sums : algorithm → sum of the file, or of the archive.
    unpack : for an archive, the folder that its content went into.
    members : for an archive, what came out of it: path relative to that folder → (bytes, crc32).
    """

    path: str
    url: str
    size: int
    mtime_ns: int
    sums: dict[str, str]
    unpack: str | None = None
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


class Ledger:
    """The record of a root, in `.fetch/fetched.jsonl`; the last line on a path counts."""

    def __init__(self, root: Path):
        self._root, self._file = root, root / STATE / "fetched.jsonl"
        self._entries: dict[str, Entry] = {}
        for line in self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):  # a line that a killed run left unfinished
                continue
            self._entries[entry.path] = entry

    def add(self, item: Item, sums: dict[str, str], *, members: dict[str, Member] | None = None) -> None:
        """Record a file that is in place, or an archive whose content is."""
        size = mtime_ns = 0
        if members is None:
            found = (self._root / item.path).stat()
            size, mtime_ns = found.st_size, found.st_mtime_ns
        content = {name: (member.size, member.crc32) for name, member in (members or {}).items()}
        entry = Entry(item.path, item.url, size, mtime_ns, sums, item.unpack, content)
        self._entries[item.path] = entry
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+b") as stream:
            if stream.tell() and not self._ends_a_line():
                stream.write(b"\n")
            stream.write(json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def members_of(self, item: Item) -> set[str]:
        """Return what an earlier unpacking of this archive left beneath its folder."""
        entry = self._entries.get(item.path)
        return set(entry.members) if entry is not None and entry.unpack == item.unpack else set()

    def vouches(self, item: Item, *, again: bool) -> bool:
        """Say whether the record, size and time of change show the item to be here and right.

        Parameters
        ----------
        again : whether the content is read once more, where size and time would do.
        """
        entry = self._entries.get(item.path)
        if (
            entry is None
            or entry.url != item.url
            or entry.unpack != item.unpack
            or not satisfies(entry.sums, item.sums)
        ):
            return False
        if item.unpack is not None:
            return self._members_are_here(entry, again=again)
        file = self._root / item.path
        if not file.is_file():
            return False
        found = file.stat()
        if (found.st_size, found.st_mtime_ns) != (entry.size, entry.mtime_ns) or item.size not in (None, entry.size):
            return False
        return not again or file_sums(file, {"sha256"})["sha256"] == entry.sums.get("sha256")

    def has_content_of(self, item: Item) -> bool:
        """Say whether a file whose size or time changed still has the content that was fetched (it may have been copied)."""
        entry, file = self._entries.get(item.path), self._root / item.path
        if entry is None or entry.url != item.url or not file.is_file() or file.stat().st_size != entry.size:
            return False
        return satisfies(entry.sums, item.sums) and file_sums(file, {"sha256"})["sha256"] == entry.sums.get("sha256")

    def knows(self, item: Item) -> bool:
        """Say whether this file was fetched here before, from the same URL."""
        entry = self._entries.get(item.path)
        return entry is not None and entry.url == item.url

    def _members_are_here(self, entry: Entry, *, again: bool) -> bool:
        folder = self._root / str(entry.unpack)
        for name, (size, crc32) in entry.members.items():
            place = folder / name
            if not place.is_file() or place.stat().st_size != size:
                return False
            if again and not holds(place, Member(size, crc32)):
                return False
        return True

    def _ends_a_line(self) -> bool:
        with self._file.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"
