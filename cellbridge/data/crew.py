"""One job in several processes of this machine: this one works too, and others join it when they have started.

Where there are several, every process computes on one thread; a piece depends on its number alone, so results are the same for any number of processes.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for_end
from types import TracebackType
from typing import Any, Generic, TypeVar

from cellbridge.errors import ResourceError

Result = TypeVar("Result")
Job = Callable[[int], Result]
"""What is done for one number; travels to other processes once, so it is made of plain values."""

_AHEAD = 2
"""Pieces that a helper holds at a time: the one at work, and the next."""
_WAITING = 2
"""Results per process that may wait for their turn."""

_learnt: tuple[int, Callable[[int], Any]] | None = None
"""In a helper: the number of the job at hand, and the job."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(
    job: Job[Result], numbers: Sequence[int], *, workers: int, in_order: bool = False
) -> Iterator[tuple[int, Result]]:
    """Do one job with a crew of its own: see `Crew.each`."""
    with Crew(workers) as crew:
        yield from crew.each(job, numbers, in_order=in_order)


class Crew:
    """This process and its helpers, which start with the first job that has work for them and stay for the next ones.

    Until a helper has started, which takes a second or two, it is given nothing: nobody ever waits for one to start. One that
    cannot start, as where `__main__` is a script read from standard input, is done without.

    Parameters
    ----------
    workers : how many processes there are at most, this one among them.
    """

    def __init__(self, workers: int):
        self._workers = workers
        self._helpers: list[_Helper] = []
        self._jobs = 0

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error those at work are waited for: what they write may be removed next. Otherwise all are idle, and end by themselves.
        for helper in self._helpers:
            helper.pool.shutdown(wait=error is not None, cancel_futures=True)
        self._helpers.clear()

    def each(self, job: Job[Result], numbers: Sequence[int], *, in_order: bool = False) -> Iterator[tuple[int, Result]]:
        """Do a job for every number, and yield each number with what came out, in the order in which they are finished.

        Parameters
        ----------
        in_order : yield them in the order of `numbers`; what is finished before its turn waits, two results a process at most.

        Raises
        ------
        ResourceError : a process ended without a word.
        Exception : what the job raised; pieces not yet begun are left, those begun are finished first.
        """
        processes = min(self._workers, len(numbers))
        if processes <= 1:
            for number in numbers:
                yield number, job(number)
            return
        from threadpoolctl import threadpool_limits

        try:
            queue = _Queue(job, numbers, self._taught(job, processes - 1), which=self._jobs)
            with threadpool_limits(1):
                yield from queue.in_order() if in_order else queue.as_finished()
        except BrokenProcessPool:
            raise ResourceError(
                f"one of {processes} processes ended without a word, as the system's out-of-memory killer does. "
                "Run the same command again with fewer (--set workers=1): it goes on from what is finished."
            ) from None

    def _taught(self, job: Job[Any], count: int) -> "list[_Helper]":
        """Start helpers where more are wanted, and send the job to as many of them."""
        # Started anew, not forked: a fork would copy locks that other threads hold, and keep open files of this process locked.
        context = multiprocessing.get_context("spawn")
        while len(self._helpers) < count:
            self._helpers.append(_Helper(ProcessPoolExecutor(1, mp_context=context, initializer=_begin)))
        self._jobs += 1
        helpers = self._helpers[:count]
        for helper in helpers:
            try:
                helper.ready = helper.pool.submit(_learn, self._jobs, job)
            except BrokenProcessPool as error:  # it could not start, or ended between two jobs
                helper.ready = Future()
                helper.ready.set_exception(error)
        return helpers


@dataclass(eq=False)
class _Helper:
    """A process beside this one.

    Parameters
    ----------
    pool : of this one process.
    ready : done when the process has started and knows the job.
    held : how many pieces it was given that have not come back.
    """

    pool: ProcessPoolExecutor
    ready: "Future[None]" = field(default_factory=Future)
    held: int = 0


class _Queue(Generic[Result]):
    """The pieces of one job, handed out in order, to whoever is free."""

    def __init__(self, job: Job[Result], numbers: Sequence[int], helpers: "list[_Helper]", *, which: int):
        self._job, self._numbers, self._which, self._helpers = job, numbers, which, helpers
        self._next = 0
        self._running: dict[Future[Result], tuple[int, _Helper]] = {}
        for helper in helpers:
            helper.held = 0

    def in_order(self) -> Iterator[tuple[int, Result]]:
        """Yield results in the order of their numbers."""
        finished: dict[int, Result] = {}
        room = _WAITING * (len(self._helpers) + 1)
        done = 0
        while done < len(self._numbers):
            finished |= dict(self._some(upto=done + room))
            while done < len(self._numbers) and self._numbers[done] in finished:
                yield self._numbers[done], finished.pop(self._numbers[done])
                done += 1

    def as_finished(self) -> Iterator[tuple[int, Result]]:
        """Yield results as they come."""
        while self._next < len(self._numbers) or self._running:
            yield from self._some(upto=len(self._numbers))

    def _some(self, *, upto: int) -> Iterator[tuple[int, Result]]:
        """Keep the helpers busy, do one piece here if there is one before `upto`, and yield what is finished."""
        upto = min(upto, len(self._numbers))
        own = self._take() if self._next < upto else None
        for helper in self._helpers:
            self._hand_out(helper, upto)
        if own is not None:
            yield own, self._job(own)
        elif self._running:
            wait(self._running, return_when=FIRST_COMPLETED)
        for future in [future for future in self._running if future.done()]:
            number, helper = self._running.pop(future)
            helper.held -= 1
            result = future.result()
            self._hand_out(helper, upto)
            yield number, result

    def _hand_out(self, helper: "_Helper", upto: int) -> None:
        """Give a helper what it can hold; towards the end no more than it can do at once, so that all end together."""
        if not helper.ready.done() or isinstance(helper.ready.exception(), BrokenProcessPool):
            return
        helper.ready.result()
        few = upto - self._next <= len(self._helpers) + 1
        while self._next < upto and helper.held < (1 if few else _AHEAD):
            number = self._take()
            self._running[helper.pool.submit(_do, self._which, number)] = number, helper
            helper.held += 1

    def _take(self) -> int:
        self._next += 1
        return self._numbers[self._next - 1]


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the parent, which ends this one
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone, however that ended: the queue that it waits at would stay open."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _learn(which: int, job: Callable[[int], Any]) -> None:
    global _learnt
    _learnt = which, job


def _do(which: int, number: int) -> Any:
    assert _learnt is not None
    assert _learnt[0] == which
    return _learnt[1](number)
