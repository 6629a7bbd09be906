"""What is here and right already, what is to come, how much that is and how long it may take: known before the first byte is kept."""

import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cellbridge.data.fetch.crew import Crew
from cellbridge.data.fetch.items import STATE, Item, Place
from cellbridge.data.fetch.ledger import Ledger
from cellbridge.data.fetch.remotes import Facts, Remotes, TryAgain
from cellbridge.data.fetch.transfer import RESERVE_BYTES, Partial, Patience, file_sums, patiently, satisfies
from cellbridge.errors import FetchError, ManifestError, ResourceError

_PROBE_FROM_BYTES = 32 << 20
_PROBE_BYTES, _PROBE_S = 4 << 20, 2.0


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: what its server says of it, and how much of it an earlier run left."""

    item: Item
    facts: Facts
    kept: int = 0
    replaces: bool = False

    @property
    def size(self) -> int | None:
        """How many bytes it has."""
        return self.item.size if self.facts.size is None else self.facts.size


@dataclass(frozen=True)
class There:
    """A file that is here and right.

    Parameters
    ----------
    by : what shows it: the `record` of an earlier fetch, its checksum (`sums`), or only its `size`.
    sums : what was computed of it, for the record.
    """

    by: str
    sums: dict[str, str] | None = None


@dataclass(frozen=True)
class Plan:
    """What a fetch has to do."""

    there: tuple[Item, ...]
    wanted: tuple[Wanted, ...]
    checked_by_size: int = 0
    """How many of the files that are there could be held against nothing but their size."""

    @property
    def total(self) -> int:
        """Bytes of the wanted files of known size."""
        return sum(wanted.size or 0 for wanted in self.wanted)

    @property
    def kept(self) -> int:
        """How many of them are here already, in partial files."""
        return sum(wanted.kept for wanted in self.wanted if wanted.size is not None)

    @property
    def begun(self) -> int:
        """Bytes of partial files, those of unknown size too."""
        return sum(wanted.kept for wanted in self.wanted)

    @property
    def beside(self) -> int:
        """Bytes of the largest wanted archive: its content takes as much again at least before it is deleted."""
        return max((wanted.size or 0 for wanted in self.wanted if wanted.item.unpack is not None), default=0)

    @property
    def unknown(self) -> int:
        """How many wanted files have no known size."""
        return sum(wanted.size is None for wanted in self.wanted)

    def words(self, *, rate: float | None) -> str:
        """Say how much is to come, in how many files, and about how long it takes at a rate in bytes per second."""
        rest = self.total - self.kept
        text = f"{len(self.wanted)} files to fetch, {in_words(rest)}"
        text += f" and {self.unknown} of unknown size" if self.unknown else ""
        text += f"; {len(self.there)} are here already" if self.there else ""
        text += f"; {in_words(self.begun)} lie here of files begun" if self.begun else ""
        if not self.wanted:
            return text
        if self.unknown or (rate is None and rest >= _PROBE_FROM_BYTES):
            return f"{text}; time unknown"
        if rate is None:
            return f"{text}; less than a minute at 1 MB/s"
        return f"{text}; about {_duration(rest / rate)} at the {in_words(rate)}/s of one connection"


@dataclass(frozen=True)
class Scene:
    """What the work of one fetch shares.

    Parameters
    ----------
    place : where the manifest stands, and where the data set goes.
    verify : whether files are read again that the record, size and time show to be right.
    """

    place: Place
    remotes: Remotes
    ledger: Ledger
    crew: Crew
    patience: Patience
    verify: bool = False

    @property
    def root(self) -> Path:
        """Where the data set goes."""
        return self.place.root

    def partial(self, item: Item) -> Partial:
        """Return where a file gathers before it is whole."""
        return Partial(self.root / STATE / "partial", item)


def expand(items: Iterable[Item], scene: Scene) -> tuple[list[Item], dict[str, Facts]]:
    """Put the files of a folder in its place; return all files, and what the listings said of some, by path.

    Raises
    ------
    FetchError : a folder cannot be listed.
    ManifestError : a file of it would leave the root, or take a place that fetch keeps for itself.
    """
    files: list[Item] = []
    facts: dict[str, Facts] = {}
    for item in items:
        if not item.is_folder:
            files.append(item)
            continue
        for name, said in sorted(_listed(item, scene).items()):
            path = scene.place.path(f"{item.path}/{name}", where=item.url)
            if not PurePosixPath(path).is_relative_to(item.path):
                raise ManifestError(
                    f'{item.url}: lists "{name}", which would leave {item.path}. Name its files one by one.'
                )
            files.append(replace(item, url=f"{item.url.rstrip('/')}/{name}", path=path, is_folder=False))
            facts[path] = said
    return files, facts


def make_plan(items: Sequence[Item], facts: dict[str, Facts], scene: Scene, *, record: bool = True) -> Plan:
    """Look at every file here and where needed at its server.

    Parameters
    ----------
    facts : what is known of files by path.
    record : whether what was found right by its checksum is recorded.

    Raises
    ------
    FetchError : files are not there or may not be read; all are counted, five shown.
    """
    there: list[Item] = []
    wanted: list[Wanted] = []
    problems: list[Exception] = []
    by_size = 0
    with closing(scene.crew.each(lambda item: _look(item, facts.get(item.path), scene), items)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome.error, FetchError):
                problems.append(outcome.error)
            elif outcome.error is not None:
                raise outcome.error
            elif isinstance(outcome.result, Wanted):
                wanted.append(outcome.result)
            elif outcome.result is not None:
                there.append(outcome.task)
                by_size += outcome.result.by == "size"
                if record and outcome.result.sums is not None:
                    scene.ledger.add(outcome.task, outcome.result.sums)
    require_none(problems, total=len(items), done="nothing was fetched yet")
    place = {item.path: number for number, item in enumerate(items)}
    wanted.sort(key=lambda one: place[one.item.path])
    return Plan(tuple(there), tuple(wanted), by_size)


def require_room(plan: Plan, root: Path) -> None:
    """Raise ResourceError where the disk has no room for the files of known size, and for the largest archive twice."""
    folder = next(path for path in (root, *root.parents) if path.exists())
    free, needed = shutil.disk_usage(folder).free, plan.total - plan.kept
    if plan.wanted and needed + plan.beside + RESERVE_BYTES > free:
        again = f", and what they unpack to takes {in_words(plan.beside)} more at least" if plan.beside else ""
        raise ResourceError(
            f"{root}: {in_words(needed)} are to be fetched ({needed} bytes){again}, {in_words(free)} are free ({free} bytes, of which "
            f"{RESERVE_BYTES} stay free). Free some space, choose another --root, or fetch fewer --plates."
        )


def measured_rate(plan: Plan, scene: Scene) -> float | None:
    """Return the bytes per second of one connection, from the first megabytes of the largest file; None where little is to come."""
    rest = [wanted for wanted in plan.wanted if wanted.size and not wanted.kept and "://" in wanted.item.url]
    if not rest or plan.total - plan.kept < _PROBE_FROM_BYTES:
        return None
    largest = max(rest, key=lambda wanted: wanted.size or 0)
    started, n_bytes = time.monotonic(), 0
    try:
        stream = scene.remotes.of(largest.item.url).read(largest.item.url, start=0, facts=largest.facts)
        with closing(stream.blocks) as blocks:
            for block in blocks:
                n_bytes += len(block)
                if n_bytes >= _PROBE_BYTES or time.monotonic() - started > _PROBE_S:
                    break
    except (TryAgain, FetchError):  # it will be told when the file itself is fetched
        return None
    return n_bytes / max(time.monotonic() - started, 1e-6) if n_bytes else None


def require_none(problems: Sequence[Exception], *, total: int, done: str, show: int = 5) -> None:
    """Raise one FetchError that counts the problems among `total` files and shows the first few."""
    if not problems:
        return
    first = " | ".join(str(error) for error in problems[:show])
    if len(problems) == 1:
        raise FetchError(f"{first} ({done})" if total > 1 else first)
    more = f" | … {len(problems) - show} more" if len(problems) > show else ""
    raise FetchError(f"{len(problems)} of {total} files cannot be fetched ({done}): {first}{more}")


def in_words(n_bytes: float) -> str:
    """Return `3.2 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def _listed(item: Item, scene: Scene) -> dict[str, Facts]:
    remote = scene.remotes.of(item.url)
    return patiently(
        lambda: remote.files_under(item.url), url=item.url, patience=scene.patience, pause=scene.crew.pause
    )


def _look(item: Item, facts: Facts | None, scene: Scene) -> Wanted | There:
    """Return how the file is known to be right, or what is wanted."""
    scene.crew.pause(0.0)
    if scene.ledger.vouches(item, again=scene.verify):
        return There("record")
    file = scene.root / item.path
    if file.is_dir():
        raise FetchError(
            f"{item.url}: its place {file} is a folder. Move it away, or correct the path in {item.where}."
        )
    is_here = item.unpack is None and file.is_file()
    if is_here and item.sums:
        sums = file_sums(file, {*item.sums, "sha256"})
        if satisfies(sums, item.sums):
            return There("sums", sums)
    if facts is None:
        remote = scene.remotes.of(item.url)
        facts = patiently(lambda: remote.look(item.url), url=item.url, patience=scene.patience, pause=scene.crew.pause)
    if is_here and not item.sums and (how := _right_by(item, facts, scene)):
        return how
    return Wanted(item, facts, kept=scene.partial(item).resumable_size(facts), replaces=is_here)


def _right_by(item: Item, facts: Facts, scene: Scene) -> There | None:
    """Hold a file without a checksum of its own against the server's md5, the record, or only its size."""
    file = scene.root / item.path
    size = facts.size if item.size is None else item.size
    if size is None or file.stat().st_size != size:
        return None
    if facts.md5 is not None:
        sums = file_sums(file, {"md5", "sha256"})
        return There("sums", sums) if sums["md5"] == facts.md5 else None
    if scene.ledger.knows(item):
        return There("record") if scene.ledger.has_content_of(item) else None
    return There("size")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
