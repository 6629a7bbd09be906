"""What there is to fetch: the section's files, the rows of its tables and the images of the data set, each a URL and its place here."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from cellbridge.data.fetch.section import SCHEMES, Fetch, FileTable
from cellbridge.data.layout import parse_well
from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.readers.tables import read_table
from cellbridge.data.selection import Selection
from cellbridge.errors import ConfigError, ManifestError

STATE = ".fetch"
"""The folder beneath the root that partial files and the record of fetched ones lie in."""


@dataclass(frozen=True)
class Item:
    """One file, or one folder, to be fetched.

    Parameters
    ----------
    url : where it comes from; a local file by its absolute path.
    path : where it goes, relative to the root.
    where : the manifest, or the table and row, that names it.
    sums : algorithm (sha256, md5) → the sum that it must have, in lower case.
    size : how many bytes it must have; None where nothing says so.
    unpack : for an archive, the folder relative to the root that its content goes into.
    is_folder : whether all files below it are meant.
    """

    url: str
    path: str
    where: str
    sums: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    unpack: str | None = None
    is_folder: bool = False


@dataclass(frozen=True)
class Place:
    """Where a manifest stands, and where its data set goes."""

    file: Path
    root: Path

    def path(self, text: str, *, where: str) -> str:
        """Return a path of the manifest or a table, relative to the root, after checking that it stays there."""
        if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs") for letter in text):
            raise ManifestError(f"{where}: {text!a} has invisible letters. Write a plain path.")
        path = resolve_path(text, self.root, where=where)
        relative = path.relative_to(self.root).as_posix()
        if relative.partition("/")[0].casefold() == STATE or path == self.file:
            raise ManifestError(f'{where}: "{text}" is a place that fetch keeps for itself. Choose another path.')
        return relative


def listed_files(section: Fetch, place: Place, selection: Selection) -> list[Item]:
    """Return the section's own files, folders and archives.

    Raises
    ------
    ManifestError : a path leaves the root, or a file has no URL.
    """
    items = []
    for index, file in enumerate(section.files):
        where = f"{place.file.name} fetch.files[{index}]"
        if file.plates and not any(selection.takes_some_of(plate) for plate in file.plates):
            continue
        sums = {name: text.lower() for name, text in (("sha256", file.sha256), ("md5", file.md5)) if text}
        items.append(
            Item(
                url=join_url(section.url, file.path if file.url is None else file.url, place=place, where=where),
                path=place.path(file.path, where=where),
                where=where,
                sums=sums,
                size=file.size_bytes,
                unpack=None if file.unpack is None else place.path(file.unpack or ".", where=where),
                is_folder=file.path.endswith("/"),
            )
        )
    return items


def files_of_tables(manifest: Manifest, section: Fetch, place: Place, selection: Selection) -> list[Item]:
    """Return the files that the section's tables list, of the plates and wells asked for, and those of no plate or well.

    Raises
    ------
    ManifestError : a table, column or value is missing or wrong.
    ConfigError : a plate or well asked for is in none of them.
    """
    items: list[Item] = []
    listed = {(plate, "") for file in section.files for plate in file.plates}
    for given in section.tables:
        table = read_table(resolve_path(given.table, place.root, where="fetch.tables"), root=place.root)
        table.require(*(name for key, name in given.model_dump(exclude={"table"}, exclude_none=True).items()))
        for index, row in enumerate(table.rows):
            plate, text = (row[name] if name else "" for name in (given.plate, given.well))
            where = f"{table.where(index)} {given.well}"
            well = parse_well(text, plate_format=manifest.plate_format, where=where) if text else ""
            listed.add((plate, well))
            if _is_asked_for(plate, well, selection):
                items.append(_item_of(row, given, section, place, where=table.where(index)))
    if not section.images:  # what the images say is told of where they are listed
        _require_listed(section, selection, listed)
    return items


def images_of(manifest: Manifest, section: Fetch, place: Place, selection: Selection) -> list[Item]:
    """Return the images and illumination functions that the manifest's tables list, of the plates and wells asked for.

    Raises
    ------
    ManifestError : the tables do not hold together, an image has no URL, or a column is missing.
    ConfigError : a plate or well asked for is not in them.
    """
    from cellbridge.data.catalogue import read_catalogue

    rows, _ = read_catalogue(manifest, place.root, selection)
    items: list[Item] = []
    for row in rows:
        files = [(plane.file, row.digests.get(key)) for key, plane in row.images.items()]
        files += [(file, None) for file in row.illumination.values()]
        for file, md5 in files:
            path, is_folder = _whole_array(place.path(str(file), where=row.where))
            url = _url_of(path, manifest, section, place, where=row.where)
            sums = {"md5": md5} if md5 and not is_folder else {}
            items.append(Item(url, path, row.where, sums=sums, is_folder=is_folder))
    return items


def distinct(items: Iterable[Item]) -> list[Item]:
    """Return the items without repeats, as images share illumination functions and pages one file.

    Raises
    ------
    ManifestError : one place is named with two URLs or sums, or lies beneath another that is a file.
    """
    by_path: dict[str, Item] = {}
    for item in items:
        first = by_path.setdefault(item.path, item)
        if first is not item and replace(item, where=first.where) != first:
            raise ManifestError(
                f"{item.where}: {item.path} comes from {item.url}, and in {first.where} from {first.url} or with another checksum. "
                "Correct one of the two."
            )
    for item in by_path.values():
        above = (by_path.get(parent.as_posix()) for parent in PurePosixPath(item.path).parents)
        file = next((one for one in above if one is not None and not one.is_folder and one is not item), None)
        if file is not None:
            raise ManifestError(
                f"{item.where}: {item.path} lies beneath {file.path}, which {file.where} says is a file."
            )
    return list(by_path.values())


def join_url(base: str, text: str, *, place: Place, where: str) -> str:
    """Return the URL of a file that is named whole or relative to `base`; a local one as a path beneath it.

    Raises
    ------
    ManifestError : there is no base, the scheme is not understood, or a local file lies outside the base.
    """
    scheme, separator, _ = text.partition("://")
    if separator and scheme not in SCHEMES:
        raise ManifestError(f'{where}: "{scheme}://" is not understood; use one of {", ".join(SCHEMES)}.')
    if separator and scheme != "file":
        return text
    if not base:
        raise ManifestError(f'{where}: "{text}" has no URL. Give fetch.url in the manifest, or a whole URL.')
    if "://" not in base or base.startswith("file://"):
        return _local_path(base, text, place=place, where=where)
    if base.startswith("http"):
        text = quote(text)
    return f"{base.rstrip('/')}/{text.lstrip('/')}"


def _local_path(base: str, text: str, *, place: Place, where: str) -> str:
    folder = Path(os.path.abspath(place.file.parent / base.removeprefix("file://")))
    path = Path(os.path.normpath(folder / text.removeprefix("file://")))
    if not path.is_relative_to(folder):
        raise ManifestError(
            f'{where}: "{text}" lies outside {folder}, the url of fetch. Only files beneath it are copied.'
        )
    return str(path)


def _item_of(row: Mapping[str, str], given: FileTable, section: Fetch, place: Place, *, where: str) -> Item:
    sums: dict[str, str] = {}
    for name, column, length in (("sha256", given.sha256, 64), ("md5", given.md5, 32)):
        text = row[column].lower() if column else ""
        if text and (len(text) != length or set(text) - set("0123456789abcdef")):
            raise ManifestError(f'{where}: {column} "{text}" is no {name} ({length} hexadecimal digits). Correct it.')
        sums |= {name: text} if text else {}
    size = row[given.size_bytes] if given.size_bytes else ""
    if size and not size.isdecimal():
        raise ManifestError(f'{where}: {given.size_bytes} "{size}" is no number of bytes. Correct it.')
    return Item(
        url=join_url(section.url, row[given.url or given.path], place=place, where=where),
        path=place.path(row[given.path], where=where),
        where=where,
        sums=sums,
        size=int(size) if size else None,
    )


def _url_of(path: str, manifest: Manifest, section: Fetch, place: Place, *, where: str) -> str:
    """Return the URL that `prefixes` maps to a place beneath the root, or else the place relative to the section's URL."""
    found: dict[int, list[str]] = {}
    for prefix, folder in manifest.prefixes.items():
        inside = PurePosixPath(os.path.normpath(folder or "."))
        if "://" in prefix and PurePosixPath(path).is_relative_to(inside):
            rest = PurePosixPath(path).relative_to(inside)
            found.setdefault(len(inside.parts), []).append(f"{prefix.rstrip('/')}/{rest}")
    if not found:
        return join_url(section.url, path, place=place, where=where)
    nearest = found[max(found)]
    if len(nearest) > 1:
        raise ManifestError(
            f"{where}: {path} may be {nearest[0]} or {nearest[1]}, as two prefixes stand for one folder. Give each its own folder."
        )
    return join_url(section.url, nearest[0], place=place, where=where)


