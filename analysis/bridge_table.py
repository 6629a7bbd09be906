"""What `bridge_comparison.py` found: metrics of an evaluation reduced to a result, tables in Markdown, and what the kill rule says."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from seed_means import Entry, entry, shown

Result = Mapping[str, Any]
"""One arm × seed: `arm`, `seed`, `cpu_seconds`, `rows` (target → row → column → value), `swaps`."""


class Column(NamedTuple):
    """A column of the tables: its heading, its digits and what values are multiplied by."""

    heading: str
    digits: int
    factor: float = 1.0


COLUMNS = {
    "score": Column("error, 1 = copying", 3),
    "score_responders": Column("… of responders", 3),
    "target_hit": Column("hit %", 0, 100.0),
    "top_1": Column("own source nearest %", 0, 100.0),
    "own_variation": Column("own variation kept", 3),
    "frechet": Column("FD", 1),
    "gap_closed": Column("gap closed", 2),
    "unchanged": Column("DMSO → DMSO", 3),
}
"""Error: (model - best possible) / (copy - best possible) of root mean squares over cells. Own variation: correlation of outputs and sources,
each less the mean of its plate."""
_OF_ROW = ("error", "score", "score_responders", "target_hit", "hit_relative", "frechet", "kernel", "gap_closed")
_OF_IDENTITY = ("top_1", "auc", "cost", "own_variation", "unchanged")
_SWAP = ("cell_cosine", "cosine", "real_cosine", "contrast")
_MODEL = "model:"


def reduced(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table needs of metrics.json: of the model, of its own null rows, and of the null rows that all arms share.

    Values that could not be computed are left out. A row of the model itself is "model", its mean change for every cell "template", its
    outputs for other targets "shuffled", and so on.
    """
    rows: dict[str, dict[str, dict[str, float]]] = {}
    names: dict[str, str] = {}
    for target in metrics["targets"]:
        identity = next((part for part in target["sections"] if part["key"] == "identity"), {})
        of_identity = {row["key"]: row for row in identity.get("rows", [])}
        rows[target["target"]] = {}
        for row in target["rows"]:
            key = _shared_key(row["key"])
            names[key] = row["name"]
            found = _values(row, _OF_ROW) | _values(of_identity.get(row["key"], {}), _OF_IDENTITY)
            rows[target["target"]][key] = found
    swaps = next((part for part in metrics["sections"] if part["key"] == "swap"), {})
    of_pairs = {row["name"].partition(", ")[2]: _values(row, _SWAP) for row in swaps.get("rows", [])}
    verdicts_ = {
        target["target"]: [verdict["label"] for verdict in target["verdicts"]] for target in metrics["targets"]
    }
    return {"rows": rows, "names": names, "swaps": of_pairs, "verdicts": verdicts_}


