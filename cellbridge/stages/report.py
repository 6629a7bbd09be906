"""`cellbridge report`: an evaluation, and the training runs behind it, as one self-contained HTML page. It renders; it computes nothing."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field

from cellbridge.errors import RunError
from cellbridge.reporting.pages import data_uri, png_bytes, rendered
from cellbridge.runs import RunDir, write_text
from cellbridge.settings import Section

_TEMPLATE = "page.html.j2"
_FORMATS = (2, 3)
"""Of `evaluate`'s metrics.json; 3 has findings and sections."""


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
    page = config.out or RunDir(out or evaluations[0][0]).report
    views = [_evaluation_page(path, metrics, page=page) for path, metrics in evaluations]
    conditions = " · ".join(f"{target['source']} → {target['target']}" for view in views for target in view["targets"])
    html = rendered(
        _TEMPLATE,
        title=config.title or "Translated cells, judged",
        conditions=conditions,
        pages=views,
        trainings=[_training_view(path) for path in trainings],
    )
    write_text(page, html)
    return {"report": str(page), "evaluations": len(evaluations), "training runs": len(trainings)}


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
    if metrics.get("format") not in _FORMATS:
        expected = " or ".join(map(str, _FORMATS))
        raise RunError(
            f"{file}: format {metrics.get('format')!r}, expected {expected}. Run `cellbridge evaluate` again."
        )
    return metrics


def _evaluation_page(path: Path, metrics: Mapping[str, Any], *, page: Path) -> dict[str, Any]:
    """Return an evaluation's view, its pictures inlined, with links to the files that it was made from."""
    from cellbridge.reporting.evaluation import evaluation_view

    try:
        view = evaluation_view(path.name, metrics, inline=lambda file: _figure(path, file))
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{RunDir(path).metrics}: is not what `evaluate` writes ({type(error).__name__}: {error}). Run it again."
        ) from error
    names = [RunDir(path).metrics.name, metrics.get("cells"), "table.txt"]
    files = [path / name for name in names if isinstance(name, str) and (path / name).is_file()]
    links = [{"text": file.name, "href": _relative(file, page)} for file in files]
    return view | {"links": links}


def _relative(file: Path, page: Path) -> str:
    """Return a link from the page to a file, such as "./metrics.json": with the dot no name can pass for a scheme."""
    below = Path(os.path.relpath(file.resolve(), page.resolve().parent)).as_posix()
    return quote(below if below.startswith(".") else f"./{below}")


def _training_view(path: Path) -> dict[str, Any]:
    """Return a training run's curves, its last sample grid and its last logged values."""
    from cellbridge.reporting.training import curves, judged_facts, training_axes, training_facts

    events = list(_events(RunDir(path).events))
    logged, judged = ([event for event in events if event.get("event") == kind] for kind in ("logged", "judged"))
    judged += _published(RunDir(path).metrics)
    axes = training_axes(curves(logged))
    samples = sorted(RunDir(path).samples.glob("*.png"))
    return {
        "name": path.name,
        "facts": training_facts(logged) | judged_facts(judged),
        "curve": None if axes is None else data_uri(png_bytes(axes)),
        "samples": _inline(samples[-1]) if samples else None,
    }


def _published(file: Path) -> list[dict[str, Any]]:
    """Return what held-out cells say of the bridge that was published, which after a round is not the one that `events.jsonl` ends with."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    said = found.get("held_out") if isinstance(found, dict) else None
    return [said] if isinstance(said, dict) else []


def _events(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise RunError(
                f"{file} line {number}: is no JSON. The file was cut or edited; run the training again."
            ) from None


def _figure(run: Path, name: str) -> str:
    """Return a figure of a run; the page may be passed on, so that no other file of this machine goes into it."""
    file = run / name
    if run.resolve() not in file.resolve().parents:
        raise RunError(
            f'{RunDir(run).metrics}: names a figure outside of its run, "{name}". Run `cellbridge evaluate` again.'
        )
    return _inline(file)


def _inline(file: Path) -> str:
    try:
        return data_uri(file.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{file}: is missing. Run `cellbridge evaluate` again.") from None
