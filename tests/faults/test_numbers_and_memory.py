"""Training that diverges, and training that does not fit into memory."""

import re
import signal
from pathlib import Path

import pytest
import torch
from commands import Limits, Run, one_line
from evidence import TENSORS, checkpoint, checkpoints, events, losses, started_at, sums, temporaries
from safetensors.torch import load_file
from small_study import Study

_DIVERGES = ("training.learning_rate=1e20", "training.warmup_steps=0", "training.log_every=100")


def require_finite_checkpoints(out: Path) -> None:
    for step in checkpoints(out):
        for name in TENSORS:
            for key, tensor in load_file(checkpoint(out, step) / f"{name}.safetensors").items():
                assert torch.isfinite(tensor).all(), f"{name}/{key} of step {step}"


@pytest.mark.parametrize(
    ("verb", "every"), [("pretrain", 1000), ("finetune", 1000), ("train_classifier", 1000), ("pretrain", 1)]
)
def test_an_absurd_learning_rate_ends_within_twenty_steps_and_saves_nothing_poisoned(
    study: Study, run: Run, tmp_path: Path, verb: str, every: int
) -> None:
    """Row 11: nothing is logged or saved before the end, or a checkpoint is due at every step."""
    out = tmp_path / "run"
    arguments = getattr(study, verb)("training.steps=1000", *_DIVERGES, f"training.checkpoint_every={every}")
    line = one_line(run(*arguments, "--out", out), "not finite", "learning rate 1e+20", code=3)
    step = re.search(r"step (\d+)", line)
    assert step is not None
    assert int(step[1]) <= 20
    saved = checkpoints(out)
    named = f"Last good checkpoint: {checkpoint(out, saved[-1])}" if saved else "No checkpoint was saved before it"
    assert named in line
    assert max(saved, default=0) <= 20
    require_finite_checkpoints(out)
    assert temporaries(out) == []
    assert {event["event"] for event in events(out)} <= {"started", "saved", "logged"}
    assert not (out / "model").exists()


def test_a_good_run_that_is_continued_at_an_absurd_learning_rate_keeps_its_last_good_checkpoint(
    study: Study, run: Run, tmp_path: Path
) -> None:
    """Row 11."""
    out = tmp_path / "run"
    constant = ("training.decay=constant", "training.checkpoint_every=1000")
    assert run(*study.pretrain("training.steps=4", *constant), "--out", out).code == 0
    before = sums(out, 4)
    outcome = run(*study.pretrain("training.steps=1000", *constant, *_DIVERGES), "--accept-changes", "--out", out)
    line = one_line(outcome, "not finite", f"Last good checkpoint: {checkpoint(out, 4)}", code=3)
    step = re.search(r"step (\d+)", line)
    assert step is not None
    assert 4 < int(step[1]) <= 24
    assert "WARNING: " in outcome.err
    assert "learning_rate" in outcome.err
    assert checkpoints(out) == [4]
    assert sums(out, 4) == before


def test_out_of_memory_names_an_accumulation_that_fits_and_following_it_continues(
    study: Study, run: Run, tmp_path: Path
) -> None:
    """Row 13, by a limit on the address space (RLIMIT_AS) half-way between what the batch takes and what half of it takes.

    Where the kernels' own library was what got none, which ends the process, another limit is tried.
    """
    out = tmp_path / "run"
    wide = ("training.batch_size=512", "training.decay=constant", "training.checkpoint_every=1000")
    one_step = study.pretrain(*wide, "training.steps=1")
    whole = run(*one_step, "--out", out)
    halves = run(*one_step, "--set", "training.accumulation=2", "--out", tmp_path / "halves")
    assert (whole.code, halves.code) == (0, 0)
    assert whole.grown is not None
    assert halves.grown is not None
    assert whole.grown > halves.grown
    before = sums(out, 1)
    arguments = study.pretrain(*wide, "training.steps=2")
    for share in (0.5, 0.6, 0.4):
        limits = Limits(more_memory=round(halves.grown + share * (whole.grown - halves.grown)))
        outcome = run(*arguments, "--out", out, limits=limits)
        if outcome.code != -signal.SIGSEGV:
            break
    line = one_line(outcome, "out of memory", code=4)
    assert checkpoints(out) == [1]
    assert run("checkpoint", "verify", out).code == 0
    assert sums(out, 1) == before
    advice = re.search(r"--set training\.accumulation=(\d+)", line)
    assert advice is not None, line
    assert "continues from step 1" in line
    outcome = run(*arguments, "--set", f"training.accumulation={advice[1]}", "--out", out, limits=limits)
    assert outcome.code == 0, outcome
    assert started_at(out) == 1
    assert sorted(losses(out)) == [1, 2]
    assert run("checkpoint", "verify", out).code == 0
