"""Checkpoints that are damaged, absent or not wanted: training continues from a whole one, or refuses. It never starts over by itself."""

import shutil
from pathlib import Path

import pytest
from commands import Run, one_line
from evidence import checkpoint, checkpoints, events, losses, started_at, sums, tree
from small_study import Study

_THREE = ("training.steps=12", "training.checkpoint_every=4", "training.keep_last=3")


@pytest.fixture(scope="module")
def trained(study: Study, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints at steps 4, 8 and 12."""
    out = tmp_path_factory.mktemp("trained") / "run"
    outcome = run(*study.pretrain(*_THREE), "--out", out)
    assert outcome.code == 0, outcome
    assert checkpoints(out) == [4, 8, 12]
    return out


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_continued(
    study: Study, run: Run, trained: Path, tmp_path: Path, file: str
) -> None:
    """Row 5."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    shutil.rmtree(out / "model")
    cut_in_half(checkpoint(out, 12) / file)
    outcome = run(*study.pretrain(*_THREE), "--out", out)
    assert outcome.code == 0, outcome
    warning = next(line for line in outcome.err.splitlines() if line.startswith("WARNING: "))
    assert str(checkpoint(out, 12) / file) in warning
    assert str(checkpoint(out, 8)) in warning
    assert started_at(out) == 8
    assert sums(out, 12) == sums(trained, 12)
    assert losses(out) == losses(trained)


def test_where_every_checkpoint_is_damaged_training_does_not_start_over(
    study: Study, run: Run, trained: Path, tmp_path: Path
) -> None:
    """Row 5."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    for step in checkpoints(out):
        cut_in_half(checkpoint(out, step) / "ema.safetensors")
    before = tree(out)
    newest = checkpoint(out, 12) / "ema.safetensors"
    one_line(run(*study.pretrain(*_THREE), "--out", out), "no checkpoint in", "verifies", str(newest))
    assert tree(out) == before
    one_line(run("checkpoint", "verify", out), *(f"step-{step:08d}/ema.safetensors" for step in (4, 8, 12)))


@pytest.mark.parametrize(
    ("verb", "found"),
    [
        ("pretrain", "nothing"),
        ("finetune", "nothing"),
        ("train_classifier", "nothing"),
        ("pretrain", "an empty directory"),
        ("pretrain", "a store"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused_and_nothing_is_created(
    study: Study, run: Run, tmp_path: Path, verb: str, found: str
) -> None:
    """Row 7."""
    asked = study.store if found == "a store" else tmp_path / "asked"
    if found == "an empty directory":
        asked.mkdir()
    before = tree(tmp_path)
    command = getattr(study, verb)("training.steps=4")
    text = f"{asked}: is no training checkpoint" if found == "a store" else f"no checkpoint in {asked}"
    one_line(run(*command, "--resume", asked, "--out", tmp_path / "run"), text)
    assert tree(tmp_path) == before


def test_an_empty_run_directory_holds_no_checkpoint_and_stays_empty(study: Study, run: Run, tmp_path: Path) -> None:
    """Row 7."""
    one_line(
        run(*study.pretrain("training.steps=4"), "--resume", tmp_path, "--out", tmp_path),
        f"no checkpoint in {tmp_path}",
    )
    assert list(tmp_path.iterdir()) == []


def test_resume_never_refuses_a_run_that_has_checkpoints_and_leaves_it_alone(
    study: Study, run: Run, trained: Path
) -> None:
    """Row 7."""
    before = tree(trained)
    outcome = run(*study.pretrain(*_THREE), "--resume", "never", "--out", trained)
    one_line(outcome, "holds checkpoints up to step 12", "resume is never")
    assert tree(trained) == before


def test_a_named_checkpoint_is_continued_in_another_run(study: Study, run: Run, trained: Path, tmp_path: Path) -> None:
    """Row 7, where the path is right."""
    outcome = run(*study.pretrain(*_THREE), "--resume", checkpoint(trained, 8), "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert events(tmp_path / "run")[0]["step"] == 8
    assert sums(tmp_path / "run", 12) == sums(trained, 12)
