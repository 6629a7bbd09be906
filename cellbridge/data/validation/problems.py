"""What is wrong, of which kind, where, and what to do: one problem, and all of them together."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.faults import Fault

KINDS = {
    "manifest": "a manifest that cannot be used",
    "table": "a table that cannot be read",
    "row": "a row of a table that does not hold together",
    "platemap": "a plate or well that table and plate map do not agree on",
    "metadata_table": "a row that a metadata table does not fit",
    "condition": "a compound, concentration or control that cannot be understood",
    "control": "a plate without control wells",
    "missing_channel": "a field without one of its channels",
    "missing_site": "a well without a site that most wells of its plate have",
    "missing_file": "a file that is not there",
    "incomplete_file": "a copy that was not finished",
    "empty_file": "a file of no bytes",
    "damaged_file": "a file that cannot be decoded",
    "changed_file": "a file with other bytes than its checksum says",
    "illumination": "an illumination function that cannot be used",
    "shape": "an image of another shape than its plate's others",
    "bit_depth": "an image of another type, or with other counts, than the full scale allows",
    "nan": "values that are no numbers",
    "zero": "a channel of nothing but zeros",
    "constant": "a channel of one single value",
    "saturated": "a channel with many pixels at the camera's largest count",
    "duplicate": "the same image twice",
    "leak": "the same well or image in train and in test",
    "store": "a store that cannot be read",
    "damaged_cell": "cells whose stored bytes are lost or flipped",
    "cells": "a table of cells that does not fit the store",
}
"""What stops `prepare` or falsifies what is made from the data."""

REMARKS = {
    "byte_order_mark": "a byte-order mark at a table's start",
    "crlf": "Windows line ends in a table",
    "semicolon": "a table with ; between its columns",
    "micro_sign": "µ in a table's concentrations",
    "blank_control": "wells that are control by an empty compound alone",
    "control_not_asked_for": "a plate without control among the wells asked for",
    "empty_well": "a well of the plate map without images",
    "stored_shifted": "counts that leave their low bits unused",
    "saturated_cell": "cells with many pixels at the camera's largest count",
    "same_copy": "images that are the same without being real",
    "unlisted_file": "a file that the store's manifest does not list",
    "not_finite": "numbers of the table of cells that are missing",
}
"""What cellbridge understands as it is, and other programs may not; `--strict` takes them for problems."""

_AT_A_ROW = re.compile(r"(?P<file>.+?) row (?P<row>\d+)(?: (?P<field>.+))?", re.DOTALL)
_FILE = re.compile(r'[^"]*(?:/[^"]*|\.\w{1,8})')
_SENTENCE = re.compile(r"[.?] +(?=[A-Z])")
_KEY = re.compile(r'(?:unknown key )?"([\w.]+)"(?= = | is required|$)|([a-z_]+)(?=: | ")')
"""How a message about a manifest begins that concerns one of its keys."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Parameters
    ----------
    kind : one of `KINDS` or `REMARKS`.
    file, row, field : where: a file, table or store; its line, or for a store the number of the cell; its column or channel.
    found, remedy : what was found and expected, and what to do.
    """

    kind: str
    file: str
    row: int | None
    field: str
    found: str
    remedy: str

    @property
    def is_remark(self) -> bool:
        return self.kind in REMARKS

    @property
    def line(self) -> str:
        """`planes.csv row 6 · DNA: images/001.tif is empty. → Copy it again.`"""
        place = " ".join(part for part in (self.file, "" if self.row is None else f"row {self.row}") if part)
        place = " · ".join(part for part in (place, self.field) if part)
        return _printable(f"{place}: {self.found} → {self.remedy}")


def of_text(kind: str, text: str, *, default: str) -> Problem:
    """Return the problem that an error's one line tells of: `wells.csv row 118 well: "Q25" is outside …. Fix the row.`

    Parameters
    ----------
    default : the file, where the line begins with none.
    """
    place, colon, rest = text.partition(": ")
    at_row = _AT_A_ROW.fullmatch(place)
    if colon and at_row is not None:
        found, remedy = _sentences(rest)
        return Problem(kind, at_row["file"], int(at_row["row"]), at_row["field"] or "", found, remedy)
    if colon and _FILE.fullmatch(place):
        found, remedy = _sentences(rest)
        return Problem(kind, place, None, _key(found) if place.endswith((".yaml", ".yml")) else "", found, remedy)
    return Problem(kind, default, None, "", *_sentences(text))


def _key(found: str) -> str:
    """Return the key of a manifest that a message is about; "" where it is about none."""
    match = _KEY.match(found)
    return "" if match is None else match[1] or (match[2] if match[2] in Manifest.model_fields else "")


def _sentences(text: str) -> tuple[str, str]:
    """Return what was found, and the remedy: the first sentence and the others; cells in quotes and what another program said (in brackets) are passed over."""
    ends = list(_SENTENCE.finditer(text))
    end = next((end for end in ends if _is_outside(text[: end.start()])), ends[0] if ends else None)
    return (text.rstrip("."), "Correct it.") if end is None else (text[: end.start()], text[end.end() :])


def _is_outside(before: str) -> bool:
    """Say whether every bracket and quotation mark is closed again."""
    return before.count("(") == before.count(")") and before.count('"') % 2 == 0


def _printable(text: str) -> str:
    """Return text that does nothing to a terminal, whatever a table or a file name holds."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


