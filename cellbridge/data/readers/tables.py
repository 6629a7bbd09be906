"""Text tables as they are: every cell a string, every row with the line it stands on."""

import csv
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cellbridge.data.readers.faults import apart
from cellbridge.errors import ManifestError, did_you_mean

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Table:
    """A table's name, columns, and rows with their line numbers (the header is line 1)."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]

    def where(self, row: int) -> str:
        """Return `load_data.csv row 12`, for messages; `row` counts from 0."""
        return f"{self.path.name} row {self.lines[row]}"

    def require(self, *columns: str) -> None:
        """Raise ManifestError for the first column that is missing, offering the nearest."""
        for column in columns:
            if column not in self.columns:
                raise ManifestError(f'{self.path}: no column "{column}".{did_you_mean(column, self.columns)}')


def read_table(path: Path) -> Table:
    """Read a .csv, .csv.gz, TAB-separated or .parquet table; nothing becomes a number or a missing value.

    `NA`, `None`, `null` and `0001053597806` stay the strings they are. A byte-order mark, CRLF line ends and `;` or TAB as the
    separator are understood; surrounding blanks are cut off; empty lines are skipped.

    Raises
    ------
    ManifestError : the table is missing, is not UTF-8 text, has no header, repeats a column, or a row is too short or too long.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    text = _decode(path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = max("\t,;", key=header.count) if header else ","
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    try:
        numbered = [(reader.line_num, [cell.strip() for cell in row]) for row in _non_empty(reader)]
    except csv.Error as error:
        raise ManifestError(f"{path} row {reader.line_num}: not a table ({error}). Export it again as CSV.") from None
    if not numbered:
        raise ManifestError(f"{path}: is empty. A header and at least one row are expected.")
    columns = numbered[0][1]
    repeated = next((name for name in columns if name and columns.count(name) > 1), None)
    if repeated is not None:
        raise ManifestError(f'{path} row 1: column "{repeated}" stands twice. Rename or remove one of them.')
    whole = []
    for line, row in numbered[1:]:
        with apart("row"):
            if len(row) != len(columns):
                raise ManifestError(
                    f"{path} row {line}: {len(row)} fields, the header has {len(columns)} (separator {separator!r}). Fix the row."
                )
            whole.append((line, row))
    rows = tuple({name: cell for name, cell in zip(columns, row, strict=True) if name} for _, row in whole)
    if not rows:
        raise ManifestError(f"{path}: has a header and no row. Nothing can be read from it.")
    return Table(path, tuple(name for name in columns if name), rows, tuple(line for line, _ in whole))


def _read_parquet(path: Path) -> Table:
    """Read a parquet file; null and NaN are the empty text, and a whole number in a column of floats is written without a point."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such table. Check the manifest's tables and root.") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ManifestError(
            f"{path}: no whole parquet file ({' '.join(str(error).split())[:120]}). Copy it again."
        ) from None
    columns = tuple(table.column_names)
    repeated = next((name for name in columns if columns.count(name) > 1), None)
    if repeated is not None:
        raise ManifestError(f'{path}: column "{repeated}" stands twice. Rename or remove one of them.')
    if table.num_rows == 0:
        raise ManifestError(f"{path}: has no row. Nothing can be read from it.")
    texts = [[_text(value) for value in table.column(name).to_pylist()] for name in columns]
    rows = tuple(dict(zip(columns, row, strict=True)) for row in zip(*texts, strict=True))
    return Table(path, columns, rows, tuple(range(1, len(rows) + 1)))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return str(value).strip()


def _non_empty(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    return (row for row in rows if any(cell.strip() for cell in row))


def _decode(path: Path) -> str:
    data = table_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ManifestError(f"{path} row {line}: not UTF-8 text. Save the table as CSV in UTF-8.") from None
    if "\x00" in text:
        raise ManifestError(f"{path}: holds zero bytes, so it is no UTF-8 table. Save it as CSV in UTF-8.")
    return text


def table_bytes(path: Path) -> bytes:
    """Return a text table as it is stored, unpacked; raise ManifestError where it is missing or cannot be read."""
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        return data
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such table. Check the manifest's tables and root.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{path}: cannot be read ({error}). Copy the file again.") from None
