"""The table of an evaluation as text, for a terminal."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

_COLUMNS = (
    ("error", "error", 1.0, 3),
    ("responders", "error_responders", 1.0, 3),
    ("score", "score", 1.0, 2),
    ("hit %", "target_hit", 100.0, 0),
    ("hit/real", "hit_relative", 1.0, 2),
    ("FD", "frechet", 1.0, 2),
    ("KID×1e3", "kernel", 1e3, 0),
    ("gap closed", "gap_closed", 1.0, 2),
)
_MEANINGS = (
    (
        "error",
        "error",
        "root mean square over the cell, in standard deviations of each stain, against the counterfactual",
    ),
    ("score", "score", "0 is the best possible, 1 is copying"),
    ("hit %", "target_hit", "share that the classifier takes for the target"),
    ("hit/real", "hit_relative", "that over the share of real cells"),
    ("FD, KID", "frechet", "Fréchet and kernel distance to real cells, lower is nearer; floor: between real cells"),
    ("gap closed", "gap_closed", "1 is as near as real cells, 0 as far as the source"),
)
_WIDTH = 120
_WITH_INTERVAL = {"target_hit", "error", "score", "gap_closed"}


def text_table(metrics: Mapping[str, Any]) -> str:
    """Return the rows of every target of `metrics.json` as aligned text, verdicts underneath."""
    parts = []
    for target in metrics["targets"]:
        truth = f", {target['n_responders']} responders" if target["n_truth"] else ""
        parts.append(
            f"{target['source']} → {target['target']}: {target['n']} cells{_places(target)}{truth}; intervals over {target['resampled']}"
        )
        columns = [
            column
            for column in _COLUMNS
            if any(row.get(column[1], {}).get("value") is not None for row in target["rows"])
        ]
        parts.append(
            _aligned([["", *(title for title, *_ in columns)], *(_cells(row, columns) for row in target["rows"])])
        )
        parts += [
            _wrapped(f"{verdict['model']}: {verdict['label'].upper()}. {verdict['text']}")
            for verdict in target["verdicts"]
        ]
        parts += [_wrapped(note) for note in [*_left_out(target), *target["notes"]]]
        parts.append("")
    parts += [_wrapped(note, indent="") for note in metrics.get("notes", [])]
    parts.append(_wrapped(_judges(metrics), indent=""))
    parts.append(_wrapped(_legend(metrics["targets"]), indent=""))
    return "\n".join(parts)


def _judges(metrics: Mapping[str, Any]) -> str:
    """Say how good the classifier is on real cells, and which features were used."""
    accuracy = metrics["classifier"]["balanced_accuracy"]
    shown = f"balanced accuracy {_number(accuracy, scale=100, digits=0, interval=True)} %"
    if accuracy.get("value") is None:
        shown = f"not computed ({accuracy.get('not_computed', 'no cells')})"
    names = ", ".join(extractor["name"] for extractor in metrics["extractors"])
    return f"Classifier on real held-out cells: {shown}. Features: {names}."


def _legend(targets: Sequence[Mapping[str, Any]]) -> str:
    """Explain the columns that are shown."""
    rows = [row for target in targets for row in target["rows"]]
    found = {key for _, key, *_ in _COLUMNS if any(row.get(key, {}).get("value") is not None for row in rows)}
    return (
        "; ".join(f"{title}: {words}" for title, key, words in _MEANINGS if key in found)
        or "no number could be computed"
    )


def _places(target: Mapping[str, Any]) -> str:
    """Say how many wells and sites the cells come from; nothing where that is not known."""
    if not target["n_wells"]:
        return ""
    wells, sites = (_counted(target[f"n_{unit}s"], unit) for unit in ("well", "site"))
    return f" of {wells}, {sites}"


def _left_out(target: Mapping[str, Any]) -> list[str]:
    """Say which translated cells are not scored, and why."""
    reasons = (
        ("n_lost", "removed by the compound, so without a counterfactual"),
        ("n_unmatched", "not known to the truth (no object at their place, or their field is not shown)"),
    )
    return [
        f"{_counted(target[key], 'translated cell')} left out: {why}." for key, why in reasons if target.get(key, 0)
    ]


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'}"


def _wrapped(text: str, *, indent: str = "  ") -> str:
    return fill(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent * 2,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cells(row: Mapping[str, Any], columns: Sequence[tuple[str, str, float, int]]) -> list[str]:
    name = f"  {row['name']}" if row["kind"] != "model" else f"▸ {row['name']}"
    return [name] + [
        _number(row.get(key), scale=scale, digits=digits, interval=key in _WITH_INTERVAL)
        for _, key, scale, digits in columns
    ]


def _number(found: Mapping[str, Any] | None, *, scale: float, digits: int, interval: bool) -> str:
    if found is None or found.get("value") is None:
        return "–"
    text = f"{scale * found['value']:.{digits}f}"
    if not interval or found.get("low") is None:
        return text
    return f"{text} [{scale * found['low']:.{digits}f}, {scale * found['high']:.{digits}f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
