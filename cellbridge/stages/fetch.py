"""`cellbridge fetch`: the files that a data set's manifest names, from S3, the web or a folder, whole and verified, to where `prepare` reads.

files, folders and archives → the tables are here → what the tables list, of the plates and wells asked for. Each time: look at what is
here and at the servers → say how much is to come → several files at a time, each in a partial file until its checksum is right.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from cellbridge import runs
from cellbridge.data.manifest import Manifest, read_manifest
from cellbridge.data.selection import Names, Selection
from cellbridge.errors import FetchError, ManifestError, ResourceError, StoppedBySignal
from cellbridge.outputs import require_directory
from cellbridge.progress import bar, say
from cellbridge.settings import Section

if TYPE_CHECKING:
    from cellbridge.data.fetch.items import Item, Place
    from cellbridge.data.fetch.plan import Plan, Scene, Wanted

_FAILURES = 20
"""After so many files that cannot be fetched, the rest is not tried."""


class Config(Section):
    """What to fetch, and how."""

    manifest: Path
    root: Path | None = None
    """Where the files go; by default what the manifest says."""
    plates: Names = ()
    """Only these plates; several by commas too."""
    wells: Names = ()
    """Only these wells, as B03 (on every plate) or PLATE/B03."""
    dry_run: bool = False
    """Say how much is to be fetched, and fetch nothing."""
    verify: bool = False
    """Read files again that were verified before and have kept size and time."""
    workers: PositiveInt = Field(default=8, le=128)
    """How many files at a time."""
    attempts: PositiveInt = 5
    """How many attempts in a row may bring no byte more."""
    first_wait_s: PositiveFloat = 0.5
    """The wait after the first failure; it doubles to 30 seconds."""
    timeout_s: PositiveFloat = 60.0
    """How long a connection may bring nothing."""
    s3_anonymous: bool = True
    """Whether S3 is asked without credentials; otherwise with those of the environment."""
    s3_endpoint: str | None = None
    """Another S3 server than Amazon's."""


def run(config: Config) -> dict[str, Any]:
    """Fetch what is not here or not right, and say what was done.

    Raises
    ------
    ManifestError, ConfigError : the manifest has no section `fetch`, or it, a table, or what was asked for does not hold together.
    FetchError : files could not be fetched whole and right, or an archive may not be unpacked; the others are in place.
    ResourceError : the disk has no room.
    RunError : another process fetches to the same place.
    StoppedBySignal : Ctrl-C, SIGTERM or SIGHUP came; the same command goes on.
    """
    from cellbridge.data.fetch.crew import stoppable
    from cellbridge.data.fetch.items import STATE, require_selectable

    manifest, place = _open(config)
    assert manifest.fetch is not None
    selection = Selection.of(config.plates, config.wells, plate_format=manifest.plate_format)
    require_selectable(manifest.fetch, selection)
    if config.dry_run:
        return _rehearse(config, manifest, place, selection)
    with stoppable(), _told_of_disk(place.root), runs.exclusive(runs.RunDir(place.root / STATE)):
        return _fetch(config, manifest, place, selection)


def _open(config: Config) -> "tuple[Manifest, Place]":
    from cellbridge.data.fetch.items import Place

    file = config.manifest / "manifest.yaml" if config.manifest.is_dir() else config.manifest
    manifest, _ = read_manifest(file, root=file.parent)  # the root need not exist yet
    if manifest.fetch is None:
        raise ManifestError(
            f"{file}: has no section fetch, which says where the files come from. Add one (data_manifests/README.md explains it), or "
            f"copy the files by hand{f' (published at {manifest.source})' if manifest.source else ''}."
        )
    root = Path(os.path.abspath(config.root if config.root is not None else file.parent / manifest.root))
    require_directory(root, option="--root")
    return manifest, Place(Path(os.path.abspath(file)), root)


