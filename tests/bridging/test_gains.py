"""What held-out cells say of a bridge: what its network adds to the linear guess, and whether translations come nearer."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from two_ways import PAIRS, configured, untrained, world

from cellbridge.bridging import fitting
from cellbridge.bridging.approach import Arrival, approach, distance_and_terms
from cellbridge.bridging.cells import BridgeCells, bridge_cells
from cellbridge.bridging.judging import HeldOut, _gain, held_out_pairs, require_judges, without_gain
from cellbridge.data.dataset import CellData
from cellbridge.data.intensity import fit_intensity
from cellbridge.errors import ConfigError
from cellbridge.runs import MANIFEST, RunDir
from cellbridge.stages.fit_bridge import _summary
from cellbridge.training.events import read


def arrival(moved: torch.Tensor, real: torch.Tensor, *, rows: torch.Tensor | None = None) -> Arrival:
    distance, terms = distance_and_terms(moved, real)
    rows = torch.arange(len(terms)) if rows is None else rows
    return Arrival("forward", distance, untouched=0.0, linear=0.0, open_part=0.0, rows=rows, terms=terms)


def test_what_a_cell_says_twice_is_no_second_cell():
    """Of k equal comparisons the error is that of one where the cells are the same, and 1 / sqrt(k) of it where they are others."""
    real, cells = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(2))
    first, second = arrival(cells[:20] + 1, real), arrival(cells[:20], real)
    one = approach([first], [second])
    same, others = (
        approach([first, replace(first, rows=first.rows + shift)], [second, replace(second, rows=second.rows + shift)])
        for shift in (0, 1000)
    )
    assert one.gain == pytest.approx(same.gain) == pytest.approx(others.gain)
    assert same.error == pytest.approx(one.error)
    assert others.error == pytest.approx(one.error / math.sqrt(2))


@pytest.mark.parametrize("reals", [20, 200])
def test_the_standard_error_of_an_approach_is_its_spread_over_worlds(reals):
    """Moved cells and what a second, equally good model makes of the same: 200 worlds of 30 cells and of some real ones, each drawn anew."""
    chance, aside = torch.Generator().manual_seed(0), torch.tensor([0.4, 0.0])
    found = []
    for _ in range(200):
        real, cells = torch.randn(reals, 2, generator=chance), torch.randn(30, 2, generator=chance)
        found.append(approach([arrival(cells + aside, real)], [arrival(cells - aside, real)]))
    gains = np.array([one.gain for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(gains.std(ddof=1), rel=0.2)
    assert np.mean([one.is_sure for one in found]) == pytest.approx(0.16, abs=0.06)


def test_a_gain_within_its_error_or_of_nothing_is_not_sure():
    real = torch.randn(60, 2, generator=torch.Generator().manual_seed(2))
    same = arrival(real[:20] + 1, real[20:])
    assert not approach([same], [same]).is_sure
    assert not approach([], []).is_sure
    assert not approach([same], [replace(same, distance=math.nan, terms=same.terms * math.nan)]).is_sure
    assert approach([same], [arrival(real[:20], real[20:])]).is_sure


def test_a_trained_network_gains_on_its_linear_start_and_an_untrained_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "save_grid", lambda *_: None)
    cells, card = world()
    bridge, config = untrained(cells), configured(training={"steps": 100})
    with torch.no_grad():
        said = HeldOut(bridge, cells.cells, cells.judge, cells.judged, config=config).look()
    figures = [
        said[f"gain{way}"] for way in ("", "_error", "_forward", "_forward_error", "_backward", "_backward_error")
    ]
    assert set(figures) == {0.0}
    assert said["held_out_distance"] == pytest.approx(said["held_out_distance_linear"]), "it is its linear start"
    assert said["held_out_loss"] > 0
    assert "adds nothing to its linear start" in without_gain(said)
    _, trained = fitting.fit_bridge(bridge, cells, card, config=config, run=RunDir(tmp_path), inputs={})
    assert min(trained["gain_forward"], trained["gain_backward"]) > 0.1
    assert trained["gain"] > 5 * trained["gain_error"] > 0
    assert trained["held_out_distance"] < trained["held_out_distance_linear"]
    assert trained["held_out_distance_linear"] == pytest.approx(said["held_out_distance_linear"])
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
    assert "gains 0.000 ± 0.000 forward and 0.000 ± 0.000 backward over saying nothing. Train longer" in texts[0]


def test_a_direction_in_which_the_network_learnt_nothing_is_named():
    learnt = {"gain": 0.1, "gain_error": 0.001, "gain_forward": 0.2, "gain_forward_error": 0.001}
    assert without_gain(learnt) is None, "the other direction is not judged"
    text = without_gain({**learnt, "gain_backward": -4e-5, "gain_backward_error": 0.002})
    assert "it gains 0.000 ± 0.002 backward over saying nothing" in text
    assert "forward" not in text
    assert "0.200 ± inf forward" in without_gain({"gain": 0.2, "gain_forward": 0.2}), "of one cell, which has no error"
    assert without_gain({}) is None


def test_the_error_of_a_gain_is_its_spread_over_the_cells_asked_for_and_not_over_their_pairs():
    """Six cells in fifty pairs each, of which the network does well or badly by all; 300 draws of such cells."""
    chance = np.random.default_rng(0)
    cells, silence = torch.arange(6).repeat(50), torch.ones(300).double()
    worlds = [1 + chance.normal(0, 0.1, 6)[cells] + chance.normal(0, 0.05, 300) for _ in range(300)]
    found = np.array([_gain(torch.from_numpy(losses), silence, cells) for losses in worlds])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(ddof=1), rel=0.15)
    assert math.isnan(_gain(silence, silence, torch.zeros(300).long())[1])


def test_the_error_of_a_gain_of_cells_that_each_stand_in_one_pair_is_that_of_a_mean():
    losses = torch.tensor([0.5, 0.9, 1.3, 0.7]).double()
    gain, error = _gain(losses, 2 * torch.ones(4).double(), torch.tensor([3, 1, 0, 2]))
    assert gain == pytest.approx(1 - 0.85 / 2)
    assert error == pytest.approx(float(losses.std()) / 2 / math.sqrt(4))


def test_no_earlier_figure_is_told_as_a_later_look_s(tmp_path, monkeypatch):
    """The second look finds no number for one of them."""
    monkeypatch.setattr(fitting, "save_grid", lambda *_: None)
    looks = iter([{"gain": 0.3, "held_out_distance": 1.0}, {"held_out_distance": 2.0}])
    monkeypatch.setattr(HeldOut, "look", lambda self: next(looks))
    cells, card = world()
    _, said = fitting.fit_bridge(
        untrained(cells), cells, card, config=configured(looks=2), run=RunDir(tmp_path), inputs={}
    )
    assert said == {"held_out_distance": 2.0}


def of_groups(monkeypatch, groups: list[tuple[str, str, int]]) -> BridgeCells:
    """Return the cells of a bridge to one drug from (plate, condition, number of cells) each."""
    plates, names = (np.array([group[i] for group in groups for _ in range(group[2])], dtype=object) for i in range(2))
    counts = np.random.default_rng(0).integers(500, 3000, (len(names), 1, 8, 8)).astype(np.uint16)
    maps = fit_intensity({plate: counts[plates == plate] for plate in set(plates)}, channels=("DNA",), full_scale=65535)
    labels = torch.from_numpy(np.where(names == "DMSO", -1, 0))
    data = CellData(counts, plates=list(plates), intensity=maps, labels=labels)
    monkeypatch.setattr(CellData, "load", lambda *_, **__: data)
    store = SimpleNamespace(condition_names=names, plates=plates, info=SimpleNamespace(control="DMSO"))
    device = torch.device("cpu")
    return bridge_cells(
        store, np.arange(len(names)), ("drug@1",), config=configured(coupling="independent"), device=device
    )


def test_a_figure_that_rounds_to_nothing_is_shown_without_a_sign(tmp_path):
    cells, card = world()
    (tmp_path / MANIFEST).write_text("{}")
    shown = _summary(tmp_path, cells, untrained(cells), card, said={"gain_backward": -4e-5})
    assert str(shown["gain backward"]) == "0.0"


def test_where_no_held_out_pair_asks_for_a_side_a_note_says_so(monkeypatch):
    few = [(plate, name, 15) for plate in ("P2", "P3") for name in ("DMSO", "drug@1")]
    alone = of_groups(monkeypatch, [("P1", "DMSO", 25), *few])
    assert len(alone.judge) > 0
    assert alone.judged is None, "held-out control cells of a plate without targets have no partner"
    none = of_groups(monkeypatch, few)
    assert none.judged is None
    for cells in (alone, none):
        assert any("no held-out pair asks for DMSO or drug@1, so" in note for note in cells.notes)
    control_only = of_groups(monkeypatch, [("P1", "DMSO", 25), ("P1", "drug@1", 10), *few])
    assert control_only.judged is not None
    assert any("no held-out pair asks for drug@1, so" in note for note in control_only.notes)
    both = of_groups(monkeypatch, [("P1", "DMSO", 25), ("P1", "drug@1", 25)])
    assert not [note for note in both.notes if "held-out" in note]


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
