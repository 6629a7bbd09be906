"""SIGKILL at any time: the same command continues, and comes to the numbers of a run that was never killed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import SECONDS, Run, Start, wait_until
from evidence import checkpoint, checkpoints, events, losses, started_at, sums, temporaries
from small_study import Study

_HALF_WAY = ("training.steps=24", "training.checkpoint_every=12", "training.keep_last=2")


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "train_classifier"])
def test_twelve_steps_a_kill_and_the_same_command_give_the_numbers_of_twenty_four(
    study: Study, start: Start, run: Run, tmp_path: Path, verb: str
) -> None:
    """Row 3: in the middle of an epoch; with dropout and flips, LoRA and accumulation, class-balanced weights, sampler and jitter."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = getattr(study, verb)(*_HALF_WAY)
    command = start(*arguments, "--out", killed)
    wait_until(checkpoint(killed, 12).is_dir, what="the checkpoint of step 12", command=command)
    command.send(signal.SIGKILL)
    assert command.wait().code == -signal.SIGKILL
    assert checkpoints(killed) == [12]
    for out in (killed, whole):
        outcome = run(*arguments, "--out", out)
        assert outcome.code == 0, outcome
    assert (started_at(killed), started_at(whole)) == (12, 0)
    assert sums(killed, 24) == sums(whole, 24)
    assert sorted(losses(whole)) == list(range(1, 25))
    assert losses(killed) == losses(whole)
    manifests = [(out / "model/manifest.json").read_text() for out in (killed, whole)]
    assert manifests[0] == manifests[1]


@pytest.mark.slow
def test_twenty_kills_during_saves_lose_no_checkpoint_and_change_no_number(
    study: Study, start: Start, run: Run, tmp_path: Path
) -> None:
    """Row 1: SIGKILL of `pretrain --keep-last 1` at random moments while a checkpoint is being written or the last one deleted."""
    out, draw, hits, step = tmp_path / "run", random.Random(0), 0, 0
    arguments = [*study.pretrain("training.steps=80", "training.checkpoint_every=1"), "--keep-last", 1]
    for _ in range(20):
        command = start(*arguments, "--out", out)
        wait_for_saves(out, draw.randint(1, 3))
        assert started_at(out) >= step
        time.sleep(draw.uniform(0.0, 0.02))
        command.send(signal.SIGKILL)
        assert command.wait().code == -signal.SIGKILL
        hits += bool(temporaries(out))
        saved = checkpoints(out)
        assert saved or step == 0, "there was a checkpoint before the kill, and none after it"
        step = max(saved, default=0)
        if saved:
            assert run("checkpoint", "verify", checkpoint(out, step)).code == 0
    assert step > 0
    assert hits >= 5, f"only {hits} of 20 kills fell into a save"
    for place in (out, tmp_path / "whole"):
        outcome = run(*arguments, "--out", place)
        assert outcome.code == 0, outcome
    assert run("checkpoint", "verify", out).code == 0
    assert temporaries(out) == []
    assert checkpoints(out) == [80]
    assert sums(out, 80) == sums(tmp_path / "whole", 80)
    assert losses(out) == losses(tmp_path / "whole")


def wait_for_saves(out: Path, saves: int) -> None:
    """Wait until the temporaries of so many more saves have been seen."""
    folder = out / "checkpoints"
    left = {path.name for path in folder.glob(".step-*")}
    seen: set[str] = set()

    def enough() -> bool:
        seen.update(path.name for path in folder.glob(".step-*"))
        return len(seen - left) >= saves

    wait_until(enough, what=f"{saves} saves")


@pytest.mark.slow
def test_the_installed_program_survives_a_kill(study: Study, run: Run, tmp_path: Path) -> None:
    """Rows 1 and 3, through the console script."""
    program = Path(sys.executable).with_name("cellbridge")
    arguments = study.pretrain(*_HALF_WAY)
    killed = [str(word) for word in (program, *arguments, "--out", tmp_path / "killed")]
    process = subprocess.Popen(killed, stderr=subprocess.PIPE)
    try:
        wait_until(checkpoint(tmp_path / "killed", 12).is_dir, what="the checkpoint of step 12")
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(killed, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert [event["step"] for event in events(tmp_path / "killed") if event["event"] == "started"] == [0, 12]
    assert run(*arguments, "--out", tmp_path / "whole").code == 0
    assert sums(tmp_path / "killed", 24) == sums(tmp_path / "whole", 24)
    verified = subprocess.run(
        [program, "checkpoint", "verify", tmp_path / "killed"], capture_output=True, timeout=SECONDS
    )
    assert verified.returncode == 0