def _scene(config: Config, place: "Place") -> "Scene":
    from cellbridge.data.fetch.crew import Crew
    from cellbridge.data.fetch.ledger import Ledger
    from cellbridge.data.fetch.plan import Scene
    from cellbridge.data.fetch.remotes import Access, Remotes
    from cellbridge.data.fetch.transfer import Patience

    access = Access(config.timeout_s, s3_anonymous=config.s3_anonymous, s3_endpoint=config.s3_endpoint)
    patience, crew = Patience(config.attempts, first_wait_s=config.first_wait_s), Crew(config.workers)
    remotes = Remotes(access, pause=crew.pause)
    return Scene(place, remotes, Ledger(place.root), crew, patience, verify=config.verify)


def _rehearse(config: Config, manifest: Manifest, place: "Place", selection: "Selection") -> dict[str, Any]:
    """Plan both halves, as far as the tables are here."""
    from cellbridge.data.fetch.items import listed_files

    assert manifest.fetch is not None
    scene = _scene(config, place)
    plans = [_planned(listed_files(manifest.fetch, place, selection), scene, what="files", record=False)]
    lists_more = bool(manifest.fetch.tables) or manifest.fetch.images
    waits = lists_more and bool(plans[0].wanted)
    if waits:
        say("fetch: what the tables list is known once they are here; its size is unknown until then")
    elif lists_more:
        plans.append(_planned(_listed_by_tables(manifest, place, selection), scene, what="listed files", record=False))
    return {
        "root": str(place.root),
        "files_to_fetch": sum(len(plan.wanted) for plan in plans),
        "bytes_to_fetch": sum(plan.total - plan.kept for plan in plans),
        "files_of_unknown_size": sum(plan.unknown for plan in plans),
        "already_there": sum(len(plan.there) for plan in plans),
        "more_listed_by_tables": "unknown until they are fetched" if waits else "no",
    }


def _fetch(config: Config, manifest: Manifest, place: "Place", selection: "Selection") -> dict[str, Any]:
    from cellbridge.data.fetch.items import listed_files

    assert manifest.fetch is not None
    scene = _scene(config, place)
    plans = [_planned(listed_files(manifest.fetch, place, selection), scene, what="files")]
    _carry_out(plans[0], manifest, scene)
    if manifest.fetch.tables or manifest.fetch.images:
        plans.append(_planned(_listed_by_tables(manifest, place, selection), scene, what="listed files"))
        _carry_out(plans[1], manifest, scene)
    wanted = [one for plan in plans for one in plan.wanted]
    return {
        "root": str(place.root),
        "fetched": len(wanted),
        "bytes": sum(one.size or 0 for one in wanted),
        "already_there": sum(len(plan.there) for plan in plans),
        "replaced": sum(one.replaces for one in wanted),
        "without_checksum": sum(not (one.item.sums or one.facts.md5) for one in wanted),
        "held_by_size_alone": sum(plan.checked_by_size for plan in plans),
    }


def _listed_by_tables(manifest: Manifest, place: "Place", selection: "Selection") -> "list[Item]":
    from cellbridge.data.fetch.items import files_of_tables, images_of

    assert manifest.fetch is not None
    items = files_of_tables(manifest, manifest.fetch, place, selection)
    return items + (images_of(manifest, manifest.fetch, place, selection) if manifest.fetch.images else [])


def _planned(items: "Sequence[Item]", scene: "Scene", *, what: str, record: bool = True) -> "Plan":
    """Look at everything, and tell how much is to come and how long it may take."""
    from cellbridge.data.fetch.items import distinct
    from cellbridge.data.fetch.plan import expand, make_plan, measured_rate, require_room

    files, facts = expand(distinct(items), scene)
    plan = make_plan(distinct(files), facts, scene, record=record)
    say(f"fetch ({what}): {plan.words(rate=measured_rate(plan, scene))}")
    require_room(plan, scene.root)
    return plan


