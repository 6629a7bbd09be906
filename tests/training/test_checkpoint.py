import multiprocessing
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_training import digest, events, until

from cellbridge.errors import CheckpointError, ResourceError, RunError
from cellbridge.runs import RunDir, verify_directory
from cellbridge.training import checkpoint
from cellbridge.training.checkpoint import Snapshot

TENSOR_FILES = ("weights", "ema", "optimizer", "window")


def snapshot(step: int, values: int = 10) -> Snapshot:
    tensors = {"w": torch.arange(values, dtype=torch.float32) + step}
    empty = {"losses": torch.zeros(0), "gradient_norms": torch.zeros(0)}
    return Snapshot(step, {"seed": 0}, {"data": "x"}, weights=tensors, ema=tensors, optimizer={}, window=empty)


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_what_is_loaded_is_what_was_saved(tmp_path):
    path = checkpoint.save(RunDir(tmp_path), snapshot(3), keep_last=2)
    loaded = checkpoint.load(path)
    assert loaded.step == 3
    assert torch.equal(loaded.weights["w"], torch.arange(10.0) + 3)
    assert digest(loaded.window) == digest(snapshot(3).window)
    assert not list(tmp_path.rglob("*.pkl")) + list(tmp_path.rglob("*.pt"))


def test_retention_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(RunDir(tmp_path), snapshot(step), keep_last=2)
    assert [step for step, _ in RunDir(tmp_path).saved_checkpoints()] == [3, 4]


def test_a_checkpoint_that_does_not_verify_replaces_none(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    checkpoint.save(run, snapshot(1), keep_last=1)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "verify_directory", lambda path: [f"{path}/ema.safetensors: sha256 differs"])
        with pytest.raises(CheckpointError, match="earlier checkpoints were kept"):
            checkpoint.save(run, snapshot(2), keep_last=1)
    assert verify_directory(run.checkpoint(1)) == []


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_damaged_newest_falls_back_with_a_warning_that_names_the_file(tmp_path, name):
    until(tmp_path, 12)
    halve(RunDir(tmp_path).checkpoint(12) / f"{name}.safetensors")
    started = next(events(tmp_path))
    assert started.step == 8
    assert f"step-00000012/{name}.safetensors" in started.warnings[0]


def test_missing_manifest_counts_as_damage(tmp_path):
    until(tmp_path, 12)
    (RunDir(tmp_path).checkpoint(12) / "manifest.json").unlink()
    assert next(events(tmp_path)).step == 8


def test_a_flipped_bit_is_found(tmp_path):
    path = checkpoint.save(RunDir(tmp_path), snapshot(1), keep_last=1) / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: sha256 differs"):
        checkpoint.load(path.parent)


