"""How much of the cell is kept against how much of the condition is reached: the bridge over its volatility, SDEdit over its strength.

    python analysis/strength_sweep.py --run runs/demo-seed1 --out DIR            the same command again continues
    python analysis/strength_sweep.py --run runs/demo-seed1 --out DIR --table    the Markdown table and the figure of what is there

--run is what `make demo` or `make study` wrote: store, base, adapters, bridge, classifier and, of synthetic cells, the truth. The bridge has to
be trained over a range of volatilities (`bridge.sigma_rel=[0.05, 0.4]`); strengths outside of it are left out. Every setting translates the
same held-out cells, and one `evaluate` judges all of them beside the null rows.

kept: correlation of outputs and sources, each less the mean of its plate; 1 where one change is made of every cell, 0 where cells are exchanged.
reached: share of outputs that the classifier takes for the condition.
"""

import argparse
import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from counted_commands import Failed, call, options
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

BRIDGE = (0.05, 0.1, 0.2, 0.3, 0.4)
"""sigma_rel: volatility over the standard deviation of pixels."""
SDEDIT = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
"""Share of the way to noise."""
FAMILIES = (("bridge", "o", "C0"), ("SDEdit", "s", "C1"), ("DDIB", "D", "C2"))
"""Name, marker and colour."""
NULL_MARKS = ("x", "+", "1", "2", "3", "4", "|", "_", "*", "P", "X", "v")
DIFFUSION = ("--set", "solver.steps=13", "--set", "solver.guidance_scale=1.5")


class Setting(NamedTuple):
    """A way to translate: its family, its strength, and what `translate` is told; nothing is said of DDIB's strength."""

    family: str
    strength: float | None
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """What Metadata_Model says."""
        return self.family if self.strength is None else f"{self.family} {self.strength:g}"


class Point(NamedTuple):
    """One row of one target."""

    name: str
    family: str
    strength: float | None
    kept: float
    reached: float
    error: float | None


def settings(run: Path) -> list[Setting]:
    """Return every setting that the run has the models for."""
    bridge = run / "bridge"
    low, high = _range(bridge)
    adapters = options("--adapter", sorted((run / "adapters").iterdir()))
    diffusion = ("--base", str(run / "base"), *adapters, *DIFFUSION)
    over_bridge = ("--method", "bridge", "--bridge", str(bridge))
    return [
        *(Setting("bridge", s, (*over_bridge, "--strength", str(s))) for s in BRIDGE if low <= s <= high),
        *(Setting("SDEdit", s, ("--method", "sdedit", "--strength", str(s), *diffusion)) for s in SDEDIT),
        Setting("DDIB", None, ("--method", "ddib", *diffusion)),
    ]


def _range(bridge: Path) -> tuple[float, float]:
    """Return the volatilities that a bridge was trained over, a little widened for rounding."""
    from cellbridge.assembly.bridges import load_bridge

    low, high = load_bridge(bridge, device="cpu").sigma_range
    return 0.999 * low, 1.001 * high


def translate(run: Path, out: Path, setting: Setting, *, cells: int) -> Path:
    """Translate the held-out cells, if that was not done."""
    store = out / f"{setting.name.lower().replace(' ', '_')}.zarr"
    if not store.exists():
        told = ["--store", str(run / "store.zarr"), "--n", str(cells), "--seed", "0", "--device", "cpu"]
        command = ["translate", *told, *setting.command, "--set", f"name={setting.name}", "--out", str(store)]
        call([command], out / "log.txt")
    return store


def evaluate(run: Path, out: Path, stores: list[Path]) -> None:
    """Judge all settings in one table."""
    given = ["--reference", str(run / "store.zarr"), "--classifier", str(run / "classifier")]
    truth = run / "truth.zarr"
    given += ["--truth", str(truth)] if truth.exists() else []
    told = ["--set", "figures=false", "--set", "resamples=300", "--out", str(out / "evaluation")]
    call([["evaluate", *options("--translated", stores), *given, *told]], out / "log.txt")