def _whole_array(path: str) -> tuple[str, bool]:
    """Return the Zarr folder that a path leads into, where it does; such an array is fetched whole."""
    parts = PurePosixPath(path).parts
    end = next((n for n, part in enumerate(parts, 1) if part.endswith(".zarr")), None)
    return (path, False) if end is None else ("/".join(parts[:end]), True)


def _is_asked_for(plate: str, well: str, selection: Selection) -> bool:
    """Say whether a file is: one of no plate belongs to all plates, one of no well to all wells of its plate."""
    if not plate:
        return not well or selection.takes_somewhere(well)
    return selection.takes(plate, well) if well else selection.takes_some_of(plate)


def _require_listed(section: Fetch, selection: Selection, listed: set[tuple[str, str]]) -> None:
    """Raise ConfigError for a plate that no table lists, or a well that none lists on a plate asked for."""
    plates = {plate for plate, _ in listed if plate}
    if any(given.plate for given in section.tables):
        _require_known(selection.plates, plates)
    if not selection.wells:
        return
    plates |= selection.plates | {name.rpartition("/")[0] for name in selection.wells}
    of_any_plate = {(plate, well) for plate in plates for none, well in listed if not none}
    selection.require_known(listed | of_any_plate | {(plate, "") for plate in selection.plates})


def _require_known(plates: frozenset[str], known: Iterable[str]) -> None:
    Selection(plates).require_known((plate, "") for plate in known)


def require_selectable(section: Fetch, selection: Selection) -> None:
    """Raise ConfigError where plates or wells are asked for and nothing in the manifest is told apart by them."""
    of_files = {plate for file in section.files for plate in file.plates}
    by_plate = section.images or any(table.plate for table in section.tables)
    if selection.plates and not by_plate:
        if not of_files:
            raise ConfigError("--plates: nothing in the manifest's fetch section is listed by plate. Leave it out.")
        _require_known(selection.plates, of_files)
    if selection.wells and not (section.images or any(table.well for table in section.tables)):
        raise ConfigError("--wells: nothing in the manifest's fetch section is listed by well. Leave it out.")
