"""One job in several processes of this machine: pieces are handed out in order, and come back as they are finished or in that order.

Every process computes on one thread; a piece depends on its number alone, so results are the same for any number of processes.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from multiprocessing.connection import wait as wait_for_end
from typing import Any, TypeVar

from cellbridge.errors import ResourceError

Result = TypeVar("Result")
Job = Callable[[int], Result]
"""What is done for one number; travels to other processes once, so it is made of plain values."""

_AHEAD = 2
"""Pieces per process that are handed out at a time."""

_job: Callable[[int], Any] | None = None


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(
    job: Job[Result], numbers: Sequence[int], *, workers: int, in_order: bool = False
) -> Iterator[tuple[int, Result]]:
    """Do a job for every number, and yield each number with what came out, in the order in which they are finished.

    Parameters
    ----------
    workers : how many processes; with 1, or for one number, it is done in this one, in order.
    in_order : yield them in the order of `numbers`; what is finished before its turn waits, two results a process at most.

    Raises
    ------
    ResourceError : a process ended without a word.
    Exception : what the job raised; pieces not yet begun are left, those begun are finished first.
    """
    if min(workers, len(numbers)) <= 1:
        for number in numbers:
            yield number, job(number)
        return
    with closing(_in_processes(job, numbers, min(workers, len(numbers)), in_order=in_order)) as results:
        yield from results


def _in_processes(
    job: Job[Result], numbers: Sequence[int], workers: int, *, in_order: bool
) -> Generator[tuple[int, Result], None, None]:
    # Started anew, not forked: a fork would copy locks that other threads hold, and keep open files of this process locked.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(job,))
    coming = iter(numbers)
    try:
        running: dict[Future[Result], int] = {
            executor.submit(_do, number): number for number in islice(coming, _AHEAD * workers)
        }
        while running:
            first = next(iter(running))  # a dictionary keeps the order in which it was filled
            for future in [first] if in_order else wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                result = future.result()
                running |= {executor.submit(_do, following): following for following in islice(coming, 1)}
                yield number, result
    except BrokenProcessPool:
        raise ResourceError(
            f"one of {workers} processes ended without a word, as the system's out-of-memory killer does. "
            "Run the same command again with fewer (--set workers=1): it goes on from what is finished."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(job: Callable[[int], Any]) -> None:
    global _job
    _job = job
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


def _do(number: int) -> Any:
    assert _job is not None
    return _job(number)
