"""Claims about trackers: off unless asked for, refused before anything is created, and told every value at its step."""

import pytest
import yaml
from small_training import events, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cellbridge.cli import main
from cellbridge.errors import ConfigError
from cellbridge.runs import RunDir
from cellbridge.training.events import read, show
from cellbridge.training.trackers import flattened


def tracked(run, **settings):
    told = {"training": {"steps": 24}, "store": None, "plates": ("a", "b")}
    show(
        events(run, **settings),
        run=RunDir(run),
        description="test",
        total=24,
        images_per_step=8,
        trackers=settings.get("trackers", ()),
        settings=told,
    )


def test_a_tracker_gets_every_logged_value_once_and_the_settings(tmp_path):
    until(tmp_path, 12)
    tracked(tmp_path, trackers=("tensorboard",))
    folder = RunDir(tmp_path).trackers / "cellbridge"
    board = EventAccumulator(str(folder)).Reload()
    logged = [entry for entry in read(RunDir(tmp_path).events) if entry["event"] == "logged" and entry["step"] > 12]
    assert [entry["step"] for entry in logged] == [15, 20, 24]
    for name in logged[0].keys() - {"event", "step"}:
        told = {scalar.step: scalar.value for scalar in board.Scalars(name)}
        assert told == pytest.approx({entry["step"]: entry[name] for entry in logged}, rel=1e-5)
    settings = yaml.safe_load(next(folder.glob("*/hparams.yml")).read_text())
    assert settings == {"training.steps": 24, "store": "None", "plates": "('a', 'b')"}


def test_no_tracker_is_used_unless_asked_for(tmp_path):
    tracked(tmp_path)
    assert not RunDir(tmp_path).trackers.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", 'there is no tracker "tensorbord". Did you mean "tensorboard"?'),
        ("wandb", "Run `pip install wandb`"),
    ],
)
def test_an_unknown_or_absent_tracker_is_refused_before_anything_is_created(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["tensorboard"])
    with pytest.raises(ConfigError) as refused:
        tracked(tmp_path / "run", trackers=(name,))
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_the_command_line_asks_for_trackers_and_a_profile(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("cellbridge.stages.pretrain.run", lambda config, *, out: seen.append(config.training) or {})
    command = ["pretrain", "--store", "store.zarr", "--out", str(tmp_path / "run")]
    assert main([*command, "--tracker", "wandb", "--tracker", "mlflow", "--profile"]) == 0
    assert main(command) == 0
    assert [(training.trackers, training.profile) for training in seen] == [(("wandb", "mlflow"), True), ((), False)]


def test_settings_are_told_under_dotted_keys_as_plain_values():
    assert flattened({"a": {"b": {"c": 1.5}}, "d": True, "e": [1, 2]}) == {"a.b.c": 1.5, "d": True, "e": "[1, 2]"}