def points(target: Mapping[str, Any], found: list[Setting]) -> list[Point]:
    """Return the rows of a target: the settings in the order of their strength, then the null rows."""
    by_key = {row["key"]: row for row in target["rows"]}
    identity = next(part for part in target["sections"] if part["key"] == "identity")
    of_rows = {row["key"]: row.get("own_variation", {}).get("value") for row in identity["rows"]}
    named = {f"model:{setting.name}": (setting.name, setting.family, setting.strength) for setting in found}
    shared = [row for row in target["rows"] if row["kind"] in ("null", "bound") and "model:" not in row["key"]]
    named |= {row["key"]: (row["name"], "null", None) for row in shared}
    rows = []
    for key, (name, family, strength) in named.items():
        reached = by_key.get(key, {}).get("target_hit", {}).get("value")
        kept = of_rows.get(key)
        if kept is not None and reached is not None:
            error = by_key[key].get("score", {}).get("value")
            rows.append(Point(name, family, strength, kept, reached, error))
    return rows


def markdown(target: str, rows: list[Point]) -> str:
    """Return the table of one target."""
    lines = [f"| {target} | kept | hit % | error, 1 = copying |", "|---|---|---|---|"]
    for row in rows:
        error = "–" if row.error is None else f"{row.error:.3f}"
        lines.append(f"| {row.name} | {row.kept:.3f} | {100 * row.reached:.0f} | {error} |")
    return "\n".join(lines)


def drawn(by_target: Mapping[str, list[Point]]) -> Figure:
    """Draw a panel for each target: a line for each family, its strengths beside its points, and a grey mark for each null row."""
    figure = Figure(figsize=(max(4.4 * len(by_target), 6.0), 4.6), layout="constrained")
    nulls = dict.fromkeys(row.name for rows in by_target.values() for row in rows if row.family == "null")
    marks = dict(zip(nulls, cycle(NULL_MARKS), strict=False))
    lines: dict[str, Line2D] = {}
    panels = figure.subplots(1, len(by_target), squeeze=False, sharey=True)[0]
    for axes, (target, rows) in zip(panels, by_target.items(), strict=True):
        lines |= _panel(axes, rows, marks)
        axes.set_title(target, fontsize=9)
    figure.axes[0].set_ylabel("reached: seen as the target, %")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return figure


def _panel(axes: Axes, rows: list[Point], marks: Mapping[str, str]) -> dict[str, Line2D]:
    """Draw a target's rows, and return their lines by name for the legend: beside crowded marks names would overlap.

    Parameters
    ----------
    marks : of the null rows.
    """
    lines: dict[str, Line2D] = {}
    for family, marker, colour in FAMILIES:
        of_family = [row for row in rows if row.family == family]
        if of_family:
            places = [row.kept for row in of_family], [100 * row.reached for row in of_family]
            (lines[family],) = axes.plot(*places, marker=marker, markersize=4, color=colour)
        for number, row in enumerate(of_family):
            _say_strength(axes, row, above=number % 2 == 0, colour=colour)
    for row in (row for row in rows if row.family == "null"):
        (lines[row.name],) = axes.plot([row.kept], [100 * row.reached], marks[row.name], color="0.35", markersize=7)
    axes.set_xlabel("kept: correlation with the cell's own variation")
    axes.margins(0.08)
    axes.spines[["top", "right"]].set_visible(False)
    return lines


def _say_strength(axes: Axes, row: Point, *, above: bool, colour: str) -> None:
    if row.strength is not None:
        text: dict[str, Any] = {"fontsize": 6, "color": colour, "textcoords": "offset points"}
        place: dict[str, Any] = {"xytext": (3, 4), "ha": "left"} if above else {"xytext": (-4, -9), "ha": "right"}
        axes.annotate(f"{row.strength:g}", (row.kept, 100 * row.reached), **text, **place)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument(
        "--table", action="store_true", help="print the table and draw the figure of what is there, and do nothing else"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    found = settings(asked.run)
    if not asked.table:
        try:
            stores = [translate(asked.run, asked.out, setting, cells=asked.cells) for setting in found]
            evaluate(asked.run, asked.out, stores)
        except Failed as error:
            raise SystemExit(str(error)) from None
    metrics = json.loads((asked.out / "evaluation/metrics.json").read_text(encoding="utf-8"))
    by_target = {target["target"]: points(target, found) for target in metrics["targets"]}
    print("\n\n".join(markdown(target, rows) for target, rows in by_target.items()))
    drawn(by_target).savefig(asked.out / "strength_sweep.png", dpi=150)


if __name__ == "__main__":
    main()
