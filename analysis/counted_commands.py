"""cellbridge's own commands in a process of one thread, their words in a log and its processor seconds measured."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PROGRAM = """
import json, sys
from cellbridge.cli import main
for command in json.load(sys.stdin):
    print("$ cellbridge", *command, flush=True)
    if code := main(command):
        sys.exit(code)
"""
"""Runs one command after the other, so that a method of several commands starts Python no more often than one of a single command."""


class Failed(Exception):
    """A command failed; its last words."""


def call(commands: Sequence[Sequence[str]], log: Path) -> float:
    """Run commands of cellbridge, up to the first that fails, on one thread, and return the processor seconds of their process.

    Raises
    ------
    Failed : with the last line that was written.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = os.times()
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=json.dumps([list(command) for command in commands]).encode(),
            env=environment,
            stdout=file,
            stderr=file,
            check=False,
        )
    after = os.times()
    if done.returncode:
        lines = log.read_text(encoding="utf-8").splitlines()
        raise Failed(lines[-1] if lines else f"exit code {done.returncode}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def options(name: str, values: Sequence[object]) -> list[str]:
    """Return a command's option, once for each value."""
    return [text for value in values for text in (name, str(value))]
