"""`cellbridge report`: an evaluation, and the training runs behind it, as one self-contained HTML page. It renders; it computes nothing."""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cellbridge.errors import RunError
from cellbridge.runs import RunDir, write_text
from cellbridge.settings import Section

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

_TEMPLATE = "report.html.j2"
_FORMAT = 3
"""Of `evaluate`'s metrics.json."""
_BARS = (
    ("error", "error per cell", "", 1.0),
    ("error_responders", "… of responders", "", 1.0),
    ("score", "score", "", 1.0),
    ("target_hit", "seen as target", "%", 100.0),
)
_GAP = ("gap_closed", "gap closed", "", 1.0)
"""Columns that are drawn with their interval: key, heading, unit, factor; the gap is the last column of the table."""


class Config(Section):
    """Settings of `report`."""

    runs: tuple[Path, ...] = Field(min_length=1)
    """Runs of `evaluate`, and the training runs whose curves to show."""
    title: str | None = None
    out: Path | None = None
    """The page; by default `report.html` in the first evaluation's directory."""


def run(config: Config, *, out: Path | None = None) -> dict[str, Any]:
    """Render the page.

    Parameters
    ----------
    out : a run directory for the page, in place of the first evaluation's.

    Raises
    ------
    RunError : no run is an evaluation, or a run holds nothing to show.
    """
    evaluations, trainings = _read(config.runs)
    first = evaluations[0][0]
    target = config.out or RunDir(out or first).report

    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    pages = [_evaluation_view(path, metrics) for path, metrics in evaluations]
    conditions = " · ".join(f"{target['source']} → {target['target']}" for page in pages for target in page["targets"])
    html = environment.get_template(_TEMPLATE).render(
        title=config.title or "Translated cells, judged",
        conditions=conditions,
        pages=pages,
        trainings=[_training_view(path) for path in trainings],
    )
    write_text(target, html)
    return {"report": str(target), "evaluations": len(evaluations), "training runs": len(trainings)}


def _read(runs: Sequence[Path]) -> tuple[list[tuple[Path, dict[str, Any]]], list[Path]]:
    """Sort runs into evaluations, with their numbers, and training runs."""
    evaluations, trainings = [], []
    for path in runs:
        run_dir = RunDir(path)
        metrics = _evaluation(run_dir.metrics)
        if metrics is not None:
            evaluations.append((path, metrics))
        elif run_dir.events.is_file():
            trainings.append(path)
        else:
            raise RunError(
                f"{path}: holds no evaluation (metrics.json) and no training log (events.jsonl). Give the --out directory of "
                "`evaluate`, `pretrain`, `finetune` or `train-classifier`."
            )
    if not evaluations:
        raise RunError(
            f"{', '.join(map(str, runs))}: none is an evaluation. Run `cellbridge evaluate` and give its --out."
        )
    return evaluations, trainings


def _evaluation(file: Path) -> dict[str, Any] | None:
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error}). Run `cellbridge evaluate` again.") from None
    if not isinstance(metrics, dict) or metrics.get("kind") != "evaluation":
        return None
    if metrics.get("format") != _FORMAT:
        raise RunError(
            f"{file}: format {metrics.get('format')!r}, expected {_FORMAT}. Run `cellbridge evaluate` again."
        )
    return metrics


