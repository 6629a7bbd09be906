"""Sections of an evaluation: tables and matrices of one layout, so that what renders them need not know each metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellbridge.metrics.intervals import Estimate

Section = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: a value is shown times `factor`, with `digits`, in `unit`."""

    key: str
    title: str
    digits: int = 2
    factor: float = 1.0
    unit: str = ""


def share(key: str, title: str) -> Column:
    """Return a column of shares, shown in percent."""
    return Column(key, title, digits=0, factor=100.0, unit="%")


def table(
    key: str,
    title: str,
    about: str,
    *,
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> Section:
    """Return a table; a row names its cells by column key, and lacks what does not apply to it."""
    return {
        "key": key,
        "title": title,
        "about": about,
        "kind": "table",
        "columns": [vars(column) for column in columns],
        "rows": [{name: _plain(value) for name, value in row.items()} for row in rows],
        "notes": list(notes),
    }


def matrix(
    key: str,
    title: str,
    about: str,
    *,
    names: tuple[Sequence[str], Sequence[str]],
    titles: tuple[str, str],
    values: Any,
    column: Column,
    notes: Sequence[str] = (),
) -> Section:
    """Return a matrix of cells (row, column).

    Parameters
    ----------
    names, titles : of the rows and of the columns.
    column : how every value is shown.
    """
    return {
        "key": key,
        "title": title,
        "about": about,
        "kind": "matrix",
        "row_title": titles[0],
        "column_title": titles[1],
        "row_names": list(names[0]),
        "column_names": list(names[1]),
        "values": [[_plain(value) for value in row] for row in values],
        "factor": column.factor,
        "digits": column.digits,
        "unit": column.unit,
        "notes": list(notes),
    }


def absent(key: str, title: str, why: str) -> Section:
    """Return a section that could not be computed, and why."""
    return {"key": key, "title": title, "not_computed": why}


def cell(value: Any) -> dict[str, Any]:
    """Return a cell: an estimate, a number, words, or (for None) that nothing could be computed."""
    if value is None:
        return {"not_computed": "cannot be computed here"}
    if isinstance(value, Estimate):
        return value.to_dict()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        return {"text": value}
    number = float(value)
    return {"value": number if np.isfinite(number) else None}


def _plain(value: Any) -> Any:
    """Return names and kinds of a row as they are, and anything else as a cell."""
    return value if isinstance(value, str) else cell(value)
