"""Checkpoints beside training: what is written is the state at its step, and nothing is lost however training ends."""

import os
import signal
import threading
import time

import pytest
import torch
from small_training import batches, digest, events, loss, network

from cellbridge.errors import NumericalError, ResourceError, StoppedBySignal
from cellbridge.runs import RunDir, verify_directory
from cellbridge.training import checkpoint
from cellbridge.training.events import Logged, Saved
from cellbridge.training.loop import LossOutput
from cellbridge.training.saving import CheckpointWriter

save = checkpoint.save


def digests(run, step: int) -> dict[str, str]:
    snapshot = checkpoint.load(RunDir(run).checkpoint(step))
    return {name: digest(getattr(snapshot, name)) for name in checkpoint.TENSORS}


@pytest.fixture
def slow_disk(monkeypatch):
    """Make each checkpoint take 0.2 s more."""

    def slow(*arguments, **options):
        time.sleep(0.2)
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", slow)


@pytest.mark.parametrize("channels_last", [False, True])
def test_checkpoints_are_the_same_written_beside_or_not(tmp_path, channels_last):
    for name, beside in (("beside", True), ("between", False)):
        list(events(tmp_path / name, async_checkpoints=beside, channels_last=channels_last, keep_last=10))
    for step in (4, 8, 12, 16, 20, 24):
        assert digests(tmp_path / "beside", step) == digests(tmp_path / "between", step)


def test_training_goes_on_while_a_checkpoint_is_written_which_holds_its_own_step(tmp_path, monkeypatch):
    two_steps_on, seen = threading.Event(), []

    def watched(step, micro):
        if step == 6:
            two_steps_on.set()
        return batches(step, micro)

    def late(run, snapshot, *, keep_last):
        seen.append(two_steps_on.wait(30))
        return save(run, snapshot, keep_last=keep_last)

    list(events(tmp_path / "plain", async_checkpoints=False, steps=8, decay="constant"))
    monkeypatch.setattr(checkpoint, "save", late)
    list(events(tmp_path / "late", batches=watched, steps=8, decay="constant"))
    assert seen[0]
    assert digests(tmp_path / "late", 4) == digests(tmp_path / "plain", 4)


def test_one_write_at_a_time_and_every_one_is_told_before_the_next_begins(tmp_path, monkeypatch):
    writing, told = [], []

    def counted(run, snapshot, *, keep_last):
        writing.append((snapshot.step, threading.active_count(), list(told)))
        time.sleep(0.02)
        return save(run, snapshot, keep_last=keep_last)

    monkeypatch.setattr(checkpoint, "save", counted)
    for event in events(tmp_path, checkpoint_every=1, steps=6, decay="constant"):
        if isinstance(event, Saved):
            assert verify_directory(event.path) == []
            told.append(event.step)
    assert told == [step for step, _, _ in writing] == [1, 2, 3, 4, 5, 6]
    assert [before for _, _, before in writing] == [told[:step] for step in range(6)]
    assert len({threads for _, threads, _ in writing}) == 1


def test_an_error_of_the_writing_thread_ends_training_with_its_own_kind(tmp_path, monkeypatch):
    def full(run, snapshot, *, keep_last):
        if snapshot.step == 8:
            raise ResourceError("step-00000008: cannot be written (No space left on device)")
        return save(run, snapshot, keep_last=keep_last)

    monkeypatch.setattr(checkpoint, "save", full)
    steps = []
    with pytest.raises(ResourceError, match="No space left"):
        steps += [event.step for event in events(tmp_path, log_every=1)]
    assert max(steps, default=0) <= 12
    assert [step for step, _ in RunDir(tmp_path).saved_checkpoints()] == [4]
    monkeypatch.undo()
    assert next(events(tmp_path)).step == 4


def test_walking_away_waits_for_the_write_before_the_run_is_given_up(tmp_path, slow_disk):
    training = events(tmp_path, log_every=1)
    while not (isinstance(event := next(training), Logged) and event.step == 5):
        pass
    assert RunDir(tmp_path).saved_checkpoints() == []
    training.close()
    assert verify_directory(RunDir(tmp_path).checkpoint(4)) == []
    assert not list(RunDir(tmp_path).checkpoints.glob(".*"))
    assert next(events(tmp_path)).step == 4


def test_a_signal_during_a_write_saves_the_last_step_too(tmp_path, slow_disk):
    def interrupting(step, micro):
        if (step, micro) == (5, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(step, micro)

    with pytest.raises(StoppedBySignal, match=r"saved .*step-00000006"):
        list(events(tmp_path, batches=interrupting))
    assert [step for step, _ in RunDir(tmp_path).saved_checkpoints()] == [4, 6]


def test_the_last_good_checkpoint_may_still_have_been_under_way(tmp_path, slow_disk):
    calls = []

    def poisoned(module, batch):
        calls.append(1)
        output = loss(module, batch)
        return LossOutput(output.loss * float("nan")) if len(calls) == 10 else output

    with pytest.raises(NumericalError, match=r"step 5 .*Last good checkpoint: .*step-00000004"):
        list(events(tmp_path, loss=poisoned))


def test_the_share_of_time_spent_waiting_for_checkpoints_is_logged(tmp_path, slow_disk):
    def stalls(name: str, **settings) -> list[float]:
        options = {"log_every": 4, "steps": 12, "decay": "constant", "checkpoint_every": 6, **settings}
        return [e.values["checkpoint_stall"] for e in events(tmp_path / name, **options) if isinstance(e, Logged)]

    first, second, _ = stalls("between", async_checkpoints=False)
    assert first < 0.1
    assert 0.5 < second <= 1.0
    assert all(share < 0.5 for share in stalls("beside")[:2])


def test_buffers_are_used_again(tmp_path, monkeypatch):
    places = []

    def noting(run, snapshot, *, keep_last):
        places.append({name: tensor.data_ptr() for name, tensor in snapshot.weights.items()})
        return save(run, snapshot, keep_last=keep_last)

    monkeypatch.setattr(checkpoint, "save", noting)
    module = network()
    list(events(tmp_path, module=module))
    assert len({tuple(place.values()) for place in places}) == 1
    assert not set(places[0].values()) & {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert torch.equal(checkpoint.load(RunDir(tmp_path).checkpoint(24)).weights["3.weight"], module[3].weight)


def test_without_memory_for_the_copy_checkpoints_are_written_all_the_same(tmp_path, monkeypatch):
    def none_left(writer, name, tensor):
        raise MemoryError

    list(events(tmp_path / "plain"))
    monkeypatch.setattr(CheckpointWriter, "_host_copy", none_left)
    list(events(tmp_path / "short"))
    assert digests(tmp_path / "short", 24) == digests(tmp_path / "plain", 24)
