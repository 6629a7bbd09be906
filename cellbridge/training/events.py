"""What training tells, and where it is shown: events.jsonl, TensorBoard, trackers, and one progress bar on standard error."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cellbridge.errors import RunError
from cellbridge.progress import Bar, bar, say
from cellbridge.runs import RunDir, write_text
from cellbridge.training.board import Board
from cellbridge.training.trackers import Track, tracked


@dataclass(frozen=True)
class Started:
    """Training begins after `step` steps, from a checkpoint if there is one."""

    step: int
    checkpoint: Path | None = None
    warnings: tuple[str, ...] = ()
    main_process: bool = True
    """False in all but one of several processes: only that one writes and shows."""


@dataclass(frozen=True)
class Compiling:
    """The next step compiles the network before it trains, which can take minutes."""

    step: int
    strategy: str


@dataclass(frozen=True)
class Logged:
    """What happened since the last log step, by name.

    Means: loss, gradient_norm, monitors. Extrema, as the loss names them. learning_rate. seconds_per_step, and the shares of it
    data_wait and checkpoint_stall. Peaks since the start: memory_gib (of the device), host_memory_gib. Where the device's peak
    is known: tflops_per_second and mfu.
    """

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Saved:
    """A checkpoint is published and verified."""

    step: int
    path: Path


@dataclass(frozen=True)
class Profiled:
    """A profiler trace is written."""

    step: int
    path: Path


@dataclass(frozen=True)
class Warned:
    """What is logged asks for attention; told once a run."""

    step: int
    text: str


@dataclass(frozen=True)
class Judged:
    """What held-out data said of the averaged weights, by name."""

    step: int
    values: dict[str, float]


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


Event = Started | Compiling | Logged | Judged | Saved | Profiled | Warned | SampleDue | Finished
OnSample = Callable[[int, dict[str, Tensor]], None]
Alarm = Callable[[Mapping[str, float]], str | None]
"""Logged values → what is wrong with them and what to do, or None."""

_SETTLED, _EARLIEST = 0.25, 100
"""Share of a training, and steps, after which an alarm judges its values; an untrained network would always raise it."""


def show(
    events: Iterator[Event],
    *,
    run: RunDir,
    description: str,
    total: int,
    images_per_step: int,
    on_start: Callable[[], object] | None = None,
    on_sample: OnSample | None = None,
    alarm: Alarm | None = None,
    trackers: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    facts: Mapping[str, float] | None = None,
) -> Finished:
    """Drive a training to its end, writing and showing what it tells.

    `events.jsonl` gets one line per event; on a resume the lines after the resumed step go, so that no loss stands there twice.
    TensorBoard and the trackers get every value. Names that begin with `loss` are also given as natural logarithms, under
    `log_loss…`.

    Parameters
    ----------
    total : steps of the whole training.
    images_per_step : the global batch, for images/s.
    on_start : called once the run is this process's own and what it resumes has been found to fit: the time to write its
        configuration, which a refused command must leave as it is.
    on_sample : (step, EMA weights by name) → None; called at each sample step and at the end.
    alarm : judges the logged values after a quarter of the training and 100 steps; what it says first is written and shown, once a run.
    trackers : names that accelerate knows; they are told `settings`, under dotted keys.
    facts : name → number that holds for the whole training, written into the `started` line and shown.

    Returns
    -------
    The last event, with the averaged weights.
    """
    with ExitStack() as stack:
        stack.callback(getattr(events, "close", lambda: None))  # an error below must not leave the run locked
        teller: _Teller | None = None
        for event in events:
            if isinstance(event, Started) and event.main_process:
                if on_start is not None:
                    on_start()
                track = stack.enter_context(tracked(trackers, run=run, settings=settings or {}, after_step=event.step))
                journal = stack.enter_context(_Journal.opened(run, after_step=event.step, track=track))
                shown = stack.enter_context(bar(description, total=total, unit="steps"))
                teller = _Teller(journal, shown, description, total=total, images_per_step=images_per_step, alarm=alarm)
                teller.tell_facts(facts or {})
            if teller is not None:
                teller.tell(event)
                if isinstance(event, SampleDue | Finished) and on_sample is not None:
                    on_sample(event.step, event.ema)
            if isinstance(event, Finished):
                return event
    raise RunError(f"{run.path}: training ended without finishing. This is a fault of cellbridge; please report it.")


class _Teller:
    """Writes each event down, and shows it on standard error."""

    def __init__(
        self,
        journal: "_Journal",
        shown: Bar,
        description: str,
        *,
        total: int,
        images_per_step: int,
        alarm: Alarm | None,
    ):
        self._journal, self._shown, self._description = journal, shown, description
        self._total, self._images_per_step, self._alarm = total, images_per_step, alarm
        self._done = 0

    def tell_facts(self, facts: Mapping[str, float]) -> None:
        """Say what holds for the whole training, and keep it for the `started` line."""
        self._journal.facts = dict(facts)
        if facts:
            words = " · ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in facts.items())
            say(f"{self._description}: {words}")

    def tell(self, event: Event) -> None:
        if isinstance(event, Started):
            self._shown.start_at(event.step)
            self._done = event.step
        if isinstance(event, Logged):
            event = self._advance(event)
        self._journal.write(event)
        for text in self._words(event):
            say(text)
        if isinstance(event, Logged):
            self._judge(event)

    def _advance(self, event: Logged) -> Logged:
        """Move the bar, and return the event with logarithms and images/s."""
        values = with_logarithms(event.values)
        values["images_per_second"] = self._images_per_step / values.pop("seconds_per_step")
        figures = f"loss {values['loss']:.4g} · peak {values['memory_gib']:.2f} GiB"
        if "mfu" in values:
            figures += f" · MFU {100 * values['mfu']:.1f} %"
        steps, self._done = event.step - self._done, event.step
        self._shown.advance(steps, rate_per_unit=self._images_per_step, rate_unit="images", detail=figures)
        return replace(event, values=values)

    def _judge(self, event: Logged) -> None:
        if self._alarm is None or self._journal.has_warned or event.step < max(_EARLIEST, _SETTLED * self._total):
            return
        text = self._alarm(event.values)
        if text is not None:
            self.tell(Warned(event.step, f"step {event.step}: {text}"))

    def _words(self, event: Event) -> list[str]:
        """Return what an event says beside the bar."""
        if isinstance(event, Started):
            return [f"WARNING: {text}" for text in event.warnings]
        if isinstance(event, Judged):
            figures = " · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in event.values.items())
            return [f"{self._description}: step {event.step}: {figures}"]
        if isinstance(event, Compiling):
            return [f"{self._description}: compiling ({event.strategy}); the first step can take minutes"]
        if isinstance(event, Warned):
            return [f"WARNING: {event.text}"]
        return [f"{self._description}: profile in {event.path}"] if isinstance(event, Profiled) else []


def with_logarithms(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values and, after each positive one whose name begins with `loss`, its natural logarithm as `log_loss…`.

    A name that is given already stays: a monitor's mean of logarithms is not the logarithm of its mean.
    """
    result: dict[str, float] = {}
    for name, value in values.items():
        result[name] = value
        if name.startswith("loss") and value > 0 and f"log_{name}" not in values:
            result[f"log_{name}"] = math.log(value)
    return result


