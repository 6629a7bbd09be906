"""The suite at its smallest size: its structure and arithmetic are judged, its numbers are not."""

import contextlib
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
import train
from claims import not_measured, row
from device_limit import against_peak
from engine_turns import WARM_UP, Duel, EnoughError, Turns
from rivals import BareLoop, ExampleLoop
from sizes import SMALLEST, TINY

from cellbridge.errors import ConfigError
from cellbridge.training.events import Event, Finished, Logged, Saved, Started

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def problem():
    return SMALLEST.problem(TINY, batch=4, device=CPU)


@pytest.fixture(scope="module")
def measured():
    return train.measure(None, size=SMALLEST, device=CPU)


def test_every_part_gives_rows_seconds_and_peaks(measured) -> None:
    assert list(measured["parts"]) == list(train.PARTS)
    for part in measured["parts"].values():
        assert part["seconds"] > 0
        assert part["peak_memory_gib"]["host"] > 0
        for line in part["rows"]:
            assert set(line) - {"why"} == {"claim", "value", "interval", "unit", "goal", "met"}
            if line["interval"] is not None:
                low, high = line["interval"]
                assert low <= high


def test_every_verdict_follows_from_its_value_and_goal(measured) -> None:
    judged = [line for part in measured["parts"].values() for line in part["rows"] if line["goal"] is not None]
    assert len(judged) >= 8
    for line in judged:
        sign, goal = line["goal"].split()
        assert line["met"] == (line["value"] >= float(goal) if sign == "≥" else line["value"] <= float(goal))


def test_blocks_that_a_checkpoint_disturbed_are_told_apart(measured) -> None:
    details = measured["parts"]["step"]
    assert len(details["checkpoint_seconds"]) + details["pairs"] == SMALLEST.blocks
    assert len(details["checkpoint_seconds"]) > 0


def test_both_are_judged_by_the_held_out_loss_over_seeds(measured) -> None:
    losses = measured["parts"]["best"]["held_out"]
    ours, theirs = (np.array(losses[name]["seeds"]) for name in ("engine", "example"))
    assert len(ours) == SMALLEST.seeds
    assert losses["difference"]["mean"] == pytest.approx((ours - theirs).mean())
    assert 0.2 < ours.mean() < 2.0


def test_without_a_device_its_part_says_so(measured) -> None:
    assert measured["parts"]["device"]["rows"] == [not_measured("images/s and MFU at 64 px", "no CUDA device")]


def test_an_unknown_part_is_named_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match='no part "stop"'):
        train.measure(["step", "stop"], size=SMALLEST, device=CPU)


def test_goals_are_bounds_and_a_value_that_is_not_finite_is_none() -> None:
    assert row("a", 0.97, at_least=0.97)["met"] is True
    assert row("a", 0.0501, at_most=0.05)["met"] is False
    assert row("a", 1.0)["met"] is None
    assert row("a", float("nan"), interval=(0.0, float("inf")), at_least=1.0)["value"] is None
    assert row("a", float("nan"), at_least=1.0)["met"] is False


def test_the_rivals_learn_as_the_engine_does(problem) -> None:
    network = problem.build()
    before = problem.held_out_loss(network)
    assert problem.held_out_loss(network) == before
    example = ExampleLoop(
        network, problem.as_the_engine(), schedule=problem.schedule, learning_rate=lambda step: 1e-2 / step
    )
    for _ in range(30):
        example()
    assert problem.held_out_loss(network) < before
    bare = BareLoop(problem.build(), problem.in_memory(), schedule=problem.schedule, dtype=torch.float32)
    for _ in range(30):
        bare()
    assert problem.held_out_loss(bare.network) < before


def test_the_share_of_the_peak_is_images_per_second_over_the_limit(problem, monkeypatch) -> None:
    monkeypatch.setattr("device_limit._STRATEGIES", ("none",))
    (rate, share, best), details = against_peak(problem, steps=2, peak=1e12)
    assert share["value"] == pytest.approx(rate["value"] / details["images_per_second_at_peak"])
    assert best["value"] == share["value"]
    assert details["flops_per_image"] > 6 * 64 * 5 * 8  # more than the first convolution's share


def scripted(*, published_after: int) -> Generator[Event, None, None]:
    """Yield the events of a training that logs every 2 steps and saves every 8, a checkpoint being published some steps later."""
    yield Started(0)
    for step in range(1, 100):
        if step % 2 == 0:
            yield Logged(step, {"loss": 1.0})
        if step > published_after and (step - published_after) % 8 == 0:
            yield Saved(step - published_after, Path("checkpoint"))
    yield Finished(100, {})


@pytest.mark.parametrize(
    ("published_after", "steps", "disturbed"),
    [(0, [2, 2, 2, 2, 2, 2], [2]), (1, [2, 2, 2, 2, 2, 2], [2]), (3, [2, 2, 4, 2, 2, 4], [2, 5])],
)
def test_the_rival_waits_until_a_checkpoint_is_published(
    published_after: int, steps: list[int], disturbed: list[int]
) -> None:
    calls: list[int] = []
    events = scripted(published_after=published_after)
    turns = Turns(events, lambda: calls.append(0), steps=2, blocks=6, checkpoint_every=8)
    with contextlib.suppress(EnoughError):
        list(turns)
    found = turns.duel()
    assert found.steps.tolist() == steps
    assert np.flatnonzero(found.disturbed).tolist() == disturbed
    assert len(calls) == 2 * (WARM_UP + 6)


def test_the_cost_of_a_checkpoint_is_what_its_block_took_longer_and_is_spread_over_the_steps_between_two() -> None:
    seconds = np.repeat(np.array([1.0, 1.0, 1.5, 1.0])[:, None], 2, axis=1)
    disturbed = np.array([False, False, True, False])
    found = Duel(
        seconds, np.full((4, 2), 2.0), disturbed, np.array([4, 4, 6, 4]), 9.0, [{"wait": w} for w in (0.0, 0.2)]
    )
    assert found.checkpoint_seconds.tolist() == [[3.0, 3.0]]
    assert found.ratio(checkpoint_every=10).value == pytest.approx(2.0 / 1.3)
    assert found.told("wait")[0] == pytest.approx(0.1)
