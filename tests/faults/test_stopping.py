"""Signals, and two processes in one run directory."""

import signal
from pathlib import Path

import pytest
from commands import Command, Run, Start, one_line, wait_until
from evidence import checkpoints, events, losses, started_at, sums, temporaries
from small_study import Study

_LONG = ("training.steps=5000", "training.checkpoint_every=5000")


def wait_for_steps(command: Command, out: Path, steps: int) -> None:
    """Wait until events.jsonl tells of so many steps."""
    file = out / "events.jsonl"
    wait_until(
        lambda: file.is_file() and file.read_text().count('"logged"') >= steps, what=f"{steps} steps", command=command
    )


@pytest.mark.parametrize(
    ("verb", "number"),
    [
        ("pretrain", signal.SIGTERM),
        ("pretrain", signal.SIGINT),
        ("finetune", signal.SIGTERM),
        ("train_classifier", signal.SIGINT),
    ],
)
def test_a_signal_saves_the_step_and_ends_with_its_own_exit_code(
    study: Study, start: Start, run: Run, tmp_path: Path, verb: str, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    command = start(*getattr(study, verb)(*_LONG), "--out", out)
    wait_for_steps(command, out, 3)
    command.send(number)
    outcome = command.wait()
    line = one_line(outcome, "stopped at step", "Run the same command to continue", code=128 + number)
    step = max(losses(out))
    assert checkpoints(out) == [step]
    assert f"stopped at step {step} of 5000; saved {out}/checkpoints/step-{step:08d}" in line
    assert events(out)[-1]["event"] == "saved"
    assert temporaries(out) == []
    assert not (out / "model").exists()
    assert run("checkpoint", "verify", out).code == 0


def test_stopped_and_continued_gives_the_numbers_of_a_run_that_was_not_stopped(
    study: Study, start: Start, run: Run, tmp_path: Path
) -> None:
    arguments = study.pretrain("training.steps=60", "training.checkpoint_every=60")
    command = start(*arguments, "--out", tmp_path / "stopped")
    wait_for_steps(command, tmp_path / "stopped", 5)
    command.send(signal.SIGTERM)
    assert command.wait().code == 143
    for out in ("stopped", "whole"):
        assert run(*arguments, "--out", tmp_path / out).code == 0
    assert 5 <= started_at(tmp_path / "stopped") < 60
    assert sums(tmp_path / "stopped", 60) == sums(tmp_path / "whole", 60)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_the_second_signal_ends_at_once_and_leaves_the_old_checkpoint(
    study: Study, start: Start, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = study.pretrain(*_LONG[:1], "training.checkpoint_every=5", "training.keep_last=1")
    command = start(*arguments, "--out", out)
    wait_until(lambda: checkpoints(out) != [], what="a checkpoint", command=command)
    command.send(signal.SIGINT, signal.SIGTERM)
    outcome = command.wait(10)
    assert outcome.code in (130, 143)
    assert "stopped at step" not in outcome.err, "the first signal was honoured before the second came"
    assert "Traceback" not in outcome.err
    assert all(step % 5 == 0 for step in checkpoints(out))
    assert run("checkpoint", "verify", out).code == 0


def test_a_second_process_in_one_run_directory_is_refused_and_the_first_is_unharmed(
    study: Study, start: Start, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = study.train_classifier(*_LONG)
    first = start(*arguments, "--out", out)
    wait_for_steps(first, out, 3)
    one_line(run(*arguments, "--out", out), f"in use by process {first.pid} on")
    done = max(losses(out))
    wait_for_steps(first, out, done + 3)
    first.send(signal.SIGTERM)
    assert first.wait().code == 143
    assert sorted(losses(out)) == list(range(1, max(losses(out)) + 1))
    assert [event["event"] for event in events(out)].count("started") == 1
    assert run("checkpoint", "verify", out).code == 0
