import json
import math

import pytest
import torch
from small_training import events, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cellbridge.errors import NumericalError
from cellbridge.runs import RunDir
from cellbridge.training.events import Logged, Started, read, show, truncate, with_logarithms


def shown(run, training=None, **options):
    training = events(run) if training is None else training
    return show(training, run=RunDir(run), description="test", total=24, images_per_step=8, **options)


def test_logarithms_are_given_for_losses_only():
    values = with_logarithms({"loss": math.e, "loss/t000-099": 1.0, "gradient_norm": 2.0, "loss/none": 0.0})
    assert values["log_loss"] == pytest.approx(1.0)
    assert values["log_loss/t000-099"] == 0.0
    assert "log_gradient_norm" not in values
    assert "log_loss/none" not in values


def test_truncation_drops_later_steps_torn_lines_and_an_earlier_end(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [json.dumps({"event": "logged", "step": step}) for step in (5, 10, 15)]
    path.write_text("\n".join([*lines, json.dumps({"event": "finished", "step": 10}), '{"event": "logg']))
    truncate(path, after_step=10)
    assert [entry["step"] for entry in read(path)] == [5, 10]


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
