"""What held-out cells say of a bridge: what its network adds to the linear guess, and whether translations come nearer."""

import math

import numpy as np
import pytest
import torch
from two_ways import PAIRS, configured, untrained, world

from cellbridge.bridging import fitting
from cellbridge.bridging.judging import Arrival, HeldOut, approach, held_out_pairs, require_judges, without_gain
from cellbridge.errors import ConfigError
from cellbridge.metrics.plans import energy_and_terms
from cellbridge.runs import RunDir
from cellbridge.training.events import read


def arrival(moved: torch.Tensor, real: torch.Tensor, direction: str = "forward") -> Arrival:
    distance, terms = energy_and_terms(moved, real)
    return Arrival(direction, distance, 0.0, 0.0, terms)


def test_the_standard_error_of_an_approach_is_its_spread_over_worlds():
    """Moved cells and what a second model makes of the same cells: 150 worlds of 30 cells, and their own standard deviation."""
    chance = torch.Generator().manual_seed(0)
    real = torch.randn(200, 2, generator=chance)
    found = []
    for _ in range(150):
        cells, blur = torch.randn(2, 30, 2, generator=chance)
        first, second = cells + 0.6 + 0.3 * blur, 1.2 * cells + 0.4
        found.append(approach([arrival(first, real)], [arrival(second, real)]))
    gains = np.array([one.gain for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(gains.std(ddof=1), rel=0.2)


def test_a_gain_within_its_error_or_of_nothing_is_not_sure():
    real = torch.randn(60, 2, generator=torch.Generator().manual_seed(2))
    same = arrival(real[:20] + 1, real[20:])
    assert not approach([same], [same]).is_sure
    assert not approach([], []).is_sure
    assert not approach([same], [Arrival("forward", math.nan, 0.0, 0.0, same.terms * math.nan)]).is_sure
    assert approach([same], [arrival(real[:20], real[20:])]).is_sure


def test_a_trained_network_gains_on_its_linear_start_and_an_untrained_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "save_grid", lambda *_: None)
    cells, card = world()
    bridge, config = untrained(cells), configured(training={"steps": 100})
    with torch.no_grad():
        said = HeldOut(bridge, cells.cells, cells.judge, cells.judged, config=config).look()
    assert {said[name] for name in ("gain", "gain_forward", "gain_backward", "gain_error")} == {0.0}
    assert said["held_out_loss"] > 0
    assert "adds nothing to its linear start" in without_gain(said)
    assert "0.200 ± inf" in without_gain({"gain": 0.2}), "of one pair, which has no error"
    _, trained = fitting.fit_bridge(bridge, cells, card, config=config, run=RunDir(tmp_path), inputs={})
    assert min(trained["gain_forward"], trained["gain_backward"]) > 0.1
    assert trained["gain"] > 5 * trained["gain_error"] > 0
    told = read(RunDir(tmp_path).events)
    assert [event["gain"] for event in told if event["event"] == "judged"] == [trained["gain"]]
    assert not [event for event in told if event["event"] == "warned"]


def test_a_training_that_learns_nothing_ends_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "save_grid", lambda *_: None)
    cells, card = world()
    config = configured(training={"steps": 1, "learning_rate": 1e-12})
    fitting.fit_bridge(untrained(cells), cells, card, config=config, run=RunDir(tmp_path), inputs={})
    texts = [event["text"] for event in read(RunDir(tmp_path).events) if event["event"] == "warned"]
    assert len(texts) == 1
    assert "gains 0.000 ± 0.000 over saying nothing. Train longer" in texts[0]


def test_held_out_pairs_are_those_of_all_cells_of_which_one_did_not_train():
    source, target = np.array([0, 1, 2, 3]), np.array([7, 4, 5, 6])
    turns = np.arange(4)
    pairs, count = held_out_pairs(lambda epoch: (source, target, turns), np.array([1, 6]))
    assert count == 2
    assert [part.tolist() for part in pairs(5)] == [[1, 3], [4, 6], [1, 3]]


def test_rounds_that_too_few_held_out_cells_could_judge_are_refused_naming_them():
    cells, card = world()
    all_of_drug = np.arange(PAIRS, 2 * PAIRS)
    with pytest.raises(ConfigError, match=r"3 cells of DMSO are held out where 4 are needed\. Raise bridge\.held_out"):
        require_judges(cells.cells, np.concatenate([np.arange(3), all_of_drug]), card.conditions)
    require_judges(cells.cells, cells.judge, card.conditions)
    found = HeldOut(untrained(cells), cells.cells, np.arange(3), None, config=configured()).look()
    assert found == {}, "nothing is said where there are no such cells, and nothing that is no number"
