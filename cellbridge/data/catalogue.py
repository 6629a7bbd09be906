"""Everything that a data set's tables say, checked and in order, before any image is opened."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellbridge.data.annotation import annotate, condition_of, join_platemaps
from cellbridge.data.layout import parse_well
from cellbridge.data.manifest import Kind, Manifest
from cellbridge.data.readers.bbbc021 import read_bbbc021
from cellbridge.data.readers.benchmark_crops import read_benchmark_crops
from cellbridge.data.readers.crop_table import read_crop_table
from cellbridge.data.readers.faults import apart, listed
from cellbridge.data.readers.load_data import read_load_data
from cellbridge.data.readers.metadata_tables import join_metadata_tables
from cellbridge.data.readers.ome_zarr import read_ome_zarr
from cellbridge.data.readers.pattern import read_pattern
from cellbridge.data.readers.places import is_wanted
from cellbridge.data.readers.plane_table import read_plane_table
from cellbridge.data.readers.platemap import read_platemaps
from cellbridge.data.readers.rows import ImageRow, natural
from cellbridge.data.readers.samplesheet import read_samplesheet
from cellbridge.data.selection import EVERYTHING, Selection
from cellbridge.errors import ManifestError, did_you_mean

READERS: dict[Kind, Callable[[Manifest, Path], list[ImageRow]]] = {
    "load_data": read_load_data,
    "samplesheet": read_samplesheet,
    "planes": read_plane_table,
    "bbbc021": read_bbbc021,
    "pattern": read_pattern,
    "ome_zarr": read_ome_zarr,
    "crops": read_crop_table,
    "benchmark_crops": read_benchmark_crops,
}

_OF_CHOSEN = " of the plates and wells asked for"


def read_catalogue(manifest: Manifest, root: Path, selection: Selection = EVERYTHING) -> tuple[list[ImageRow], str]:
    """Return the rows asked for, by plate, well, site and cell, and the control's name.

    Raises
    ------
    ManifestError : a table or plate map does not hold together, a field or crop is listed twice, or a well has two conditions.
    ConfigError : a plate or well asked for has no row.
    """
    listing = listed_rows(manifest, root, selection)
    rows, control = annotate(listing.rows, manifest, others=listing.others)
    require_unique(rows, manifest)
    require_one_condition(rows, manifest, control=control)
    return sorted(rows, key=_place), control


@dataclass(frozen=True)
class Listing:
    """Rows with what plate maps and metadata tables say of them, in the order of the tables.

    Parameters
    ----------
    rows : those asked for.
    others : those that were not, where they are needed to name the control; what is wrong with them is not told.
    """

    rows: list[ImageRow]
    others: list[ImageRow]


def listed_rows(manifest: Manifest, root: Path, selection: Selection = EVERYTHING) -> Listing:
    """Return the rows asked for, and the others.

    Raises
    ------
    ManifestError : a table or plate map does not hold together, or `only` leaves no row.
    ConfigError : a plate or well asked for has no row.
    """
    every = _some(READERS[manifest.kind](manifest, root), manifest, "")
    _require_constants(every, manifest)
    chosen = selection.chosen(every)
    rows = _some(_described(chosen, manifest, root), manifest, _OF_CHOSEN if len(chosen) < len(every) else "")
    others = [row for row in every if not selection.takes(row.plate, row.well)]
    if not others or manifest.control_name is not None:
        return Listing(rows, [])
    with listed():
        return Listing(rows, _described(others, manifest, root))


def _described(rows: list[ImageRow], manifest: Manifest, root: Path) -> list[ImageRow]:
    folders = [manifest.locate(name, root, where="platemaps") for name in manifest.platemaps]
    rows = join_platemaps(rows, read_platemaps(folders, plate_format=manifest.plate_format, root=root))
    rows = join_metadata_tables(rows, manifest, root)
    _require_known(rows, manifest)
    return [row for row in rows if is_wanted(row.metadata, manifest)]


def _require_constants(rows: list[ImageRow], manifest: Manifest) -> None:
    """Refuse rows that say themselves, and otherwise, what `constants` say of every row."""
    said = dict(manifest.constants)
    if "Metadata_Well" in said:
        where = f"{manifest.file}: constants: Metadata_Well"
        said["Metadata_Well"] = parse_well(said["Metadata_Well"], plate_format=manifest.plate_format, where=where)
    for row in rows if said else ():
        for name, text in said.items():
            with apart("row"):
                if row.metadata.get(name, text) != text:
                    raise ManifestError(
                        f'{row.at(name)}: "{row.metadata[name]}", but constants in the manifest say "{text}" of every row. Take '
                        f"{name} out of them, or correct the table."
                    )


def _require_known(rows: list[ImageRow], manifest: Manifest) -> None:
    """Refuse an `only` whose column no table has."""
    present = {name for row in rows for name in row.metadata} if manifest.only else set()
    for query in manifest.only if rows else ():
        column = query.partition("=")[0]
        if column not in present:
            nearest = did_you_mean(column, present)
            raise ManifestError(f'{manifest.file}: only: no table has "{column}" ({query}). Correct it.{nearest}')


def _some(rows: list[ImageRow], manifest: Manifest, among: str) -> list[ImageRow]:
    """Return the rows; raise ManifestError where `only` has left none."""
    if not rows and manifest.only:
        remedy = "Ask for others, or correct it" if among else "Correct it"
        raise ManifestError(f"{manifest.file}: only: no row{among} has {' or '.join(manifest.only)}. {remedy}.")
    return rows


def _place(row: ImageRow) -> tuple[str, str, tuple[int, int, str], tuple[int, int, str]]:
    return row.plate, row.well, natural(row.site), natural(row.metadata.get("Metadata_Cell", ""))


def require_unique(rows: Sequence[ImageRow], manifest: Manifest) -> None:
    """Refuse a second row for one field (under one condition, where images are counterfactual) or for one crop."""
    parts = ["Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Origin"]
    seen: dict[tuple[str, ...], ImageRow] = {}
    for row in rows:
        names = (
            [*parts, "Metadata_Compound", "Metadata_Concentration"] if row.metadata.get("Metadata_Origin") else parts
        )
        key = tuple(row.metadata.get(name, "") for name in names)
        if not manifest.holds_fields:
            if not row.metadata.get("Metadata_Cell"):
                continue
            key = (*key, row.metadata["Metadata_Cell"])
        first = seen.setdefault(key, row)
        if first is not row:
            cell = f" cell {row.metadata['Metadata_Cell']}" if not manifest.holds_fields else ""
            with apart("duplicate"):
                raise ManifestError(
                    f"{row.where}: {row.place}{cell} is listed already, in {first.where}. Remove one of the two rows, or give the "
                    "plates two names if they are two."
                )


def require_one_condition(rows: Sequence[ImageRow], manifest: Manifest, *, control: str) -> None:
    """Refuse a well of which one row says another condition than the first; counterfactual images have several by nature.

    Where `constants` give one well for all crops of a set it says nothing.
    """
    if "Metadata_Well" in manifest.constants:
        return
    first: dict[tuple[str, str], tuple[ImageRow, str]] = {}
    for row in rows:
        if row.metadata.get("Metadata_Origin"):
            continue
        name = condition_of(row, control=control).name
        other, usual = first.setdefault((row.plate, row.well), (row, name))
        if name != usual:
            with apart("condition"):
                raise ManifestError(
                    f"{row.where}: plate {row.plate} well {row.well} is {name} here, and {usual} in {other.where}. A well has one "
                    "condition: correct one of the two rows."
                )