def _carry_out(plan: "Plan", manifest: Manifest, scene: "Scene") -> None:
    """Fetch the plan's files; what comes whole is in place at once, whatever becomes of the others."""
    from cellbridge.data.fetch.crew import Meter, signal_of
    from cellbridge.data.fetch.plan import require_none

    if not plan.wanted:
        return
    unit, unit_bytes = ("MB", 10**6) if plan.total >= 10**8 else ("kB", 10**3)
    problems: list[Exception] = []
    whole = 0
    try:
        with bar("fetch", total=max(1, plan.total // unit_bytes), unit=unit) as shown:
            shown.start_at(plan.kept // unit_bytes)
            meter = Meter(shown.advance, unit_bytes)
            work = scene.crew.each(lambda wanted: _bring(wanted, scene, meter.add), plan.wanted)
            with closing(work) as outcomes:
                for outcome in outcomes:
                    if outcome.error is None:
                        whole += _place(outcome.task, outcome.result or {}, manifest, scene, problems)
                    elif isinstance(outcome.error, FetchError):
                        problems.append(outcome.error)
                    else:
                        raise outcome.error
                    if len(problems) >= _FAILURES:
                        break
    except KeyboardInterrupt as stop:
        raise StoppedBySignal(
            f"stopped; {whole} of {len(plan.wanted)} files are whole and in place, the same command goes on from there",
            signal_number=signal_of(stop),
        ) from None
    require_none(
        problems, total=len(plan.wanted), done=f"{whole} are in place, the same command tries the others again"
    )


def _bring(wanted: "Wanted", scene: "Scene", advance: Callable[[int], None]) -> dict[str, str]:
    """Fetch one file into its partial file; with a place of its own, publish it."""
    from cellbridge.data.fetch.transfer import Transfer

    item = wanted.item
    partial = scene.partial(item)
    counts = wanted.size is not None
    transfer = Transfer(
        item,
        partial,
        scene.remotes.of(item.url),
        scene.patience,
        pause=scene.crew.pause,
        advance=advance if counts else lambda n_bytes: None,
    )
    sums = transfer.run(wanted.facts)
    if item.unpack is None:
        partial.publish(scene.root / item.path)
    return sums


def _place(
    wanted: "Wanted", sums: dict[str, str], manifest: Manifest, scene: "Scene", problems: list[Exception]
) -> bool:
    """Record a file that is in place; an archive's content gets there first, or what is wrong with it is noted."""
    try:
        if wanted.item.unpack is None:
            scene.ledger.add(wanted.item, sums)
        else:
            _unpack(wanted.item, sums, manifest, scene)
    except (FetchError, ManifestError) as error:
        problems.append(error)
        return False
    return True


def _unpack(item: "Item", sums: dict[str, str], manifest: Manifest, scene: "Scene") -> None:
    """Put an archive's content in place, all of it or nothing, and delete the archive."""
    from cellbridge.data import archives
    from cellbridge.data.fetch.items import STATE

    section, partial = manifest.fetch, scene.partial(item)
    assert section is not None
    limits = archives.Limits(section.max_unpacked_ratio, int(section.max_unpacked_gb * 1e9))
    folder, target = scene.root / STATE / "unpacked", scene.root / str(item.unpack)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        members = archives.unpack(partial.data, folder, limits=limits, what=item.url)
        for name in members:
            scene.place.path(f"{item.unpack}/{name}", where=item.url)
        archives.publish(folder, target, members, known=scene.ledger.members_of(item), what=item.url)
    except (FetchError, ManifestError):
        partial.discard()  # what was refused is not what the next run goes on from
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    scene.ledger.add(item, sums, members=members)
    partial.discard()


@contextmanager
def _told_of_disk(root: Path) -> Iterator[None]:
    """Tell a full disk with its place: a write to a file that is open names none."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        folder = next(path for path in (root, *root.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        raise ResourceError(
            f"{root}: {error.strerror} ({free} bytes free). What has come is kept; free some space and run the same command again."
        ) from error