@dataclass
class Findings:
    """All problems of a plate or store, and how much of it was looked at."""

    problems: list[Problem] = field(default_factory=list)
    looked_at: dict[str, Any] = field(default_factory=dict)

    def add(
        self, kind: str, found: str, remedy: str, *, file: Path | str, row: int | None = None, at: str = ""
    ) -> None:
        """Note one problem; `at` is the column or channel."""
        self.problems.append(Problem(kind, str(file), row, at, found, remedy))

    def add_text(self, kind: str, text: str, *, default: Path | str) -> None:
        """Note what an error's one line says."""
        self.problems.append(of_text(kind, text, default=str(default)))

    def add_faults(self, faults: Iterable[Fault], *, default: Path | str) -> None:
        """Note what a reader has set apart; what many rows meet at one place of a joined table, once."""
        found = dict.fromkeys(of_text(fault.kind, str(fault.error), default=str(default)) for fault in faults)
        self.problems.extend(found)

    def count(self, *, remarks: bool) -> int:
        """Return how many problems there are, or how many remarks."""
        return sum(problem.is_remark is remarks for problem in self.problems)

    def by_kind(self) -> dict[str, list[Problem]]:
        """Return the problems of each kind that there are, in the order of `KINDS` and `REMARKS`."""
        groups: dict[str, list[Problem]] = {kind: [] for kind in (*KINDS, *REMARKS)}
        for problem in self.problems:
            groups[problem.kind].append(problem)
        return {kind: found for kind, found in groups.items() if found}

    def as_values(self, *, show: int) -> dict[str, Any]:
        """Return counts and the first few of each kind, and all of them, as JSON has them."""
        kinds = {
            kind: {
                "what": KINDS.get(kind) or REMARKS[kind],
                "severity": "remark" if kind in REMARKS else "problem",
                "count": len(found),
                "first": [asdict(problem) for problem in found[:show]],
            }
            for kind, found in self.by_kind().items()
        }
        return {"kinds": kinds, "all": [asdict(problem) for problem in self.problems]}

    def as_text(self, *, show: int) -> list[str]:
        """Return a heading for each kind, and the first few problems under it."""
        lines = []
        for kind, found in self.by_kind().items():
            severity = "remark: " if kind in REMARKS else ""
            lines.append(f"{severity}{kind}: {len(found)} ({KINDS.get(kind) or REMARKS[kind]})")
            lines += [f"  {problem.line}" for problem in found[:show]]
            lines += [f"  … {len(found) - show} more (--json has them all)"] if len(found) > show else []
        return lines
