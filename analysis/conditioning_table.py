"""What `conditioning_ablation.py` found, as a Markdown table and a figure."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from seed_means import Entry, shown
from seed_means import entry as mean_entry

DOSES = "taxol@1 | taxol@0.1"
"""The pair of conditions that is one compound, whose effects should be alike."""


Table = dict[str, dict[str, Entry]]
"""Row → column → entry; a row leaves out what cannot be computed."""


def summary(out: Path, schemes: Iterable[str]) -> Table:
    """Read the results that are there, in the order of `schemes`; the rows that need no model come last."""
    results = [json.loads(file.read_text()) for file in sorted((out / "results").glob("*.json"))]
    table: Table = {}
    for scheme in schemes:
        rows = [_columns(result) for result in results if result["scheme"] == scheme]
        if rows:
            table[scheme] = {column: mean_entry([each[column] for each in rows]) for column in rows[0]}
    for name, found in json.loads((out / "bounds.json").read_text()).items():
        table[name] = {column: Entry(value, np.nan, 0) for column, value in _columns(found).items()}
    return table


def markdown(table: Table) -> str:
    """Return the table, each number with its standard error over seeds; hits in per cent."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [f"| scheme | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name, row in table.items():
        seeds = next(iter(row.values())).seeds or "–"
        shown = (_text(column, row[column]) if column in row else "–" for column in columns)
        lines.append(f"| {name} | {seeds} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw(table: Table, file: Path) -> None:
    """Draw mean hits and errors of the schemes, with standard errors over seeds, and what bounds them as lines."""
    from matplotlib import pyplot

    schemes = [name for name, row in table.items() if next(iter(row.values())).seeds][::-1]
    size = (8, 0.28 * len(schemes) + 1.2)
    figure, both = pyplot.subplots(1, 2, sharey=True, figsize=size, layout="constrained")
    shown = (("hit, mean", "real cells", "target hits"), ("error", "best possible", "error (1 is copying)"))
    for axes, (column, bound, words) in zip(both, shown, strict=True):
        for suffix, marker in (("", "o"), (", guided", "s")):
            entries = [table[name][column + suffix] for name in schemes]
            errors = np.nan_to_num([entry.error for entry in entries])
            values = [entry.value for entry in entries]
            axes.errorbar(values, schemes, xerr=errors, fmt=marker, markersize=4, label=suffix[2:] or "not guided")
        axes.axvline(table[bound][column].value, color="grey", linestyle="--", linewidth=1, label=bound)
        axes.set_xlabel(words)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].legend(fontsize="small", frameon=False)
    figure.savefig(file, dpi=120)


def _columns(found: Mapping[str, Any]) -> dict[str, float]:
    columns = {"hit, mean": _mean(found["hits"])}
    columns |= {f"hit {name}": share for name, share in found["hits"].items()}
    cosine = found.get("cosine", {DOSES: None})
    if cosine[DOSES] is not None:
        others = {pair: value for pair, value in cosine.items() if pair != DOSES}
        columns |= {"cosine, two doses": cosine[DOSES], "cosine, other pairs": _mean(others)}
    if "norm" in found:
        columns |= {"norm / real": _mean(found["norm"]), "error": _mean(found["error"])}
    if "loss" in found:
        guided = found["guided"]
        columns |= {"hit, mean, guided": _mean(guided["hits"]), "error, guided": _mean(guided["error"])}
        columns |= {"loss": found["loss"], "hidden / loss": found["hidden"] / found["loss"]}
        columns |= {"CPU-s": found["cpu_seconds"], "parameters": found["parameters"]}
    return columns


def _mean(by_name: Mapping[str, float]) -> float:
    return float(np.mean(list(by_name.values())))


def _text(column: str, entry: Entry) -> str:
    scale, digits = (100, 0) if column.startswith("hit") else (1, 3)
    if column in ("CPU-s", "parameters"):
        digits = 0
    alone = entry._replace(error=np.nan) if column == "parameters" else entry
    return shown(alone, digits=digits, factor=scale)
