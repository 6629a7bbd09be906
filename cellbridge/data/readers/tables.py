"""Text tables as they are: every cell a string, every row with the line it stands on."""

import csv
import gzip
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellbridge.data.readers.faults import apart
from cellbridge.errors import ManifestError, did_you_mean, in_one_line

_GZIP_MAGIC = b"\x1f\x8b"
_FIND = "Copy it there, or correct its name or the root in the manifest."


@dataclass(frozen=True)
class Table:
    """A table's name for messages, columns, and rows with their line numbers (the header is line 1)."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]

    def where(self, row: int) -> str:
        """Return `plate_1/load_data.csv row 12`, for messages; `row` counts from 0."""
        return f"{self.name} row {self.lines[row]}"

    def require(self, *columns: str) -> None:
        """Raise ManifestError for the first column that is missing, offering the nearest."""
        for column in columns:
            if column not in self.columns:
                nearest = did_you_mean(column, self.columns)
                raise ManifestError(
                    f'{self.name}: no column "{column}". Add it, or rename the one that is meant.{nearest}'
                )

    def require_distinct(self, meanings: Mapping[str, str]) -> None:
        """Raise ManifestError where two columns mean the same and do not say the same.

        Parameters
        ----------
        meanings : column → what it is read as.
        """
        first: dict[str, str] = {}
        for column, meaning in meanings.items():
            other = first.setdefault(meaning, column)
            index = next((i for i, row in enumerate(self.rows) if row[column] != row[other]), None)
            if index is not None:
                said = f'"{self.rows[index][column]}", and column "{other}" "{self.rows[index][other]}"'
                raise ManifestError(
                    f"{self.where(index)} {column}: says {said}, but both mean {meaning}. Remove or rename one of the two columns."
                )


def table_name(path: Path, root: Path | None) -> str:
    """Return what messages call a table: its path relative to the root; whole where it lies elsewhere, or no root is given."""
    return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else str(path)


def read_table(path: Path, *, root: Path | None = None) -> Table:
    """Read a .csv, .csv.gz, TAB-separated or .parquet table; nothing becomes a number or a missing value.

    `NA`, `None`, `null` and `0001053597806` stay the strings they are. A byte-order mark, CRLF line ends and `;` or TAB as the
    separator are understood; surrounding blanks are cut off; empty lines are skipped.

    Parameters
    ----------
    root : what the table's name in messages is relative to.

    Raises
    ------
    ManifestError : the table is missing, is not UTF-8 text, has no header, repeats a column, or a row is too short or too long.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, root)
    name = table_name(path, root)
    text = _decode(path, name)
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = max("\t,;", key=header.count) if header else ","
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    numbered: list[tuple[int, list[str]]] = []
    begun = 1  # the line on which a row begins; a cell in quotes may run over several
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                numbered.append((begun, [cell.strip() for cell in row]))
            begun = reader.line_num + 1
    except csv.Error as error:
        remedy = "Close the quotation mark that opens there, or export the table again as CSV."
        raise ManifestError(f"{name} row {begun}: not a table ({error}). {remedy}") from None
    if not numbered:
        raise ManifestError(f"{name}: is empty. Export it again, with a header and at least one row.")
    columns = numbered[0][1]
    if len(columns) == 1 and re.search(r"[|\s]", columns[0]):
        raise ManifestError(
            f'{name} row 1: "{columns[0]}" is one column. Separate the columns by commas, semicolons or TAB.'
        )
    repeated = next((column for column in columns if column and columns.count(column) > 1), None)
    if repeated is not None:
        raise ManifestError(f'{name} row 1: column "{repeated}" stands twice. Rename or remove one of them.')
    whole = []
    for line, row in numbered[1:]:
        with apart("row"):
            if len(row) != len(columns):
                raise ManifestError(
                    f"{name} row {line}: {len(row)} fields, the header has {len(columns)} (separator {separator!r}). Fix the row; "
                    "a cell with the separator in it stands in quotes."
                )
            whole.append((line, row))
    rows = tuple({column: cell for column, cell in zip(columns, row, strict=True) if column} for _, row in whole)
    if len(numbered) == 1:
        raise ManifestError(
            f"{name}: has a header and no row. Export it again with its rows, or take it out of the manifest."
        )
    return Table(name, tuple(filter(None, columns)), rows, tuple(line for line, _ in whole))


def _read_parquet(path: Path, root: Path | None) -> Table:
    """Read a parquet file; null and NaN are the empty text, and a whole number in a column of floats is written without a point."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such table. {_FIND}") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ManifestError(f"{path}: no whole parquet file ({in_one_line(error)}). Copy it again.") from None
    name, columns = table_name(path, root), tuple(table.column_names)
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated is not None:
        raise ManifestError(f'{name}: column "{repeated}" stands twice. Rename or remove one of them.')
    if table.num_rows == 0:
        raise ManifestError(f"{name}: has no row. Export it again with its rows, or take it out of the manifest.")
    texts = [[_text(value) for value in table.column(column).to_pylist()] for column in columns]
    rows = tuple(dict(zip(columns, row, strict=True)) for row in zip(*texts, strict=True))
    return Table(name, columns, rows, tuple(range(1, len(rows) + 1)))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return str(value).strip()


def _decode(path: Path, name: str) -> str:
    data = table_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ManifestError(f"{name} row {line}: not UTF-8 text. Save the table as CSV in UTF-8.") from None
    if "\x00" in text:
        raise ManifestError(f"{name}: holds zero bytes, so it is no UTF-8 table. Save it as CSV in UTF-8.")
    return text


def table_bytes(path: Path) -> bytes:
    """Return a text table as it is stored, unpacked; raise ManifestError where it is missing or cannot be read."""
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        return data
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such table. {_FIND}") from None
    except IsADirectoryError:
        raise ManifestError(f"{path}: is a folder, and no table. Name the file that is meant.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{path}: cannot be read ({error}). Copy the file again.") from None
