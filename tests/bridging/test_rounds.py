"""Rounds of Markovian fitting: bound to what they begin with, and the same however often they were stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from two_ways import configured, refined, untrained, weights, world

from cellbridge.bridging import fitting
from cellbridge.errors import StoppedBySignal
from cellbridge.training.ema import digest

SCRIPT = Path(__file__).with_name("two_ways.py")


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    monkeypatch.setattr(fitting, "save_grid", lambda *_: None)


def places(out: Path) -> dict[str, bytes]:
    """Return the simulated pairs of each round that lies there."""
    return {path.name: (path / "pairs/pairs.safetensors").read_bytes() for path in sorted(out.glob("rounds/*"))}


def test_rounds_of_older_weights_are_never_taken_for_those_of_newer_ones(tmp_path):
    """As where training.steps is raised: the same directory, other averaged weights."""
    bridge = untrained(world()[0])
    older, newer, config = weights(bridge, seed=1), weights(bridge, seed=2), configured(imf_rounds=1)
    refined(tmp_path / "same", older, config)
    before = places(tmp_path / "same")
    found, taken = refined(tmp_path / "same", newer, config)
    fresh, expected = refined(tmp_path / "fresh", newer, config)
    assert taken == expected
    assert all(torch.equal(found[name], fresh[name]) for name in fresh)
    both, (name,) = places(tmp_path / "same"), places(tmp_path / "fresh")
    assert sorted(both) == sorted([*before, name])
    assert both[name] == places(tmp_path / "fresh")[name]
    told = json.loads((tmp_path / "same/rounds" / name / "origin.json").read_text())
    assert told["weights"] == digest(newer)
    assert name == f"round-1-{told['origin'][:12]}"


@pytest.mark.parametrize("changed", [{"imf_pairs": 7}, {"imf_replay": 0.2}, {"simulation_steps": 5}, {"imf_steps": 3}])
def test_a_round_of_another_setting_is_another_round(tmp_path, monkeypatch, changed):
    begun = []
    monkeypatch.setattr(
        "cellbridge.bridging.rounds.simulated_pairs", lambda *_, folder, **__: begun.append(folder) or 1 / 0
    )
    ema = weights(untrained(world()[0]), seed=1)
    for settings in ({}, changed, {"judged": 8}):
        with pytest.raises(ZeroDivisionError):
            refined(tmp_path, ema, configured(imf_rounds=1, **settings))
    assert begun[0] != begun[1]
    assert begun[0] == begun[2], "how many cells judge changes nothing in what is trained"


def test_a_round_that_comes_nearer_by_more_than_a_standard_error_is_kept(tmp_path):
    """It begins far off, and half of its pairs are the coupling's."""
    ema = weights(untrained(world()[0]), seed=1, off=0.2)
    config = configured(imf_rounds=1, imf_steps=10, training={"learning_rate": 0.03})
    found, (one,) = refined(tmp_path, ema, config)
    assert one["kept"]
    assert one["nearer"] > 5 * one["standard_error"] > 0
    assert one["nearer"] == pytest.approx(one["distance_before"] - one["distance_after"])
    assert not any(torch.equal(found[name], ema[name]) for name in ema)


def test_a_round_that_comes_no_nearer_is_the_last_and_leaves_weights_and_figures_as_they_were(tmp_path):
    """Its steps are so long that they undo whatever was known."""
    ema = weights(untrained(world()[0]), seed=1)
    config = configured(imf_rounds=3, training={"learning_rate": 100.0})
    said = {"gain": 0.1}
    found, (one,) = refined(tmp_path, ema, config, said)
    assert not one["kept"]
    assert one["nearer"] < -one["standard_error"] < 0
    assert all(torch.equal(found[name], ema[name]) for name in ema)
    assert said == {"gain": 0.1}


@pytest.mark.parametrize("where", ["bridging.replay.simulate", "bridging.judging.simulate"])
def test_a_round_asked_to_end_while_it_simulates_or_is_judged_says_so_and_goes_on_to_the_same(
    tmp_path, monkeypatch, where
):
    ema, config = weights(untrained(world()[0]), seed=1), configured(imf_rounds=1)

    signals = [signal.SIGTERM]

    def asked_to_end(model, images, **settings):
        if signals:  # a second one would end the process at once
            os.kill(os.getpid(), signals.pop())
        return images

    with monkeypatch.context() as patched:
        patched.setattr(f"cellbridge.{where}", asked_to_end)
        with pytest.raises(StoppedBySignal, match="the same command goes on from there") as stopped:
            refined(tmp_path / "halves", ema, config)
    assert stopped.value.exit_code == 143
    assert not list(tmp_path.glob("halves/rounds/*/pairs"))
    assert refined(tmp_path / "halves", ema, config)[1] == refined(tmp_path / "whole", ema, config)[1]
    assert places(tmp_path / "halves") == places(tmp_path / "whole")


@pytest.mark.slow
def test_a_round_killed_while_simulating_and_while_training_comes_to_the_same_bytes(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out: Path) -> list[str]:
        return [sys.executable, str(SCRIPT), str(out)]

    def kill_when(ready: Callable[[], bool]) -> None:
        process = subprocess.Popen(command(killed), env=environment, stderr=subprocess.DEVNULL)
        while not ready():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    kill_when(lambda: bool(list(killed.glob("rounds/*/origin.json"))))
    assert not list(killed.glob("rounds/*/pairs")), "killed while it simulated"
    kill_when(lambda: bool(list(killed.glob("rounds/*/checkpoints/step-00000040/manifest.json"))))
    assert not list(killed.glob("rounds/*/metrics.json")), "killed while it trained"
    for out in (killed, whole):
        subprocess.run(command(out), env=environment, check=True, stderr=subprocess.DEVNULL)
    assert places(killed) == places(whole)
    for name in ("metrics.json", "checkpoints/step-00000400/manifest.json"):
        first, second = (next(out.glob(f"rounds/*/{name}")).read_bytes() for out in (killed, whole))
        assert first == second
