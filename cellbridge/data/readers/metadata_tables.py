"""Tables that say more of plates, wells or compounds, joined to the rows by the columns that the manifest names.

JUMP's `plate`, `well`, `compound`, `orf`, `crispr` and `perturbation_control` (as .csv, .csv.gz or .parquet), external_metadata.tsv,
mechanisms of action, or a list of a plate's wells are all read so.

References
----------
jump-cellpainting/datasets, metadata/README.md; pycytominer's external_metadata.tsv.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cellbridge.data.layout import parse_well
from cellbridge.data.manifest import Manifest, MetadataTable
from cellbridge.data.readers.faults import apart, each
from cellbridge.data.readers.rows import Entry, ImageRow, of_rows
from cellbridge.data.readers.tables import Table, read_table
from cellbridge.errors import ManifestError, did_you_mean

Key = tuple[str, ...]


def join_metadata_tables(rows: Sequence[ImageRow], manifest: Manifest, root: Path) -> list[ImageRow]:
    """Add the columns of every metadata table, in the manifest's order, so that a later one can use what an earlier one added.

    A row whose own columns are all empty (a vehicle well without compound) has no entry and needs none.

    Raises
    ------
    ManifestError : a table or column is missing, an entry stands twice with different contents, a row has none, or a table and
        the rows say different things.
    """
    joined, without = list(rows), False
    for section in manifest.metadata_tables:
        done = False
        with apart("metadata_table"):
            table = read_table(manifest.locate(section.table, root, where="metadata_tables"), root=root)
            table.require(*section.keys.values(), *section.columns)
            # Of a table that is to be joined on what one that failed would have added, nothing more can be said.
            if rows and not (without and _lacking(joined, section)):
                joined = _joined(joined, table, section, manifest)
            done = True
        without = without or not done
    return joined


def _joined(rows: list[ImageRow], table: Table, section: MetadataTable, manifest: Manifest) -> list[ImageRow]:
    _require_columns(rows, table, section, manifest)
    names = section.columns or tuple(name for name in table.columns if name not in section.keys.values())
    wanted = {tuple(row.metadata.get(column, "") for column in section.keys) for row in rows}
    entries = _entries(table, section, names, wanted, plate_format=manifest.plate_format)
    if section.complete:
        _require_entries(rows, table, section, entries)
    absent = {_metadata_name(name): "" for name in names}
    return each("metadata_table", lambda row: _with_entry(row, section, entries, absent), rows, otherwise_as_it_is=True)


def _lacking(rows: Sequence[ImageRow], section: MetadataTable) -> list[str]:
    """Return the columns that a table is joined on and no row has."""
    return [column for column in section.keys if not any(column in row.metadata for row in rows)]


def _require_columns(rows: Sequence[ImageRow], table: Table, section: MetadataTable, manifest: Manifest) -> None:
    for column in _lacking(rows, section):
        present = {name for row in rows for name in row.metadata}
        raise ManifestError(
            f'{manifest.file}: metadata_tables: {table.name} is joined on "{column}", which no row has. Correct its keys.'
            f"{did_you_mean(column, present)}"
        )


def _entries(
    table: Table, section: MetadataTable, names: Sequence[str], wanted: set[Key], *, plate_format: int
) -> dict[Key, Entry]:
    """Return key → entry, of those that some row asks for."""
    found: dict[Key, Entry] = {}
    named = {_metadata_name(name): name for name in names}
    table.require_distinct({name: _metadata_name(name) for name in names})
    for index, row in enumerate(table.rows):
        with apart("metadata_table"):
            key = tuple(
                parse_well(row[theirs], plate_format=plate_format, where=f"{table.where(index)} {theirs}")
                if own == "Metadata_Well"
                else row[theirs]
                for own, theirs in section.keys.items()
            )
            if key not in wanted:
                continue
            entry = Entry({own: row[name] for own, name in named.items()}, named, table.where(index))
            first = found.setdefault(key, entry)
            if first.columns != entry.columns:
                own = next(own for own in named if first.columns[own] != entry.columns[own])
                raise ManifestError(
                    f'{entry.where} {named[own]}: {", ".join(key)} stands in {first.where} already, with "{first.columns[own]}" and '
                    f'not "{entry.columns[own]}". Remove one of the two, or join on more columns.'
                )
    return found


def _metadata_name(column: str) -> str:
    """Return `Metadata_moa` for `moa`, `Metadata_moa` and `Image_Metadata_moa`."""
    return f"Metadata_{column.removeprefix('Image_').removeprefix('Metadata_')}"


def _require_entries(
    rows: Sequence[ImageRow], table: Table, section: MetadataTable, entries: Mapping[Key, Entry]
) -> None:
    """Refuse what has no entry, once however many rows ask for it."""
    asking: dict[Key, list[ImageRow]] = {}
    for row in rows:
        key = tuple(row.metadata.get(column, "") for column in section.keys)
        if key not in entries and any(key):
            asking.setdefault(key, []).append(row)
    for key, some in asking.items():
        with apart("metadata_table"):
            raise ManifestError(
                f"{some[0].at(next(iter(section.keys)))}: {table.name} has no entry for {', '.join(key)} "
                f"({', '.join(section.keys.values())}){of_rows(some)}. Add it, or set complete: false for this table."
            )


def _with_entry(
    row: ImageRow, section: MetadataTable, entries: Mapping[Key, Entry], absent: Mapping[str, str]
) -> ImageRow:
    key = tuple(row.metadata.get(column, "") for column in section.keys)
    entry = entries.get(key)
    if entry is None:
        lacking = row.lacking or (section.complete and any(key))
        return replace(row, metadata={**absent, **row.metadata}, lacking=lacking)
    for name, text in entry.columns.items():
        if text and row.metadata.get(name, "") not in ("", text):
            raise ManifestError(
                f'{row.at(name)}: {name} is "{row.metadata[name]}", {entry.where} says "{text}". Correct one of the two, or name '
                "the columns to be added under columns."
            )
    kept = {name: text for name, text in entry.columns.items() if text or name not in row.metadata}
    return replace(row, metadata={**row.metadata, **kept}, joined=(*row.joined, entry))