def test_training_never_starts_over_by_itself(tmp_path):
    until(tmp_path, 12)
    for _, path in RunDir(tmp_path).saved_checkpoints():
        halve(path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* verifies"):
        next(events(tmp_path))


def test_explicit_path_is_followed_or_refused_creating_nothing(tmp_path):
    until(tmp_path / "first", 12)
    assert next(events(tmp_path / "second", resume=RunDir(tmp_path / "first").checkpoint(8))).step == 8
    assert next(events(tmp_path / "third", resume=tmp_path / "first")).step == 12
    for missing in (tmp_path / "absent", tmp_path / "new"):
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            next(events(tmp_path / "new", resume=missing))
    assert not (tmp_path / "new").exists()


def test_a_run_that_went_on_from_another_continues_from_its_own_checkpoints_at_the_same_command(tmp_path):
    until(tmp_path / "first", 8)
    for begins in (8, 12):
        started = next(events(tmp_path / "second", resume=tmp_path / "first"))
        assert started.step == begins
        until(tmp_path / "second", begins + 4, resume=tmp_path / "first")
    assert "has checkpoints of its own" in started.warnings[0]
    assert next(events(tmp_path / "second", resume=RunDir(tmp_path / "second").checkpoint(12))).step == 12


def test_of_two_sections_the_settings_that_differ_are_named():
    there = {"settings.network": '{"widths": [8], "dit": {"depth": 4}, "dropout": 0.0}', "data": "a" * 64}
    now = {"settings.network": '{"widths": [16], "dit": {"depth": 4}, "dropout": 0.1}', "data": "b" * 64}
    saved = Snapshot(1, {}, there, weights={}, ema={}, optimizer={}, window={})
    assert checkpoint.differences(saved, settings={}, identity=now) == [
        "settings.network.widths: [8] there, [16] now",
        "settings.network.dropout: 0.0 there, 0.1 now",
        "data: aaaaaaaaaaaa… there, bbbbbbbbbbbb… now",
    ]


def test_never_refuses_to_overwrite(tmp_path):
    until(tmp_path, 8, resume="never")
    with pytest.raises(RunError, match="holds checkpoints up to step 8"):
        next(events(tmp_path, resume="never"))


def test_leftovers_of_killed_saves_are_cleared_and_moved_results_go_back(tmp_path):
    until(tmp_path, 8)
    run = RunDir(tmp_path)
    (run.checkpoints / ".step-00000012.999.tmp").mkdir()
    run.checkpoint(8).rename(run.checkpoints / ".step-00000008.999.old")
    assert next(events(tmp_path)).step == 8
    assert not list(run.checkpoints.glob(".*"))


def test_full_disk_leaves_the_earlier_checkpoint_and_no_temporary(tmp_path):
    run = RunDir(tmp_path)
    checkpoint.save(run, snapshot(1), keep_last=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            ResourceError, match=r"step-00000002: cannot be written \(File too large; \d+ bytes free\)"
        ) as error:
            checkpoint.save(run, snapshot(2, values=100_000), keep_last=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == 4
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000001"]
    assert verify_directory(run.checkpoint(1)) == []


def start(run: Path, seconds_per_batch: float) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("small_training.py")), str(run), str(seconds_per_batch)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_process_resumes_bit_for_bit(tmp_path):
    list(events(tmp_path / "whole"))
    run = RunDir(tmp_path / "killed")
    process = start(run.path, 0.05)
    wait_for(run.checkpoint(12), process)
    process.kill()
    process.communicate()
    assert not run.checkpoint(24).exists()
    again = start(run.path, 0.0)
    assert again.wait() == 0, again.stderr.read()
    for name in TENSOR_FILES:
        files = [r.checkpoint(24) / f"{name}.safetensors" for r in (RunDir(tmp_path / "whole"), run)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_kills_at_random_times_during_saves_never_cost_the_run(tmp_path):
    run, resumed_from = RunDir(tmp_path / "killed"), [0]
    settings = {"checkpoint_every": 1, "keep_last": 1, "steps": 400, "decay": "constant"}
    chance = random.Random(0)
    for _ in range(20):
        child = multiprocessing.get_context("fork").Process(target=lambda: list(events(run.path, **settings)))
        child.start()
        time.sleep(0.1 + 0.3 * chance.random())
        child.kill()
        child.join()
        saved = run.saved_checkpoints()
        assert len(saved) <= 2
        training = events(run.path, **settings)
        started = next(training)
        training.close()
        assert started.warnings == ()
        assert started.step >= max(resumed_from)
        assert started.step > 0 or not saved
        resumed_from.append(started.step)
    assert resumed_from[-1] > 0
    assert not list(run.checkpoints.glob(".*"))


@pytest.mark.slow
def test_second_signal_leaves_at_once_with_checkpoints_intact(tmp_path):
    run = RunDir(tmp_path)
    process = start(run.path, 120.0)
    wait_for(run.events, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(2.0)  # sooner, it would be taken for an echo of the first
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)  # half of the batch that it would wait for
    assert process.returncode == 128 + signal.SIGTERM
    assert all(verify_directory(path) == [] for _, path in run.saved_checkpoints())
