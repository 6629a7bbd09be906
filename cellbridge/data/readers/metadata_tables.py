"""Tables that say more of plates, wells or compounds, joined to the rows by the columns that the manifest names.

JUMP's `plate`, `well`, `compound`, `orf`, `crispr` and `perturbation_control` (as .csv, .csv.gz or .parquet), external_metadata.tsv,
mechanisms of action, or a list of a plate's wells are all read so.

References
----------
jump-cellpainting/datasets, metadata/README.md; pycytominer's external_metadata.tsv.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cellbridge.data.layout import parse_well
from cellbridge.data.manifest import Manifest, MetadataTable
from cellbridge.data.readers.faults import apart, each
from cellbridge.data.readers.rows import ImageRow
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
    joined = list(rows)
    for section in manifest.metadata_tables:
        with apart("metadata_table"):
            table = read_table(manifest.locate(section.table, root, where="metadata_tables"))
            joined = _joined(joined, table, section, plate_format=manifest.plate_format)
    return joined


def _joined(rows: list[ImageRow], table: Table, section: MetadataTable, *, plate_format: int) -> list[ImageRow]:
    table.require(*section.keys.values(), *section.columns)
    _require_columns(rows, table, section)
    names = section.columns or tuple(name for name in table.columns if name not in section.keys.values())
    wanted = {tuple(row.metadata.get(column, "") for column in section.keys) for row in rows}
    entries = _entries(table, section, names, wanted, plate_format=plate_format)
    absent = {_metadata_name(name): "" for name in names}
    return each(
        "metadata_table", lambda row: _with_entry(row, table, section, entries, absent), rows, otherwise_as_it_is=True
    )


def _require_columns(rows: Sequence[ImageRow], table: Table, section: MetadataTable) -> None:
    present = {name for row in rows for name in row.metadata}
    for column in section.keys:
        if column not in present:
            raise ManifestError(
                f'metadata_tables: {table.path.name} is joined on "{column}", which no row has.{did_you_mean(column, present)}'
            )


def _entries(
    table: Table, section: MetadataTable, names: Sequence[str], wanted: set[Key], *, plate_format: int
) -> dict[Key, tuple[dict[str, str], int]]:
    """Return key → (columns, row) of the entries that some row asks for."""
    found: dict[Key, tuple[dict[str, str], int]] = {}
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
            columns = {_metadata_name(name): row[name] for name in names}
            first, line = found.setdefault(key, (columns, index))
            if first != columns:
                name = next(name for name in columns if columns[name] != first[name])
                raise ManifestError(
                    f'{table.where(index)}: {", ".join(key)} stands in {table.where(line)} already, with {name} "{first[name]}" and not '
                    f'"{columns[name]}". Remove one of the two, or join on more columns.'
                )
    return found


def _metadata_name(column: str) -> str:
    """Return `Metadata_moa` for `moa`, `Metadata_moa` and `Image_Metadata_moa`."""
    return f"Metadata_{column.removeprefix('Image_').removeprefix('Metadata_')}"


def _with_entry(
    row: ImageRow,
    table: Table,
    section: MetadataTable,
    entries: dict[Key, tuple[dict[str, str], int]],
    absent: dict[str, str],
) -> ImageRow:
    key = tuple(row.metadata.get(column, "") for column in section.keys)
    if key not in entries:
        if section.complete and any(key):
            raise ManifestError(
                f"{row.where}: {table.path.name} has no entry for {', '.join(key)} ({', '.join(section.keys.values())}). Add it, or "
                "set complete: false for this table."
            )
        return replace(row, metadata={**absent, **row.metadata})
    columns, index = entries[key]
    for name, text in columns.items():
        if text and row.metadata.get(name, "") not in ("", text):
            raise ManifestError(
                f'{row.where}: {name} is "{row.metadata[name]}", {table.where(index)} says "{text}". Correct one of the two, or name '
                "the columns to be added under columns."
            )
    kept = {name: text for name, text in columns.items() if text or name not in row.metadata}
    return replace(row, metadata={**row.metadata, **kept})
