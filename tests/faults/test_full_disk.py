"""A disk that is full, really: a small file system of its own, or a limit on the size of files."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import SECONDS, Limits, Run, one_line
from evidence import checkpoint, checkpoints, losses, sums, temporaries
from small_study import Study

_THREE = ("training.steps=12", "training.checkpoint_every=4", "training.keep_last=1")
_MIB = 2**20


class SmallDisk:
    """A tmpfs in a mount namespace of its own, which commands enter and this process looks into.

    Parameters
    ----------
    place : an empty directory, over which it is mounted.
    size : in bytes.
    """

    def __init__(self, place: Path, size: int):
        self._place = place
        shell = ["unshare", "-rm", "sh"]
        self._shell = subprocess.Popen(
            shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        answer = self._ask(f"mount -t tmpfs -o size={size} none '{place}'")
        if answer != "0":
            self.close()
            pytest.skip(f"this machine lets no user mount a small file system (unshare, mount: {answer})")

    @property
    def limits(self) -> Limits:
        """What makes a command see it."""
        return Limits(inside=self._shell.pid)

    @property
    def seen_from_here(self) -> Path:
        """Its root, for a process outside."""
        return Path(f"/proc/{self._shell.pid}/root{self._place}")

    def grow(self, size: int) -> None:
        """Make room."""
        assert self._ask(f"mount -o remount,size={size} none '{self._place}'") == "0"

    def close(self) -> None:
        """End the shell, and with its namespace the file system."""
        self._shell.communicate(timeout=SECONDS)

    def _ask(self, command: str) -> str:
        """Return the exit code of a command in the namespace, or what was said instead."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        try:
            print(f"{command}; echo $?", file=self._shell.stdin, flush=True)
        except BrokenPipeError:
            return self._shell.stdout.read().strip()
        return self._shell.stdout.readline().strip()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """5 MiB: room for one checkpoint of 3 MiB and not for the next beside it."""
    place = tmp_path / "disk"
    place.mkdir()
    disk = SmallDisk(place, 5 * _MIB)
    yield disk
    disk.close()


def test_a_full_disk_keeps_the_last_checkpoint_and_with_room_again_the_same_command_continues(
    study: Study, run: Run, small_disk: SmallDisk, tmp_path: Path
) -> None:
    """Row 9."""
    arguments = study.pretrain(*_THREE)
    out, seen = tmp_path / "disk/run", small_disk.seen_from_here / "run"
    line = one_line(run(*arguments, "--out", out, limits=small_disk.limits), "No space left on device", code=4)
    assert str(checkpoint(out, 8)) in line
    assert re.search(r"\d+ bytes", line)
    assert checkpoints(seen) == [4]
    assert temporaries(seen) == []
    assert run("checkpoint", "verify", out, limits=small_disk.limits).code == 0

    small_disk.grow(50 * _MIB)
    for place, limits in ((out, small_disk.limits), (tmp_path / "whole", Limits())):
        outcome = run(*arguments, "--out", place, limits=limits)
        assert outcome.code == 0, outcome
    assert sums(seen, 12) == sums(tmp_path / "whole", 12)
    assert losses(seen) == losses(tmp_path / "whole")


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "train_classifier"])
def test_where_no_checkpoint_can_be_written_nothing_is_left_half_written(
    study: Study, run: Run, tmp_path: Path, verb: str
) -> None:
    """Row 9, by a limit on the size of a file (RLIMIT_FSIZE)."""
    out = tmp_path / "run"
    arguments = getattr(study, verb)(*_THREE)
    size = 20_000 if verb == "train_classifier" else 100_000  # of less than a checkpoint, and more than the log
    line = one_line(run(*arguments, "--out", out, limits=Limits(file_bytes=size)), "File too large", code=4)
    assert str(checkpoint(out, 4)) in line
    assert re.search(r"\d+ bytes", line)
    assert checkpoints(out) == []
    assert temporaries(out) == []


def test_a_checkpoint_too_large_for_the_disk_leaves_the_one_before_to_continue_from(
    study: Study, run: Run, tmp_path: Path
) -> None:
    """Row 9, by a limit on the size of a file (RLIMIT_FSIZE)."""
    arguments = study.pretrain("training.steps=8", "training.checkpoint_every=4", "training.decay=constant")
    out = tmp_path / "run"
    assert run(*study.pretrain("training.steps=4", "training.decay=constant"), "--out", out).code == 0
    line = one_line(run(*arguments, "--out", out, limits=Limits(file_bytes=100_000)), "File too large", code=4)
    assert str(checkpoint(out, 8)) in line
    assert checkpoints(out) == [4]
    assert temporaries(out) == []
    assert run("checkpoint", "verify", out).code == 0
    for place in (out, tmp_path / "whole"):
        assert run(*arguments, "--out", place).code == 0
    assert sums(out, 8) == sums(tmp_path / "whole", 8)


def test_plates_that_do_not_fit_the_disk_leave_nothing(study: Study, run: Run, tmp_path: Path) -> None:
    """Row 9, for what is written before training."""
    arguments = dict(study.made_by())["plates"]
    line = one_line(run(*arguments, "--out", tmp_path / "out", limits=Limits(file_bytes=6000)), code=4)
    assert str(tmp_path) in line
    assert re.search(r"\d+ bytes", line)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_fit_the_disk_is_finished_once_there_is_room(
    study: Study, run: Run, tmp_path: Path
) -> None:
    """Row 9, for what is written before training."""
    arguments = dict(study.made_by())["store.zarr"]
    line = one_line(run(*arguments, "--out", tmp_path / "out", limits=Limits(file_bytes=6000)), code=4)
    assert str(tmp_path) in line
    assert re.search(r"\d+ bytes", line)
    assert [path.name for path in tmp_path.iterdir()] == [".out.preparing"]
    assert list(tmp_path.rglob("*.tmp")) == []
    assert run(*arguments, "--out", tmp_path / "out").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
