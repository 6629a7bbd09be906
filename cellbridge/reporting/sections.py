"""Sections of an evaluation: tables and matrices that say themselves what their columns are."""

from collections.abc import Mapping, Sequence
from typing import Any

from cellbridge.reporting.values import brief, reasons, shown


def section_view(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section as the template lays it out; one of a kind that is not known shows its title and says so."""
    view = {
        "key": section["key"],
        "title": section["title"],
        "about": section.get("about", ""),
        "notes": list(section.get("notes", [])),
        "kind": section.get("kind", ""),
        "why": section.get("not_computed", ""),
        "reasons": [],
    }
    if view["why"]:
        return view | {"kind": "missing"}
    if view["kind"] == "table":
        return view | _table(section)
    if view["kind"] == "matrix":
        return view | _matrix(section)
    return view | {"kind": "missing", "why": f'a section of kind "{view["kind"]}", which this version does not draw'}


def _table(section: Mapping[str, Any]) -> dict[str, Any]:
    columns: Sequence[Mapping[str, Any]] = section["columns"]
    rows = [
        {
            "name": row["name"],
            "kind": row.get("kind", ""),
            "cells": [
                shown(
                    row.get(column["key"]),
                    digits=column.get("digits", 2),
                    factor=column.get("factor", 1.0),
                    unit=column.get("unit", ""),
                )
                for column in columns
            ],
        }
        for row in section["rows"]
    ]
    titles = [column["title"] for column in columns]
    named = [pair for row in rows for pair in zip(titles, row["cells"], strict=True)]
    return {"headings": titles, "rows": rows, "reasons": reasons(named)}


def _matrix(section: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: section.get(name, default) for name, default in (("digits", 2), ("factor", 1.0), ("unit", ""))}
    numbers = [abs(cell["value"]) for row in section["values"] for cell in row if cell.get("value") is not None]
    top = max(numbers, default=0.0) or 1.0
    rows = [
        {"name": name, "cells": [_heat(cell, top) | shown(cell, **settings) for cell in values]}
        for name, values in zip(section["row_names"], section["values"], strict=True)
    ]
    named = [pair for row in rows for pair in zip(section["column_names"], row["cells"], strict=True)]
    return {
        "row_title": section.get("row_title", ""),
        "column_title": section.get("column_title", ""),
        "headings": list(section["column_names"]),
        "rows": rows,
        "reasons": reasons(named),
    }


def _heat(cell: Mapping[str, Any], top: float) -> dict[str, Any]:
    """Return how strongly a cell is coloured, in percent, and whether its value is negative."""
    value = cell.get("value")
    return {"strength": 0.0 if value is None else round(55 * abs(value) / top, 1), "negative": (value or 0) < 0}


def finding_view(finding: Mapping[str, Any]) -> dict[str, Any]:
    """Return one finding behind a verdict, its evidence in one line."""
    evidence = finding.get("evidence", {})
    return {
        "name": finding["name"],
        "state": finding.get("state", "open"),
        "text": finding.get("text", ""),
        "evidence": "; ".join(f"{str(name).replace('_', ' ')} {brief(value)}" for name, value in evidence.items()),
    }
