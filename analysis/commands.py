"""cellbridge's own commands in processes of one thread, their words in a log and their processor seconds measured."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A command failed; its last words."""


def call(command: Sequence[str], log: Path) -> float:
    """Run a command of cellbridge on one thread, and return the processor seconds of its process.

    Raises
    ------
    Failed : with the last line that it wrote.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = os.times()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ cellbridge {' '.join(command)}\n")
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "cellbridge", *command], env=environment, stdout=file, stderr=file, check=False
        )
    after = os.times()
    if done.returncode:
        lines = log.read_text(encoding="utf-8").splitlines()
        raise Failed(lines[-1] if lines else f"exit code {done.returncode}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def options(name: str, values: Sequence[object]) -> list[str]:
    """Return a command's option, once for each value."""
    return [text for value in values for text in (name, str(value))]
