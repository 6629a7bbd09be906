"""One way to show long work: a bar with rate, memory and time left on a terminal, a line now and then anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cellbridge import processes

_SECONDS_BETWEEN_LINES = 10.0


def say(line: str) -> None:
    """Write a line on standard error; where nothing reads it any more (a lost terminal, a full disk), it is lost, and not the work."""
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class Bar:
    """A running piece of work; `advance` it as units are done. Of several processes only the main one shows it."""

    def __init__(self, description: str, *, total: int, unit: str):
        self._description, self._total, self._unit = description, total, unit
        self._done, self._started, self._spoke = 0, time.monotonic(), time.monotonic()
        self._resumed_at = 0
        self._progress: Progress | None = None
        if sys.stderr.isatty() and processes.is_main():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._progress.add_task(description, total=total, detail="")
            self._progress.start()

    def start_at(self, done: int) -> None:
        """Begin where an earlier run stopped, so that rate and time left count only what this run does."""
        self._done = self._resumed_at = done
        self._show("", speak=False)

    def show(self, detail: str) -> None:
        """Say what is worked on now, where a unit takes long: on a terminal, or as a line when the first one begins."""
        if self._progress is not None:
            self._progress.update(self._task, detail=detail)
        elif processes.is_main() and self._done == self._resumed_at:
            say(f"{self._description}: {self._done}/{self._total} {self._unit} · {detail}")

    def advance(
        self, units: int = 1, *, rate_per_unit: float = 1.0, rate_unit: str | None = None, detail: str = ""
    ) -> None:
        """Count finished units; `rate_per_unit` turns units into what the rate is told in (images per step)."""
        self._done += units
        rate = (self._done - self._resumed_at) * rate_per_unit / max(time.monotonic() - self._started, 1e-9)
        memory_gib = psutil.Process().memory_info().rss / 2**30
        words = f"{rate:.1f} {rate_unit or self._unit}/s · {memory_gib:.1f} GiB" + (f" · {detail}" if detail else "")
        self._show(words, speak=True)

    def close(self) -> None:
        """Take the bar off the terminal, leaving its last state."""
        if self._progress is not None:
            with suppress(OSError):  # the terminal may be gone
                self._progress.stop()

    def _show(self, words: str, *, speak: bool) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, detail=words)
            return
        now = time.monotonic()
        if not processes.is_main():
            return
        if speak and (now - self._spoke >= _SECONDS_BETWEEN_LINES or self._done == self._total):
            self._spoke = now
            fresh = max(self._done - self._resumed_at, 1)
            left = (now - self._started) / fresh * (self._total - self._done)
            say(f"{self._description}: {self._done}/{self._total} {self._unit} · {words} · {left:.0f} s left")


@contextmanager
def bar(description: str, *, total: int, unit: str) -> Iterator[Bar]:
    """Show a bar while the block runs."""
    shown = Bar(description, total=total, unit=unit)
    try:
        yield shown
    finally:
        shown.close()