def truncate(path: Path, *, after_step: int) -> None:
    """Drop from an events file every line after a step, a line that was cut short, and an earlier end."""
    if not path.is_file():
        return
    lines = _lines(path)
    kept = [line for line in lines if (step := _step_of(line)) is not None and step <= after_step]
    kept = [line for line in kept if json.loads(line).get("event") != "finished"]
    if len(kept) < len(lines):
        write_text(path, "".join(f"{line}\n" for line in kept))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the events of a run, in order."""
    return [json.loads(line) for line in _lines(path) if _step_of(line) is not None]


def _lines(path: Path) -> list[str]:
    """Return the lines of an events file; bytes that are no text spoil their own line only."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _step_of(line: str) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


class _Journal:
    """events.jsonl, TensorBoard and trackers."""

    def __init__(self, run: RunDir, *, after_step: int, track: Track):
        run.path.mkdir(parents=True, exist_ok=True)
        truncate(run.events, after_step=after_step if after_step else -1)
        self.has_warned = run.events.is_file() and any(entry.get("event") == "warned" for entry in read(run.events))
        self.facts: dict[str, float] = {}
        self._run, self._track = run, track
        self._lines = run.events.open("a", encoding="utf-8")
        self._board = Board(run.tensorboard, after_step=after_step)

    @classmethod
    @contextmanager
    def opened(cls, run: RunDir, *, after_step: int, track: Track) -> Iterator["_Journal"]:
        journal = cls(run, after_step=after_step, track=track)
        with closing(journal._board), journal._lines:
            yield journal

    def write(self, event: Event) -> None:
        if isinstance(event, SampleDue):
            return
        entry: dict[str, Any] = {"event": type(event).__name__.lower(), "step": event.step}
        if isinstance(event, Logged | Judged):
            entry |= {name: value if math.isfinite(value) else None for name, value in event.values.items()}
            self._board.add(event.step, event.values)
            self._track(event.step, event.values)
        if isinstance(event, Started):
            entry |= self.facts | ({"warnings": list(event.warnings)} if event.warnings else {})
        if isinstance(event, Saved):
            entry["checkpoint"] = event.path.name
        if isinstance(event, Compiling):
            entry["strategy"] = event.strategy
        if isinstance(event, Profiled):
            entry["profile"] = str(event.path.relative_to(self._run.path))
        if isinstance(event, Warned):
            entry["text"] = event.text
            self.has_warned = True
        self._lines.write(json.dumps(entry, allow_nan=False) + "\n")
        self._lines.flush()