def results(out: Path, arms: Iterable[str]) -> list[Result]:
    """Read the results that are there, in the order of the arms and then of the seeds."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((out / "results").glob("*.json"))]
    order = {name: index for index, name in enumerate(arms)}
    return sorted(found, key=lambda result: (order.get(result["arm"], len(order)), result["seed"]))


def markdown(found: Sequence[Result]) -> list[str]:
    """Return a table of means over targets, then one for every target, and the drug swap; numbers are means ± standard errors over seeds."""
    if not found:
        return ["No result is there yet."]
    targets = list(found[0]["rows"])
    tables = [f"Means over {', '.join(targets)}.\n\n{_table(found, targets)}"]
    if len(targets) > 1:
        tables += [f"{target}\n\n{_table(found, [target])}" for target in targets]
    return [*tables, *_swap_table(found)]


def verdicts(found: Sequence[Result]) -> list[str]:
    """Say what the rules make of the errors: OT stays unless it loses to S0 by more than a standard error, IMF only if it gains as much."""
    lines = []
    for first, second, rule in (("S0", "S1", "stays unless it loses"), ("S1", "S2", "stays only if it gains")):
        gained = gain(found, first, second)
        if gained is None or np.isnan(gained.error):
            lines.append(f"{second} against {first}: two seeds or more of both are needed.")
            continue
        stays = gained.value >= -gained.error if rule.endswith("loses") else gained.value > gained.error
        said = f"{gained.value:+.3f} ± {gained.error:.3f} of the error, {gained.seeds} seeds"
        lines.append(f"{second} against {first}: gains {said}; {rule} by a standard error: {'on' if stays else 'off'}.")
    return ["\n".join(lines)]


def gain(found: Sequence[Result], first: str, second: str) -> Entry | None:
    """Return how much lower the second arm's error is than the first's, seed by seed, mean over targets; None where no seed has both.

    The error is the score where the truth is known, else the share of the gap that is left.
    """
    of_arm: dict[str, dict[int, float]] = {first: {}, second: {}}
    for result in found:
        if result["arm"] in of_arm:
            value = _loss(result)
            if value is not None:
                of_arm[result["arm"]][result["seed"]] = value
    seeds = sorted(of_arm[first].keys() & of_arm[second].keys())
    return entry([of_arm[first][seed] - of_arm[second][seed] for seed in seeds]) if seeds else None


def _loss(result: Result) -> float | None:
    models = [rows["model"] for rows in result["rows"].values()]
    if all("score" in model for model in models):
        return float(np.mean([model["score"] for model in models]))
    if all("gap_closed" in model for model in models):
        return float(np.mean([1 - model["gap_closed"] for model in models]))
    return None


def _shared_key(key: str) -> str:
    """Return a row's key without the model's name."""
    kind, _, _ = key.partition(_MODEL)
    return key if _MODEL not in key else (kind.rstrip(":") or "model")


def _values(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, float]:
    found = {column: row.get(column) for column in columns}
    return {
        column: float(value["value"])
        for column, value in found.items()
        if isinstance(value, Mapping) and value.get("value") is not None
    }


def _table(found: Sequence[Result], targets: Sequence[str]) -> str:
    """Return arms, each arm's mean change, and the null rows and bounds that all arms share, of which the first result speaks."""
    by_arm: dict[str, list[Result]] = {}
    for result in found:
        by_arm.setdefault(result["arm"], []).append(result)
    rows: list[tuple[str, str, dict[str, Entry], list[float]]] = []
    for name, of_arm in by_arm.items():
        entries = _entries(of_arm, targets, "model")
        rows.append((name, str(len(of_arm)), entries, [result["cpu_seconds"] for result in of_arm]))
    for name, of_arm in by_arm.items():
        rows.append((f"mean change of {name}, for every cell", "", _entries(of_arm, targets, "template"), []))
    first = found[0]
    own = {"model", "template", "imitation", "shuffled", "control"}
    for key in first["rows"][targets[0]]:
        if key not in own:
            words = first["names"][key] if key != "real" else "real cells"
            rows.append((words, "", _entries([first], targets, key), []))
    columns = [key for key in COLUMNS if any(key in entries for _, _, entries, _ in rows)]
    lines = [f"| arm | seeds | {' | '.join(COLUMNS[key].heading for key in columns)} | CPU-s |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for name, seeds, entries, seconds in rows:
        cells = [_cell(entries.get(key), COLUMNS[key]) for key in columns]
        spent = f"{np.mean(seconds):.0f}" if seconds else "–"
        lines.append(f"| {name} | {seeds or '–'} | {' | '.join(cells)} | {spent} |")
    return "\n".join(lines)


def _entries(of_arm: Sequence[Result], targets: Sequence[str], key: str) -> dict[str, Entry]:
    """Return the means over seeds of a row's means over targets; a column that a target lacks is left out."""
    columns = {}
    for column in COLUMNS:
        values = [[result["rows"][target].get(key, {}).get(column) for target in targets] for result in of_arm]
        if all(value is not None for of_seed in values for value in of_seed):
            columns[column] = entry([float(np.mean(of_seed)) for of_seed in values])
    return columns


def _cell(found: Entry | None, column: Column) -> str:
    return "–" if found is None else shown(found, digits=column.digits, factor=column.factor)


def _swap_table(found: Sequence[Result]) -> list[str]:
    """Return the drug swap: how alike what two conditions do to the same cells is, beside real cells; means over pairs, then over seeds."""
    by_arm: dict[str, list[Result]] = {}
    for result in found:
        if result["swaps"]:
            by_arm.setdefault(result["arm"], []).append(result)
    if not by_arm:
        return []
    headings = ("cosine, cell by cell", "cosine of means", "of real cells", "real difference kept")
    lines = [f"| drug swap | seeds | {' | '.join(headings)} |", "|---" * (len(headings) + 2) + "|"]
    for name, of_arm in by_arm.items():
        cells = []
        for column in _SWAP:
            values = [[pair[column] for pair in result["swaps"].values() if column in pair] for result in of_arm]
            usable = [float(np.mean(of_seed)) for of_seed in values if of_seed]
            cells.append(shown(entry(usable), digits=2) if len(usable) == len(of_arm) else "–")
        lines.append(f"| {name} | {len(of_arm)} | {' | '.join(cells)} |")
    return ["\n".join(lines)]
