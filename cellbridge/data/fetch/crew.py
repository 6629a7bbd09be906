"""Several files at a time: threads that stop together, and a count of bytes that all of them share."""

import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from types import FrameType
from typing import Generic, TypeVar

from cellbridge.errors import StoppedBySignal

Task = TypeVar("Task")
Result = TypeVar("Result")


class Stopped(Exception):
    """The work was stopped by another thread's failure or by the user; what has come so far is kept."""


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """What came of one task: a result, or the error that ended it."""

    task: Task
    result: Result | None = None
    error: Exception | None = None


@dataclass
class Crew:
    """Threads that work off tasks.

    Parameters
    ----------
    workers : how many tasks at a time.
    """

    workers: int
    _stop: threading.Event = field(default_factory=threading.Event)

    def pause(self, seconds: float) -> None:
        """Wait; raise Stopped where the work was stopped before or meanwhile."""
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise Stopped

    def each(
        self, work: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Generator[Outcome[Task, Result], None, None]:
        """Yield what comes of every task, as it comes; when the loop over it is left, the tasks that run end at their next pause."""
        waiting = iter(tasks)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="fetch") as pool:
            running: dict[Future[Result], Task] = {}
            try:
                while True:
                    for task in islice(waiting, 2 * self.workers - len(running)):
                        running[pool.submit(work, task)] = task
                    if not running:
                        return
                    done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield _outcome(running.pop(future), future)
            except BaseException:
                self._stop.set()
                for future in running:
                    future.cancel()
                raise


@dataclass
class Meter:
    """Turns bytes, counted by many threads, into whole units of a bar.

    Parameters
    ----------
    show : called with whole units, which may be negative where bytes were thrown away.
    unit_bytes : how many bytes a unit has.
    """

    show: Callable[[int], None]
    unit_bytes: int
    _bytes: int = 0
    _shown: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, n_bytes: int) -> None:
        """Count bytes."""
        with self._lock:
            self._bytes += n_bytes
            units = self._bytes // self.unit_bytes - self._shown
            if units:
                self._shown += units
                self.show(units)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the block by SIGTERM and SIGHUP as by Ctrl-C; outside the main thread Python allows no handler.

    Raises
    ------
    StoppedBySignal : one of them came, and nothing in the block said what that means for its work.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    asked = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {one: signal.signal(one, stop) for one in asked if signal.getsignal(one) != signal.SIG_IGN}
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise StoppedBySignal(
            "stopped while it looked at what is to be fetched; the same command begins again",
            signal_number=signal_of(stopped),
        ) from None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def signal_of(stopped: KeyboardInterrupt) -> int:
    """Return the number of the signal that `stoppable` turned into an interrupt; that of Ctrl-C where none is noted."""
    return int(stopped.args[0]) if stopped.args else int(signal.SIGINT)


def _outcome(task: Task, future: "Future[Result]") -> Outcome[Task, Result]:
    error = future.exception()
    if error is None:
        return Outcome(task, result=future.result())
    if not isinstance(error, Exception):
        raise error
    return Outcome(task, error=error)
