"""One file: its bytes into a partial file that a killed run leaves to the next, again where something may pass, its sums checked."""

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cellbridge import runs
from cellbridge.data.fetch.items import Item
from cellbridge.data.fetch.remotes import Facts, Remote, TryAgain
from cellbridge.errors import FetchError, ResourceError

Answer = TypeVar("Answer")

RESERVE_BYTES = 64 << 20
"""What is left free on a disk."""
_READ = 1 << 20
_LOOK_AT_ROOM_EVERY = 32 << 20
_WRONG_ATTEMPTS = 2
"""How often a whole file may come with the wrong sum: once by chance, twice because it is another file."""


@dataclass(frozen=True)
class Patience:
    """How often, and after how long, is tried again.

    Parameters
    ----------
    attempts : how many in a row may fail without a byte more of the file than ever before.
    first_wait_s, longest_wait_s : the wait doubles from the first to the longest, less up to a quarter by lot, so that many do not come
        back at one moment.
    """

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def wait_s(self, failures: int, asked_s: float | None, lot: random.Random) -> float:
        """Return the wait after so many failures in a row; a server that asks for longer gets it, up to twice the longest."""
        own = min(self.longest_wait_s, self.first_wait_s * 2 ** (failures - 1)) * (1 - 0.25 * lot.random())
        return max(own, min(asked_s or 0.0, 2 * self.longest_wait_s))


