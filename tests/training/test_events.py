import errno
import io
import json
import math
import resource
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_training import SETTINGS, batches, events, loss, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cellbridge.config import TrainingConfig
from cellbridge.errors import NumericalError
from cellbridge.runs import RunDir
from cellbridge.training import monitors
from cellbridge.training.board import Board
from cellbridge.training.events import Logged, Started, read, show, truncate, with_logarithms
from cellbridge.training.loop import LossOutput
from cellbridge.training.optim import learning_rate


def shown(run, training=None, **options):
    training = events(run) if training is None else training
    return show(training, run=RunDir(run), description="test", total=24, images_per_step=8, **options)


def test_logarithms_are_given_for_losses_only():
    values = with_logarithms({"loss": math.e, "loss/t000-099": 1.0, "gradient_norm": 2.0, "loss/none": 0.0})
    assert values["log_loss"] == pytest.approx(1.0)
    assert values["log_loss/t000-099"] == 0.0
    assert "log_gradient_norm" not in values
    assert "log_loss/none" not in values
    assert with_logarithms({"log_loss/t0": -3.0, "loss/t0": 1.0})["log_loss/t0"] == -3.0


def test_truncation_drops_later_steps_torn_lines_and_an_earlier_end(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [json.dumps({"event": "logged", "step": step}) for step in (5, 10, 15)]
    path.write_text("\n".join([*lines, json.dumps({"event": "finished", "step": 10}), '{"event": "logg']))
    truncate(path, after_step=10)
    assert [entry["step"] for entry in read(path)] == [5, 10]


def test_bytes_that_are_no_text_spoil_their_own_line_only(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "logged", "step": 5}\n\xff\xfe{"event"')
    truncate(path, after_step=10)
    assert path.read_bytes() == b'{"event": "logged", "step": 5}\n'


def test_a_lost_terminal_loses_words_and_no_training(tmp_path, monkeypatch):
    class Lost(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Lost())
    assert shown(tmp_path / "run", facts={"cells": 3}).step == 24


def test_no_loss_stands_twice_after_a_resume(tmp_path):
    shown(tmp_path / "whole")
    training = events(tmp_path / "parts")

    def cut_at_17():
        for event in training:
            yield event
            if isinstance(event, Logged) and event.step == 15:
                training.close()
                raise NumericalError("torn away")

    with pytest.raises(NumericalError):
        shown(tmp_path / "parts", cut_at_17())
    shown(tmp_path / "parts")
    logged = [
        [(e["step"], e["loss"], e["loss/low"]) for e in read(RunDir(tmp_path / name).events) if e["event"] == "logged"]
        for name in ("whole", "parts")
    ]
    assert logged[0] == logged[1]


def test_tensorboard_holds_each_value(tmp_path):
    shown(tmp_path)
    board = EventAccumulator(str(RunDir(tmp_path).tensorboard)).Reload()
    assert {
        "loss",
        "log_loss",
        "loss/low",
        "log_loss/low",
        "learning_rate",
        "gradient_norm",
        "images_per_second",
        "memory_gib",
    } <= set(board.Tags()["scalars"])
    assert [scalar.step for scalar in board.Scalars("loss")] == [5, 10, 15, 20, 24]


def test_tensorboard_hides_what_was_logged_after_the_step_that_training_continues_from(tmp_path):
    for step, told in ((0, {5: 1.0, 10: 2.0, 15: 3.0}), (10, {15: 4.0})):
        board = Board(tmp_path, after_step=step)
        for k, value in told.items():
            board.add(k, {"loss": value, "other/name": -value})
        board.close()
    seen = EventAccumulator(str(tmp_path)).Reload()
    for name, sign in (("loss", 1), ("other/name", -1)):
        assert [(s.step, sign * s.value) for s in seen.Scalars(name)] == [(5, 1.0), (10, 2.0), (15, 4.0)]


def test_what_was_told_to_tensorboard_is_on_disk_at_once(tmp_path):
    board = Board(tmp_path, after_step=0)
    board.add(5, {"loss": 1.0})
    assert [s.value for s in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")] == [1.0]
    board.close()


@pytest.mark.parametrize("full", ["events", "board"])
def test_a_full_disk_is_told_by_an_error_of_this_thread_alone(tmp_path, monkeypatch, capfd, full):
    """Where events.jsonl or TensorBoard's file lie on a device that is always full."""
    opened = Path.open

    def on_full_disk(path, *arguments, **options):
        hit = "tfevents" in path.name if full == "board" else path.name == "events.jsonl"
        return open("/dev/full", "wb" if full == "board" else "w") if hit else opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", on_full_disk)
    threads = threading.active_count()
    with pytest.raises(OSError, match="No space left") as error:
        shown(tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert "Traceback" not in capfd.readouterr().err
    assert threading.active_count() == threads


def test_samples_are_asked_for_with_the_average_and_at_the_end(tmp_path):
    seen = {}
    finished = shown(tmp_path, events(tmp_path, sample_every=10), on_sample=lambda step, ema: seen.update({step: ema}))
    assert list(seen) == [10, 20, 24]
    assert all(torch.equal(seen[24][name], value) for name, value in finished.ema.items())


def test_an_error_in_a_sample_frees_the_run(tmp_path):
    def broken(step, ema):
        raise ValueError("no space for a picture")

    with pytest.raises(ValueError, match="picture"):
        shown(tmp_path, on_sample=broken)
    assert isinstance(next(events(tmp_path)), Started)


def test_lines_for_a_log_file_carry_loss_speed_memory_and_warnings(tmp_path, capsys):
    until(tmp_path, 12)
    (RunDir(tmp_path).checkpoint(12) / "ema.safetensors").write_bytes(b"")
    shown(tmp_path)
    written = capsys.readouterr().err
    assert "WARNING: " in written
    assert "ema.safetensors" in written
    assert "24/24 steps" in written
    assert "images/s" in written
    assert "GiB" in written


def alarmed(values):
    return "too low" if values["loss"] < 1e9 else None


def test_an_alarm_is_told_once_a_run_and_not_of_an_untrained_network(tmp_path, capsys, monkeypatch):
    shown(tmp_path / "short", alarm=alarmed)  # 24 steps teach a network little
    assert "WARNING" not in capsys.readouterr().err
    monkeypatch.setattr("cellbridge.training.events._EARLIEST", 1)
    until(tmp_path, 4)
    training = events(tmp_path)

    def cut_at_15():
        for event in training:
            yield event
            if isinstance(event, Logged) and event.step == 15:
                training.close()
                raise NumericalError("torn away")

    with pytest.raises(NumericalError):
        shown(tmp_path, cut_at_15(), alarm=alarmed)
    shown(tmp_path, alarm=alarmed)
    warned = [entry for entry in read(RunDir(tmp_path).events) if entry["event"] == "warned"]
    assert warned == [{"event": "warned", "step": 10, "text": "step 10: too low"}]  # 5 of 24 is less than a quarter
    assert capsys.readouterr().err.count("WARNING: step 10: too low") == 1


def test_a_warning_of_the_start_stands_in_the_events(tmp_path):
    until(tmp_path, 12)
    (RunDir(tmp_path).checkpoint(12) / "ema.safetensors").write_bytes(b"")
    shown(tmp_path)
    started = [entry for entry in read(RunDir(tmp_path).events) if entry["event"] == "started"]
    assert "ema.safetensors" in started[-1]["warnings"][0]


def test_every_figure_of_speed_and_memory_is_logged_and_right(tmp_path, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(monitors, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))

    def fetched(step, micro):
        seconds[0] += 0.03
        return batches(step, micro)

    def computed(module, batch):
        seconds[0] += 0.01
        return loss(module, batch)

    given = {"batches": fetched, "loss": computed, "steps": 10, "accumulation": 1, "checkpoint_every": 10}
    shown(tmp_path, events(tmp_path, **given))
    first, last = (entry for entry in read(RunDir(tmp_path).events) if entry["event"] == "logged")
    assert last["data_wait"] == pytest.approx(0.75)
    assert last["images_per_second"] == pytest.approx(8 / 0.04)
    assert last["learning_rate"] == learning_rate(10, TrainingConfig(**SETTINGS | {"steps": 10}))
    assert last["learning_rate"] < first["learning_rate"]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert last["host_memory_gib"] == last["memory_gib"] == pytest.approx(resident, rel=0.2)


def test_the_gradient_norm_is_that_of_the_whole_gradient_before_clipping(tmp_path):
    def plain(module, batch):
        return LossOutput(100 * module(batch).square().mean())

    def module():
        torch.manual_seed(3)
        return torch.nn.Linear(6, 1)

    net = module()
    (100 * net(torch.cat([batches(0, 0), batches(0, 1)])).square().mean()).backward()
    expected = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
    seen = events(tmp_path, module=module(), loss=plain, steps=1, gradient_clip=0.1)
    logged = next(event for event in seen if isinstance(event, Logged))
    assert logged.values["gradient_norm"] == pytest.approx(expected, rel=1e-5)
