"""Tables that people open: parquet keeps every string as it is, and a CSV holds no cell that a spreadsheet would run."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellbridge.runs import publish_file, write_text

if TYPE_CHECKING:
    import pandas as pd

CELLS = "cells.parquet"
"""The per-cell table of an evaluation, beside its metrics.json."""
_RUNS_AS_FORMULA = re.compile(r"^[ \n]*[=+\-@\t\r]")
"""Blanks before it do not keep a spreadsheet from running it."""


def write_cells(frame: "pd.DataFrame", directory: Path) -> str:
    """Write the values of single cells as `cells.parquet`, one row per (target, arm, cell), and return the file's name.

    Strings stay as they are, `=HYPERLINK(…)` and `0001053597806` among them: a program reads this file. The file appears under its
    name only when it is whole, and the same table gives the same bytes.

    Raises
    ------
    ValueError : a (target, arm, cell) stands twice.
    """
    key = [name for name in ("Metadata_Target", "Metadata_Arm", "Metadata_Cell", "Metadata_Output") if name in frame]
    repeated = frame.duplicated(key).to_numpy() if key else None
    if repeated is not None and repeated.any():
        first = dict(zip(key, frame[key].to_numpy()[repeated][0], strict=True))
        raise ValueError(f"{int(repeated.sum())} rows of the per-cell table stand twice, such as {first}")
    write_parquet(frame, directory / CELLS)
    return CELLS


def write_parquet(frame: "pd.DataFrame", file: Path, *, notes: Mapping[str, str] | None = None) -> None:
    """Write a table as parquet under its name when it is whole; columns of text stay text, even where all are missing.

    Parameters
    ----------
    notes : what the file's schema says besides, for `parquet_notes`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({str(name): _column(list(values)) for name, values in frame.items()})
    if notes:
        table = table.replace_schema_metadata(dict(notes))
    with publish_file(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def parquet_notes(file: Path) -> dict[str, str]:
    """Return what `write_parquet` was told to say of a table; nothing where the file is no parquet or says nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found.items()}


def _column(values: Sequence[Any]) -> Any:
    """Return an Arrow column: text where any value is text, else numbers or truth values, missing where NaN or None."""
    import pyarrow as pa

    present = [None if value is None or (isinstance(value, float) and math.isnan(value)) else value for value in values]
    if any(isinstance(value, str) for value in present):
        return pa.array([None if value is None else str(value) for value in present], type=pa.string())
    return pa.array(present, type=pa.float64() if all(value is None for value in present) else None, from_pandas=True)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table as CSV that is safe to open: no cell begins as a formula would.

    A text that begins with = + - @, a tab or a carriage return, a compound called `+1` too, gets an apostrophe before it, which
    spreadsheets take for "this is text"; numbers stay numbers, negative ones too. A missing value is an empty cell.

    References
    ----------
    OWASP, "CSV Injection".
    """
    buffer = io.StringIO()
    # Lines end as RFC 4180 has it: with another end, a carriage return in a text is not quoted, and begins a row where it is read.
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow([safe_cell(name) for name in columns])
    writer.writerows([safe_cell(row.get(name)) for name in columns] for row in rows)
    return buffer.getvalue()


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `csv_text` under its name when it is whole."""
    write_text(file, csv_text(columns, rows))


def safe_cell(value: Any) -> str:
    """Return a value as the text of a CSV cell that no spreadsheet runs."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    text = str(value)
    return f"'{text}" if isinstance(value, str) and _RUNS_AS_FORMULA.match(text) else text