def _evaluation_view(path: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    targets = [_target_view(path, target) for target in metrics["targets"]]
    return {
        "path": path.name,
        "targets": targets,
        "summary": _summary([verdict for target in targets for verdict in target["verdicts"]]),
        "classifier": _classifier_view(metrics["classifier"]),
        "metrics": metrics,
    }


def _summary(verdicts: Sequence[Mapping[str, Any]]) -> str:
    held_up = sum(verdict["held_up"] is True for verdict in verdicts)
    in_part = sum(verdict["in_part"] for verdict in verdicts)
    unsettled = sum(verdict["held_up"] is None and not verdict["in_part"] for verdict in verdicts)
    words = [f"{held_up} of {len(verdicts)} translation{'s' if len(verdicts) != 1 else ''} held up"]
    words += [f"{in_part} in part"] if in_part else []
    words += [f"{unsettled} not settled"] if unsettled else []
    return ", ".join(words) + "."


def _target_view(path: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    rows = target["rows"]
    scales = {key: _scale(rows, key) for key, *_ in (*_BARS, _GAP)}
    bars = [bar for bar in _BARS if scales[bar[0]] is not None]
    key, _, unit, factor = _GAP
    view = [
        {
            "name": row["name"],
            "kind": row["kind"],
            "n": row["n"],
            "frechet": _text(row.get("frechet"), digits=2),
            "kernel": _text(row.get("kernel"), factor=1e3, digits=0),
            "relative": _text(row.get("hit_relative"), digits=2),
            "bars": [_bar(row.get(name), scales[name], factor=by, unit=of) for name, _, of, by in bars],
            "gap": _bar(row.get(key), scales[key], factor=factor, unit=unit),
        }
        for row in rows
    ]
    return {
        **target,
        "rows": view,
        "headings": [heading for _, heading, *_ in bars],
        "n_distance": next((row["n_distance"] for row in rows if "n_distance" in row), 0),
        "others": _other_extractors(rows),
        "noise": _noise_view(target["noise"]),
        "noise_why": target["noise"].get("not_computed", ""),
        "nuclei": _nuclei_view(target),
        "pictures": [figure | {"data": _inline(path / figure["file"])} for figure in target["figures"]],
    }


def _scale(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float] | None:
    """Return the ends of a column's axis, 0 and 1 (or the largest value) among them; None where no row has a value."""
    found = [row[key] for row in rows if row.get(key, {}).get("value") is not None]
    if not found:
        return None
    values = [part for one in found for part in (one["value"], one["low"], one["high"]) if part is not None]
    low, high = min(0.0, *values), max(values)
    if key in ("target_hit", "score", "gap_closed"):
        high = max(1.0, high)
    return max(low, -1.0), min(high, 2.5) if key in ("score", "gap_closed") else high or 1.0


def _bar(
    found: Mapping[str, Any] | None, scale: tuple[float, float] | None, *, factor: float, unit: str
) -> dict[str, Any]:
    """Return a cell's text, and its point and interval as percent of the axis."""
    if found is None or found.get("value") is None or scale is None:
        return {"text": "–", "why": (found or {}).get("not_computed", "does not apply"), "drawn": False}

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - scale[0]) / (scale[1] - scale[0]))), 2)

    digits = 0 if unit == "%" else 3 if scale[1] < 1 else 2
    low, high = (found["value"] if found[end] is None else found[end] for end in ("low", "high"))
    text = _text(found, digits=digits, factor=factor)
    return {
        "text": f"{text['value']} {unit}".rstrip(),
        "interval": text["interval"],
        "drawn": True,
        "point": place(found["value"]),
        "low": place(low),
        "width": max(0.4, place(high) - place(low)),
        "zero": place(0.0) if scale[0] < 0 else None,
    }


def _text(found: Mapping[str, Any] | None, *, digits: int, factor: float = 1.0) -> dict[str, str]:
    if found is None or found.get("value") is None:
        return {"value": "–", "interval": "", "why": (found or {}).get("not_computed", "does not apply")}
    value, low, high = (
        None if found[key] is None else f"{factor * found[key]:.{digits}f}".replace("-", "−")
        for key in ("value", "low", "high")
    )
    return {"value": value or "", "interval": "" if low is None else f"{low} to {high}", "why": ""}


def _other_extractors(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row.get("others", {})))
    return [
        {
            "name": name,
            "rows": [
                {
                    "name": row["name"],
                    "frechet": _text(row["others"][name]["frechet"], digits=2),
                    "kernel": _text(row["others"][name]["kernel"], factor=1e3, digits=2),
                    "gap": _text(row["others"][name]["gap_closed"], digits=2),
                }
                for row in rows
            ],
        }
        for name in names
    ]


