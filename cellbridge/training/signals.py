"""Stopping when asked: the first SIGINT, SIGTERM or SIGHUP (a lost terminal) is noted, the second ends the process at once.

One request may arrive twice: a scheduler signals every process of a job, and a launcher passes on to its workers what it got itself.
The same signal again within a moment is therefore that request, and no second one.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from cellbridge import processes

_SHOW_CURSOR = b"\x1b[?25h"
_ECHO_S = 0.3
_ECHO_OF_A_LAUNCHER_S = 5.0
"""How long after a signal the same one is taken for its echo: alone, and as one of several processes."""


@dataclass
class StopRequest:
    """Which signal asked for the end, if any."""

    signal_number: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the signals inside the block; outside the main thread, where Python allows no handler, nothing is caught.

    Under `nohup` SIGHUP is ignored, and stays so.
    """
    request, asked_at = StopRequest(), 0.0
    echo = _ECHO_S if processes.count() == 1 else _ECHO_OF_A_LAUNCHER_S
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signal_number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if request.signal_number == signal_number and time.monotonic() - asked_at < echo:
            return
        if request.signal_number is not None:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # a progress bar hides it, and no `finally` runs below
            os._exit(128 + signal_number)
        request.signal_number, asked_at = signal_number, time.monotonic()

    asking = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        asking.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in asking}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
