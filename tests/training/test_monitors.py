"""Claims about what is gathered between two log steps: means, extrema, and the clock."""

import math
import time

import pytest
import torch
from small_training import events, until

from cellbridge.training.events import Logged
from cellbridge.training.loop import LossOutput
from cellbridge.training.monitors import Clock, Window


def itself(tensor):
    return tensor


def figures(window):
    window.close_step(torch.tensor(1.0), torch.tensor(2.0))
    return window.values(itself, itself)


def add(window, **named):
    kinds = {kind: {name: torch.tensor(value) for name, value in found.items()} for kind, found in named.items()}
    window.add_monitors({}, **kinds)


def test_extrema_are_those_of_all_micro_batches_and_steps():
    window = Window(4, torch.device("cpu"))
    drawn = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for row in drawn:
        add(window, minima={"low": row.min().item()}, maxima={"high": row.max().item()})
        window.close_step(row.mean(), row.std())
    values = window.values(itself, itself)
    assert (values["low"], values["high"]) == (drawn.min().item(), drawn.max().item())
    assert values["loss"] == pytest.approx(drawn.mean().item(), abs=1e-6)


def test_names_may_come_late_stay_away_and_come_in_any_order():
    window = Window(4, torch.device("cpu"))
    pairs = ({"a": (1.0, 1.0)}, {"b": (6.0, 2.0), "a": (3.0, 1.0)}, {"b": (1.0, 1.0)})
    for named in pairs:
        window.add_monitors({name: tuple(map(torch.tensor, pair)) for name, pair in named.items()})
    add(window, maxima={"late": -5.0})
    add(window, maxima={"other": 1.0})
    values = figures(window)
    assert values["a"] == 2.0
    assert values["b"] == pytest.approx(7 / 3)
    assert (values["late"], values["other"]) == (-5.0, 1.0)


def test_grids_are_gathered_cell_by_cell_survive_a_checkpoint_and_leave_out_what_is_empty():
    window = Window(4, torch.device("cpu"))
    window.add_monitors(
        {"share/t{}/c{}": (torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0]]))},
        minima={"low/t{}/c{}": torch.tensor([[-3.0], [math.inf]])},
    )
    continued = Window(4, torch.device("cpu"))
    continued.load(window.tensors())
    continued.add_monitors(
        {"share/t{}/c{}": (torch.tensor([[2.0], [0.0]]), torch.tensor([[2.0], [0.0]]))},
        minima={"low/t{}/c{}": torch.tensor([[-1.0], [math.inf]])},
    )
    assert {n: v for n, v in figures(continued).items() if "/" in n} == {"share/t0/c0": 0.75, "low/t0/c0": -3.0}


def test_a_monitor_that_counted_nothing_is_not_logged():
    window = Window(4, torch.device("cpu"))
    window.add_monitors({"empty": (torch.tensor(0.0), torch.tensor(0.0))})
    assert "empty" not in figures(window)


def test_a_new_window_knows_nothing_of_the_last():
    window = Window(4, torch.device("cpu"))
    add(window, minima={"low": -9.0})
    assert figures(window)["low"] == -9.0
    window.reset()
    add(window, minima={"low": 3.0})
    assert figures(window)["low"] == 3.0


def test_extrema_of_two_processes_are_combined_by_the_largest():
    held = {rank: Window(4, torch.device("cpu")) for rank in (0, 1)}
    for rank, window in held.items():
        add(window, minima={"low": -1.0 - rank}, maxima={"high": 7.0 - rank})

    def largest(tensor):
        both = [-torch.tensor([[-1.0], [-2.0]]), torch.tensor([[7.0], [6.0]])]
        return next(pair for pair in both if tensor[0, 0] == pair[0, 0]).amax(0, keepdim=True)

    held[0].close_step(torch.tensor(1.0), torch.tensor(1.0))
    values = held[0].values(itself, largest)
    assert (values["low"], values["high"]) == (-2.0, 7.0)


def watched(module, batch):
    output = module(batch).squeeze(1)
    seen = output.detach()
    return LossOutput(
        (output - batch.sum(dim=1)).square().mean(),
        {"mean": (seen.sum(), torch.tensor(len(seen)))},
        minima={"output/min": seen.min()},
        maxima={"output/max": seen.max()},
    )


def test_a_resumed_training_logs_the_extrema_of_the_uninterrupted(tmp_path):
    def logged(seen):
        named = ("mean", "output/min", "output/max", "loss")
        return {e.step: [e.values[name] for name in named] for e in seen if isinstance(e, Logged)}

    whole = logged(events(tmp_path / "whole", loss=watched))
    until(tmp_path / "parts", 12, loss=watched)
    rest = logged(events(tmp_path / "parts", loss=watched))
    assert whole.keys() == {5, 10, 15, 20, 24}
    assert rest == {step: values for step, values in whole.items() if step > 12}
    assert all(low < mean < high for mean, low, high, _ in whole.values())


def test_the_clock_knows_the_share_of_time_spent_on_data_and_leaves_out_pauses():
    clock = Clock()
    for _ in range(4):
        with clock.waiting_for_data():
            time.sleep(0.03)
        time.sleep(0.01)
        with clock.paused():
            time.sleep(0.05)
        clock.steps += 1
    values = clock.read()
    assert values["data_wait"] == pytest.approx(0.75, abs=0.1)
    assert values["seconds_per_step"] == pytest.approx(0.04, rel=0.4)
    assert math.isfinite(clock.read()["seconds_per_step"])