@dataclass(frozen=True)
class Partial:
    """What has come of a file so far, beside a note of what it is: URL, size and version.

    Parameters
    ----------
    folder : holds all partial files.
    item : the file it becomes.
    """

    folder: Path
    item: Item

    @property
    def data(self) -> Path:
        return self.folder / f"{self._key}.part"

    @property
    def note(self) -> Path:
        return self.folder / f"{self._key}.json"

    @property
    def _key(self) -> str:
        return hashlib.sha256(self.item.path.encode()).hexdigest()[:32]

    @property
    def size(self) -> int:
        """How many bytes are here."""
        try:
            return self.data.stat().st_size
        except FileNotFoundError:
            return 0

    def resumable_size(self, facts: Facts) -> int:
        """Return how many bytes of just this file are here: 0 where it is not known to be the same one."""
        known = self.item.sums or facts.version is not None
        size = self.size
        if not known or (facts.size is not None and size > facts.size):
            return 0
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        return size if noted == self._note(facts) else 0

    def begin(self, facts: Facts) -> int:
        """Return the place to go on from, after throwing away what does not belong to this file."""
        size = self.resumable_size(facts)
        if not size:
            self.discard()
            self.folder.mkdir(parents=True, exist_ok=True)
            runs.write_json(self.note, self._note(facts))
        return size

    def discard(self) -> None:
        """Throw away what is here."""
        self.data.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def publish(self, target: Path) -> None:
        """Give the file its name; it is whole on the disk before."""
        with self.data.open("rb") as stream:
            os.fsync(stream.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(self.data, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with runs.publish_file(target) as temporary:  # a link leads to another disk
                shutil.copyfile(self.data, temporary)
        self.discard()

    def _note(self, facts: Facts) -> dict[str, str | int | None]:
        return {"url": self.item.url, "size": facts.size, "version": facts.version}


@dataclass
class Transfer:
    """Brings one file whole and verified into its partial file.

    Parameters
    ----------
    pause : waits so many seconds; raises where the work was stopped meanwhile.
    advance : told of every byte that came, and, negative, of those that were thrown away.
    """

    item: Item
    partial: Partial
    remote: Remote
    patience: Patience
    pause: Callable[[float], None]
    advance: Callable[[int], None]
    _wrong: int = field(default=0, init=False)

    def run(self, facts: Facts | None) -> dict[str, str]:
        """Return the file's sums, once it is whole and right.

        Parameters
        ----------
        facts : what the server said of it a moment ago, where it was asked.

        Raises
        ------
        FetchError : it is not there, is not what was expected, or did not come in as many attempts as there may be.
        ResourceError : the disk is nearly full.
        """
        failures, furthest = 0, self.partial.size
        lot = random.Random(self.item.path)
        while True:
            try:
                return self._attempt(facts or self.remote.look(self.item.url))
            except TryAgain as problem:
                gained = self.partial.size > furthest
                failures, furthest = (1 if gained else failures + 1), max(furthest, self.partial.size)
                if problem.from_start:
                    self.advance(-self.partial.size)
                    self.partial.discard()
                if failures >= self.patience.attempts or self._wrong >= _WRONG_ATTEMPTS:
                    raise FetchError(self._gave_up(problem, failures)) from None
                self.pause(self.patience.wait_s(failures, problem.wait_s, lot))
                facts = None

    def _attempt(self, facts: Facts) -> dict[str, str]:
        expected = self.item.size
        if expected is not None and facts.size is not None and facts.size != expected:
            raise TryAgain(f"has {facts.size} bytes, expected {expected} (by {self.item.where})", from_start=True)
        start = self.partial.begin(facts)
        if facts.size is None or start < facts.size or not self.partial.data.exists():
            self._receive(start, facts)
        return self._verified(facts)

    def _receive(self, start: int, facts: Facts) -> None:
        stream = self.remote.read(self.item.url, start=start, facts=facts)
        if stream.start != start:
            self.advance(stream.start - start)
        size, limit = stream.start, facts.size if facts.size is not None else self.item.size
        room_at = size
        data = self.partial.data
        with closing(stream.blocks) as blocks, data.open("r+b" if data.exists() else "xb") as out:
            out.truncate(size)
            out.seek(size)
            for block in blocks:
                if size >= room_at:
                    _require_room(self.partial.folder)
                    room_at = size + _LOOK_AT_ROOM_EVERY
                out.write(block)
                size += len(block)
                self.advance(len(block))
                self.pause(0.0)
                if limit is not None and size > limit:
                    raise TryAgain(f"sends more than the {limit} bytes that it should have", from_start=True)
        if limit is not None and size < limit:
            raise TryAgain(f"ended after {size} of {limit} bytes")

    def _verified(self, facts: Facts) -> dict[str, str]:
        expected = dict(self.item.sums) or ({"md5": facts.md5} if facts.md5 else {})
        sums = file_sums(self.partial.data, {*expected, "sha256"})
        for name, text in expected.items():
            if sums[name] != text:
                self._wrong += 1
                source = self.item.where if self.item.sums else "the server's ETag"
                raise TryAgain(f"its {name} is {sums[name]}, expected {text} (by {source})", from_start=True)
        return sums

    def _gave_up(self, problem: TryAgain, failures: int) -> str:
        if self._wrong >= _WRONG_ATTEMPTS:
            return (
                f"{self.item.url}: {problem}, {self._wrong} times over; nothing of it was kept. Correct the checksum if the file was "
                "replaced on purpose; else do not use it."
            )
        kept = f"{self.partial.size} bytes are kept" if self.partial.size else "nothing of it was kept"
        return (
            f"{self.item.url}: {problem} ({failures} attempts in a row, {kept}). Look at the connection and the server, "
            "then run the same command again."
        )


def patiently(ask: Callable[[], Answer], *, url: str, patience: Patience, pause: Callable[[float], None]) -> Answer:
    """Ask a server, again after a while where it fails in a way that may pass.

    Raises
    ------
    FetchError : it failed in a way that will not pass, or as often as `patience` allows.
    """
    lot = random.Random(url)
    for failures in range(1, patience.attempts + 1):
        try:
            return ask()
        except TryAgain as problem:
            if failures == patience.attempts:
                raise FetchError(
                    f"{url}: {problem} ({failures} attempts). Look at the connection and the server, then run the same command again."
                ) from None
            pause(patience.wait_s(failures, problem.wait_s, lot))
    raise AssertionError("patience.attempts is at least 1")


def file_sums(path: Path, names: set[str]) -> dict[str, str]:
    """Return a file's sums by algorithm (sha256, md5), read once."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in sorted(names)}
    with path.open("rb") as stream:
        while block := stream.read(_READ):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def satisfies(sums: Mapping[str, str], expected: Mapping[str, str]) -> bool:
    """Say whether sums that are known include all that are expected."""
    return all(sums.get(name) == text for name, text in expected.items())


def _require_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < RESERVE_BYTES:
        raise ResourceError(
            f"{folder}: only {free} bytes are free, and {RESERVE_BYTES} are left so. What has come is kept; free some space and run the "
            "same command again."
        )
