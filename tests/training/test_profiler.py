"""Claims about `training.profile`: a trace that names the parts of a step, and the same numbers with it."""

import json
import resource

import pytest
from small_training import digest, events, until

from cellbridge.errors import ResourceError
from cellbridge.runs import RunDir
from cellbridge.training import checkpoint
from cellbridge.training.events import Profiled, read, show

REGIONS = {"data", "forward", "backward", "optimizer", "ema"}


def names(path):
    return [entry.get("name") for entry in json.loads(path.read_text())["traceEvents"]]


def test_the_trace_names_the_parts_of_three_steps_and_the_table_what_they_called(tmp_path):
    told = [event for event in events(tmp_path, profile=True) if isinstance(event, Profiled)]
    folder = RunDir(tmp_path).profile
    assert told == [Profiled(15, folder / "step-00000015.pt.trace.json")]
    found = names(told[0].path)
    assert {name: found.count(name) for name in REGIONS} == {
        "data": 6,
        "forward": 6,
        "backward": 6,
        "optimizer": 3,
        "ema": 3,
    }
    table = (folder / "kernels.txt").read_text()
    assert "aten::addmm" in table
    assert "Self CPU" in table
    assert {path.name for path in folder.iterdir()} == {told[0].path.name, "kernels.txt"}


def test_a_profiled_training_has_the_numbers_of_any_other(tmp_path):
    for name in ("plain", "traced"):
        list(events(tmp_path / name, profile=name == "traced"))
    plain, traced = (checkpoint.load(RunDir(tmp_path / name).checkpoint(24)) for name in ("plain", "traced"))
    assert digest(plain.ema) == digest(traced.ema)
    assert digest(plain.optimizer) == digest(traced.optimizer)
    assert not RunDir(tmp_path / "plain").profile.exists()


@pytest.mark.filterwarnings("ignore:Profiler won't be using warmup")
@pytest.mark.parametrize(("left", "traced"), [(1, 1), (2, 1), (4, 2)])
def test_the_last_steps_of_a_training_are_traced_however_few(tmp_path, left, traced):
    until(tmp_path, 20, steps=20 + left, decay="constant")
    told = [e for e in events(tmp_path, profile=True, steps=20 + left, decay="constant") if isinstance(e, Profiled)]
    assert [event.step for event in told] == [20 + left]
    assert names(told[0].path).count("ema") == traced


def test_where_the_trace_lies_is_told(tmp_path, capsys):
    show(events(tmp_path, profile=True), run=RunDir(tmp_path), description="test", total=24, images_per_step=8)
    assert "profile in " + str(RunDir(tmp_path).profile / "step-00000015.pt.trace.json") in capsys.readouterr().err
    told = [entry for entry in read(RunDir(tmp_path).events) if entry["event"] == "profiled"]
    assert told == [{"event": "profiled", "step": 15, "profile": "profile/step-00000015.pt.trace.json"}]


def test_a_trace_that_finds_the_disk_full_ends_the_training_in_words_and_leaves_nothing(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
    try:
        with pytest.raises(ResourceError, match=r"trace cannot be written \(\d+ bytes free\)"):
            list(events(tmp_path, profile=True, async_checkpoints=False, checkpoint_every=24))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(RunDir(tmp_path).profile.iterdir()) == []
