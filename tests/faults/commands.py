"""cellbridge commands as processes of their own, forked from one that has imported everything.

Such a command is otherwise like any other: with its own arguments, standard output and error, limits and signals.
"""

import ctypes
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from warm_forks import FORKS

SECONDS = 180.0
"""The most that any command or wait may take, on a machine that is busy with other things; nothing hangs longer."""


@dataclass(frozen=True)
class Limits:
    """What a command may use.

    Parameters
    ----------
    file_bytes : the largest file it may write (RLIMIT_FSIZE).
    more_memory : address space beyond what the process has at its start (RLIMIT_AS), in bytes.
    inside : process whose user and mount namespaces the command enters.
    """

    file_bytes: int | None = None
    more_memory: int | None = None
    inside: int | None = None

    def apply(self) -> None:
        """Impose the limits on this process."""
        if self.inside is not None:
            _enter(self.inside)
        if self.file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))
        if self.more_memory is not None:
            limit = _address_space("VmSize") + self.more_memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (negative: killed by that signal) and what it printed.

    `grown` is the most address space that it had beyond what it began with, in bytes; None where it was killed.
    """

    code: int
    out: str
    err: str
    grown: int | None = None

    @property
    def last_line(self) -> str:
        """The last line on standard error."""
        return (self.err.splitlines() or [""])[-1]


class Command:
    """A running `cellbridge …`."""

    def __init__(self, arguments: tuple[object, ...], folder: Path, limits: Limits):
        self._out, self._err, self._grown = folder / "stdout", folder / "stderr", folder / "grown"
        texts = [str(argument) for argument in arguments]
        self._process: ForkServerProcess = FORKS.Process(
            target=_run, args=(texts, self._out, self._err, self._grown, limits)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send(self, *signals: signal.Signals) -> None:
        """Send signals, one right after the other."""
        for number in signals:
            os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Return how it ends; a command that does not end in time is killed, and the test fails."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.end()
            raise AssertionError(f"still running after {seconds} s; it printed:\n{self._err.read_text()}")
        grown = int(self._grown.read_text()) if self._grown.exists() else None
        return Outcome(self._process.exitcode, self._out.read_text(), self._err.read_text(), grown)

    def end(self) -> None:
        """Kill it where it still runs."""
        if self.running:
            self._process.kill()
        self._process.join(SECONDS)


Start = Callable[..., Command]
"""(arguments …, limits=Limits()) → a running command."""
Run = Callable[..., Outcome]
"""The same, run to its end."""


def wait_until(condition: Callable[[], bool], *, what: str, command: Command | None = None) -> None:
    """Wait for a condition, looking every millisecond; fail where the command ends before, or time is up."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if command is not None and not command.running and not condition():
            raise AssertionError(f"the command ended before {what}: {command.wait()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {SECONDS} s in vain until {what}")
        time.sleep(0.001)


def one_line(outcome: Outcome, *parts: str, code: int = 2) -> str:
    """Check that a command failed with this exit code and one line that holds every part, and return the line."""
    assert outcome.code == code, outcome
    line = outcome.last_line
    assert re.match(r"cellbridge [\w-]+: [A-Z]\w+: ", line), outcome
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in line, f"{part!r} is not in {line!r}"
    return line


def _run(arguments: list[str], out: Path, err: Path, grown: Path, limits: Limits) -> None:
    """Be the command: what follows the fork."""
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["cellbridge", *arguments]
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    limits.apply()
    before = _address_space("VmSize")
    from cellbridge.cli import main

    code = main()
    grown.write_text(str(_address_space("VmPeak") - before))
    sys.exit(code)


def _address_space(which: str) -> int:
    """Return the address space of this process in bytes: `VmSize` now, `VmPeak` at its most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024


def _enter(process: int) -> None:
    """Enter another process's user and mount namespaces (os.setns is there from Python 3.12 on)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("user", "mnt"):
        with open(f"/proc/{process}/ns/{kind}", "rb") as namespace:
            if libc.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {kind}: {os.strerror(ctypes.get_errno())}")
