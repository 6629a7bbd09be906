"""One very small study, made by the commands themselves, and a way to start commands that nothing outlives."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # of the process that commands are forked from

from commands import Command, Limits, Outcome, Run, Start  # noqa: E402
from small_study import Study  # noqa: E402


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a command; whatever still runs at the end of the test is killed."""
    running = list[Command]()

    def started(*arguments: object, limits: Limits | None = None) -> Command:
        running.append(Command(arguments, tmp_path_factory.mktemp("command"), limits or Limits()))
        return running[-1]

    yield started
    for command in running:
        command.end()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command to its end."""

    def ran(*arguments: object, limits: Limits | None = None) -> Outcome:
        return Command(arguments, tmp_path_factory.mktemp("command"), limits or Limits()).wait()

    return ran


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Study:
    """Plates, store, base, adapter and classifier."""
    study = Study(tmp_path_factory.mktemp("study"))
    for name, arguments in study.made_by():
        outcome = run(*arguments, "--out", study.root / name)
        assert outcome.code == 0, outcome
    return study


@pytest.fixture(scope="session")
def translated(study: Study, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cells of the test plate, translated."""
    out = tmp_path_factory.mktemp("translated") / "translated.zarr"
    outcome = run(*study.translate(), "--base", study.base, "--adapter", study.adapter, "--out", out)
    assert outcome.code == 0, outcome
    return out
