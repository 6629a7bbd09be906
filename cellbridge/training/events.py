"""What training tells, and where it is shown: events.jsonl, TensorBoard, and one progress bar on standard error."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cellbridge.errors import RunError
from cellbridge.progress import Bar, bar
from cellbridge.runs import RunDir, write_text


@dataclass(frozen=True)
class Started:
    """Training begins after `step` steps, from a checkpoint if there is one."""

    step: int
    checkpoint: Path | None = None
    warnings: tuple[str, ...] = ()
    main_process: bool = True
    """False in all but one of several processes: only that one writes and shows."""


@dataclass(frozen=True)
class Logged:
    """Means since the last log step: loss, gradient_norm, monitors; learning_rate, seconds_per_step, data_wait, memory_gib."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Saved:
    """A checkpoint is published and verified."""

    step: int
    path: Path


@dataclass(frozen=True)
class SampleDue:
    """Time to look at what the averaged weights do; the tensors change with the next step."""

    step: int
    ema: dict[str, Tensor]


@dataclass(frozen=True)
class Finished:
    """All steps are done and saved."""

    step: int
    ema: dict[str, Tensor]


Event = Started | Logged | Saved | SampleDue | Finished
OnSample = Callable[[int, dict[str, Tensor]], None]


def show(
    events: Iterator[Event],
    *,
    run: RunDir,
    description: str,
    total: int,
    images_per_step: int,
    on_start: Callable[[], object] | None = None,
    on_sample: OnSample | None = None,
) -> Finished:
    """Drive a training to its end, writing and showing what it tells.

    `events.jsonl` gets one line per event; on a resume the lines after the resumed step go, so that no loss stands there twice.
    TensorBoard gets every value. Names that begin with `loss` are also given as natural logarithms, under `log_loss…`.

    Parameters
    ----------
    total : steps of the whole training.
    images_per_step : the global batch, for images/s.
    on_start : called once the run is this process's own and what it resumes has been found to fit: the time to write its
        configuration, which a refused command must leave as it is.
    on_sample : (step, EMA weights by name) → None; called at each sample step and at the end.

    Returns
    -------
    The last event, with the averaged weights.
    """
    with ExitStack() as stack:
        stack.callback(getattr(events, "close", lambda: None))  # an error below must not leave the run locked
        journal: _Journal | None = None
        shown: Bar | None = None
        done = 0
        for event in events:
            if isinstance(event, Started) and event.main_process:
                if on_start is not None:
                    on_start()
                journal = stack.enter_context(_Journal.opened(run, after_step=event.step))
                for text in event.warnings:
                    sys.stderr.write(f"WARNING: {text}\n")
                shown = stack.enter_context(bar(description, total=total, unit="steps"))
                shown.start_at(event.step)
                done = event.step
            if isinstance(event, Logged):
                values = with_logarithms(event.values)
                values["images_per_second"] = images_per_step / values.pop("seconds_per_step")
                if shown is not None:
                    figures = f"loss {values['loss']:.4g} · peak {values['memory_gib']:.2f} GiB"
                    shown.advance(event.step - done, rate_per_unit=images_per_step, rate_unit="images", detail=figures)
                done = event.step
                event = Logged(event.step, values)
            if journal is not None:
                journal.write(event)
            if isinstance(event, SampleDue | Finished) and on_sample is not None and journal is not None:
                on_sample(event.step, event.ema)
            if isinstance(event, Finished):
                return event
    raise RunError(f"{run.path}: training ended without finishing. This is a fault of cellbridge; please report it.")


def with_logarithms(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values and, after each positive one whose name begins with `loss`, its natural logarithm as `log_loss…`."""
    result: dict[str, float] = {}
    for name, value in values.items():
        result[name] = value
        if name.startswith("loss") and value > 0:
            result[f"log_{name}"] = math.log(value)
    return result


def truncate(path: Path, *, after_step: int) -> None:
    """Drop from an events file every line after a step, a line that was cut short, and an earlier end."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (step := _step_of(line)) is not None and step <= after_step]
    kept = [line for line in kept if json.loads(line).get("event") != "finished"]
    if len(kept) < len(lines):
        write_text(path, "".join(f"{line}\n" for line in kept))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the events of a run, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) is not None]


def _step_of(line: str) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


class _Journal:
    """events.jsonl and TensorBoard."""

    def __init__(self, run: RunDir, *, after_step: int):
        from torch.utils.tensorboard import SummaryWriter

        run.path.mkdir(parents=True, exist_ok=True)
        truncate(run.events, after_step=after_step if after_step else -1)
        self._run = run
        self._lines = run.events.open("a", encoding="utf-8")
        self._board: Any = SummaryWriter(run.tensorboard, purge_step=after_step + 1)

    @classmethod
    @contextmanager
    def opened(cls, run: RunDir, *, after_step: int) -> Iterator["_Journal"]:
        journal = cls(run, after_step=after_step)
        try:
            yield journal
        finally:
            journal._lines.close()
            journal._board.close()

    def write(self, event: Event) -> None:
        if isinstance(event, SampleDue):
            return
        entry: dict[str, Any] = {"event": type(event).__name__.lower(), "step": event.step}
        if isinstance(event, Logged):
            entry |= {name: value if math.isfinite(value) else None for name, value in event.values.items()}
            for name, value in event.values.items():
                self._board.add_scalar(name, value, event.step)
        if isinstance(event, Saved):
            entry["checkpoint"] = event.path.name
        self._lines.write(json.dumps(entry, allow_nan=False) + "\n")
        self._lines.flush()
