"""The suite at its smallest size: its structure and arithmetic are judged, its numbers are not."""

import json

import pytest
import torch
from bridge import PARTS, Size, _limit, plans
from bridge_cells import Cell, measured
from bridge_pairs import make_pair

from cellbridge.metrics.plans import Conditionals, conditional_uvp, marginal_uvp

TINY = Size(dimensions=(2,), regs=(1.0,), seeds=1, points=300, seconds=0.5)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "curved"])
def test_pairs_have_the_conditionals_and_the_target_that_they_say(kind: str) -> None:
    pair, chance = make_pair(kind, 3, reg=0.5, seed=0), torch.Generator().manual_seed(0)
    sources = pair.source(10, chance)
    draws = pair.carried(sources.repeat_interleave(4000, 0), chance).view(10, 4000, 3)
    assert conditional_uvp(draws, pair.conditionals(sources), target_variance=float(pair.covariance.trace())) < 0.2
    assert marginal_uvp(pair.target(20_000, chance), pair.mean, pair.covariance) < 0.2
    assert isinstance(pair.conditionals(sources), Conditionals)


def test_a_measurement_is_kept_and_read_back(tmp_path) -> None:
    cell = Cell("gaussian", 2, 1.0, 0, "floor", 300, 0.5)
    found = measured(cell, tmp_path)
    path = tmp_path / f"{cell.name}.json"
    assert json.loads(path.read_text())["conditional_uvp"] == found["conditional_uvp"]
    path.write_text(json.dumps(found | {"conditional_uvp": -1.0}))
    assert measured(cell, tmp_path)["conditional_uvp"] == -1.0


@pytest.mark.slow
def test_every_solver_has_a_row_and_goals_follow_from_the_peer() -> None:
    pytest.importorskip("torchcfm")
    found = plans("mixture", TINY, torch.device("cpu"))
    rows = {row["claim"]: row for row in found["rows"]}
    for solver in ("neural", "mixture", "sf2m", "sb_cfm", "lightsb", "floor", "independent", "identity"):
        assert rows[f"mixture d=2 reg=1 {solver}"]["value"] is not None
    assert rows["mixture d=2 reg=1 neural"]["goal"].startswith("≤")
    assert list(PARTS) == ["gaussian", "mixture", "curved", "fields", "coupling"]


def test_the_limit_is_the_peer_or_a_standard_error_above_it_near_the_floor() -> None:
    assert _limit([1.0, 1.0], [9.0, 11.0], floor=1.0) == 10.0
    assert _limit([1.0, 1.0], [1.0, 2.0], floor=1.0) == pytest.approx(1.5 + 0.5)