def _noise_view(noise: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, per model, each test of x_T beside the same test of fresh noise."""
    fresh = {test["name"]: test for test in noise.get("fresh", [])}
    return [
        {
            "model": model,
            "failed": [test["name"] for test in tests if test["state"] == "outside"],
            "tests": [
                {
                    **test,
                    "effect_text": _text({**test, "value": test["effect"]}, digits=3),
                    "gate_text": "described only"
                    if test["gate"] is None
                    else f"{test['gate'][0]:g} to {test['gate'][1]:g}",
                    "fresh_effect": _text(
                        {"value": fresh[test["name"]]["effect"], "low": None, "high": None}, digits=3
                    )["value"],
                    "fresh_p": _p_value(fresh[test["name"]]["p_holm"]),
                    "p_text": _p_value(test["p_holm"]),
                }
                for test in tests
            ],
        }
        for model, tests in noise.get("models", {}).items()
    ]


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _nuclei_view(target: Mapping[str, Any]) -> list[str]:
    names = {row["key"]: row["name"] for row in target["rows"]}
    return [
        f"{names.get(key, key)} against {'its source' if other == 'source' else 'the counterfactual'}: median shift "
        f"{found['shift_px']:.1f} px, median overlap {found['iou']:.2f} (n = {found['n']})"
        for key, compared in target["nuclei"].items()
        if isinstance(compared, dict)
        for other, found in compared.items()
        if "shift_px" in found
    ]


def _classifier_view(classifier: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    confusion = classifier.get("confusion", [])
    for index, name in enumerate(classifier["conditions"]):
        entry = classifier.get("per_condition", {}).get(name)
        if entry is None:
            continue
        total = max(1, sum(confusion[index]))
        rows.append(
            {
                "name": name,
                "n": entry["n"],
                "recall": _text(entry["recall"], factor=100, digits=0),
                "auc": _text(entry.get("auc"), digits=3),
                "held_out": entry["held_out"],
                "confusion": [{"count": count, "share": round(count / total, 3)} for count in confusion[index]],
            }
        )
    return {"rows": rows, "balanced": _text(classifier["balanced_accuracy"], factor=100, digits=1), **classifier}


def _training_view(path: Path) -> dict[str, Any]:
    """Return a training run's curves, its last sample grid and its last logged values."""
    logged = [event for event in _events(RunDir(path).events) if event.get("event") == "logged"]
    axes = _training_axes(_curves(logged))
    samples = sorted(RunDir(path).samples.glob("*.png"))
    last = logged[-1] if logged else {}
    facts = {
        "steps": last.get("step"),
        "images per second": last.get("images_per_second"),
        "peak memory, GiB": last.get("memory_gib"),
        "share of the device's peak (MFU)": last.get("mfu"),
    }
    return {
        "name": path.name,
        "facts": {key: f"{value:.4g}" for key, value in facts.items() if value is not None},
        "curve": None if axes is None else _png(axes),
        "samples": _inline(samples[-1]) if samples else None,
    }


def _curves(logged: Sequence[Mapping[str, Any]]) -> dict[str, tuple["np.ndarray", "np.ndarray"]]:
    """Return the steps and values of each name that was logged as a number; a value that was not finite is left out."""
    import numpy as np

    found: dict[str, list[tuple[int, float]]] = {}
    for event in logged:
        for key, value in event.items():
            if key != "step" and isinstance(value, int | float):
                found.setdefault(key, []).append((event["step"], value))
    arrays = {name: np.array(points, dtype=float) for name, points in found.items()}
    return {name: (points[:, 0], points[:, 1]) for name, points in arrays.items()}


def _training_axes(curves: Mapping[str, tuple["np.ndarray", "np.ndarray"]]) -> "Axes | None":
    """Draw, one above another, what was logged of: losses, the logarithm of the loss per timestep decile, the gradient's norm."""
    from cellbridge.plots.canvas import SERIES, new_column
    from cellbridge.plots.curves import band_curves, loss_curve

    losses = [name for name in curves if re.fullmatch(r"loss(/(?!t\d).+)?", name)]
    bands = sorted(name for name in curves if re.fullmatch(r"log_loss/t\d", name))
    norms = [name for name in ("gradient_norm",) if name in curves]
    if not losses:
        return None
    axes = new_column(5.2, [2.3, *([2.5] if bands else []), *([1.5] if norms else [])])
    for index, name in enumerate(losses):
        loss_curve(*curves[name], label=name, colour=SERIES[index % len(SERIES)], ax=axes[0])
    if bands:
        labels = [f"{int(name[-1]) / 10:.1f}–{(int(name[-1]) + 1) / 10:.1f}" for name in bands]
        band_curves([curves[name] for name in bands], labels=labels, title="t / T", ylabel="mean log loss", ax=axes[1])
    for name in norms:
        loss_curve(*curves[name], label="gradient norm", colour=SERIES[2], ylabel="norm", ax=axes[-1])
    for upper in axes[:-1]:
        upper.set_xlabel("")
    return axes[0]


def _events(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise RunError(
                f"{file} line {number}: is no JSON. The file was cut or edited; run the training again."
            ) from None


def _png(axes: "Axes") -> str:
    buffer = BytesIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="png", dpi=170, bbox_inches="tight", pad_inches=0.06)
    return _data_uri(buffer.getvalue())


def _inline(file: Path) -> str:
    try:
        return _data_uri(file.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{file}: is missing. Run `cellbridge evaluate` again.") from None


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
