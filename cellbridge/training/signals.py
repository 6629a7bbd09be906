"""Stopping when asked: the first SIGINT or SIGTERM is noted, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SHOW_CURSOR = b"\x1b[?25h"


@dataclass
class StopRequest:
    """Which signal asked for the end, if any."""

    signal_number: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM inside the block; outside the main thread, where Python allows no handler, nothing is caught."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signal_number: int, frame: FrameType | None) -> None:
        if request.signal_number is not None:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # a progress bar hides it, and no `finally` runs below
            os._exit(128 + signal_number)
        request.signal_number = signal_number

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
