"""`cellbridge benchmark SUITE`: the project's measurements of itself, one table of values, intervals and goals.

The suites lie in `tests/benchmarks/` of a checkout, beside the tests, since they hold the code that cellbridge is measured against.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import field_validator

from cellbridge.errors import ConfigError, did_you_mean
from cellbridge.outputs import require_directory
from cellbridge.runs import RunDir, begin, write_json, write_text
from cellbridge.settings import Section, dump

SUITES = ("train", "evaluate", "bridge", "data")
FOLDER = Path(__file__).resolve().parents[2] / "tests" / "benchmarks"


class Config(Section):
    """Settings of `benchmark`."""

    suite: str
    parts: tuple[str, ...] | None = None
    """Which parts of the suite to measure; all of them by default."""
    quick: bool = False
    """A minute or two, with wide intervals, in place of a quarter of an hour."""
    device: str = "auto"
    out: Path | None = None
    """A run directory for metrics.json, table.txt, configuration and provenance."""

    @field_validator("parts", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def run(config: Config, *, folder: Path = FOLDER) -> dict[str, Any]:
    """Measure a suite, and return its table and every number behind it.

    Raises
    ------
    ConfigError : there is no such suite or part, or this installation came without the suites.
    """
    if config.out is not None:
        require_directory(config.out)
    with _suite(config.suite, folder) as suite:
        # What takes hours keeps each measurement, and goes on where it was stopped.
        kept = {"cells": config.out / "cells"} if config.suite == "bridge" and config.out is not None else {}
        found: dict[str, Any] = suite.run(parts=config.parts, quick=config.quick, device=config.device, **kept)
    table = text_table(found)
    if config.out is not None:
        run_dir = RunDir(config.out)
        begin(run_dir, config=dump(config), seed=None, inputs={})
        write_json(run_dir.metrics, found)
        write_text(run_dir.path / "table.txt", table + "\n")
    return {"table": table, **found}


@contextmanager
def _suite(name: str, folder: Path) -> Iterator[Any]:
    """Import a suite by its path; the modules beside it are found inside the block only."""
    if name not in SUITES:
        raise ConfigError(f'there is no benchmark suite "{name}".{did_you_mean(name, SUITES)}')
    path = folder / f"{name}.py"
    if not path.is_file():
        raise ConfigError(
            f'{path}: the suite "{name}" is not there; an installed package comes without the suites. '
            "Run the command from a checkout: pip install -e . in it, then cellbridge benchmark."
        )
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))


def text_table(found: Mapping[str, Any]) -> str:
    """Return the rows of every part as aligned text, with seconds, peaks of memory and the machine underneath."""
    lines = [["", "value", "95 % interval", "goal", "met"]]
    notes: list[str] = []
    for name, part in found["parts"].items():
        lines.append([f"{name}: {part['seconds']:.0f} s, {_memory(part)}", "", "", "", ""])
        lines += [_cells(row) for row in part["rows"]]
        notes += [f"{row['claim']}: not measured: {row['why']}." for row in part["rows"] if "why" in row]
    return "\n".join([*_aligned(lines), *notes, found["machine"]["summary"]])


def _cells(row: Mapping[str, Any]) -> list[str]:
    met = {True: "yes", False: "NO", None: ""}[row["met"]]
    ends = row["interval"]
    interval = f"[{_number(ends[0])}, {_number(ends[1])}]" if ends is not None else ""
    return [f"  {row['claim']}", _number(row["value"], row["unit"]), interval, row["goal"] or "", met]


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "–"
    return (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}") + (f" {unit}" if unit else "")


def _memory(part: Mapping[str, Any]) -> str:
    peaks = [f"{gib:.2f} GiB {where}" for where, gib in part["peak_memory_gib"].items()]
    return "peak " + " + ".join(peaks) + ("" if part["peak_is_of_this_part"] else " since the process began")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
