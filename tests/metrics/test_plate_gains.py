"""Claims about what a model gains plate by plate."""

import numpy as np
import pytest

from cellbridge.metrics.intervals import Blocks, Estimate
from cellbridge.metrics.plate_gains import plate_gains

WELLS, CELLS = 4, 20
POSSIBLE = {plate: Estimate(0.8, 0.7, 0.9, 80, "wells") for plate in ("P1", "P2")}


def _cells(rates, *, seed=0):
    """Draw gains of 0 and 1 at a rate per plate: (cell,), plates and wells."""
    rng = np.random.default_rng(seed)
    plates = np.repeat(list(rates), WELLS * CELLS)
    gains = np.concatenate([rng.random(WELLS * CELLS) < rate for rate in rates.values()]).astype(float)
    return gains, plates, Blocks(np.arange(len(gains)) // CELLS, "wells")


def test_gains_are_means_and_differences_of_means():
    gains, plates, blocks = _cells({"P1": 0.8, "P2": 0.3})
    first, second = plate_gains(gains, plates, blocks, possible=POSSIBLE)
    means = [gains[plates == plate].mean() for plate in ("P1", "P2")]
    assert (first.gain.value, second.gain.value) == pytest.approx(means)
    assert first.beside_others.value == pytest.approx(means[0] - means[1])
    assert (first.n, second.n) == (80, 80)


def test_a_plate_on_which_nothing_is_gained_fails_and_the_other_works():
    states = [found.state for found in plate_gains(*_cells({"P1": 0.7, "P2": 0.0}), possible=POSSIBLE)]
    assert states == ["works", "fails"]


def test_a_plate_fails_only_where_there_was_something_to_gain():
    nothing = {"P2": Estimate(0.02, -0.05, 0.1, 80, "wells")}
    for possible in (nothing, {}):
        assert plate_gains(*_cells({"P1": 0.7, "P2": 0.0}), possible=possible)[1].state == "unclear"


def test_one_plate_alone_is_not_judged():
    assert plate_gains(*_cells({"P1": 0.7}), possible=POSSIBLE) == []


def test_a_model_that_works_alike_on_both_plates_is_charged_in_at_most_one_of_a_hundred():
    charged = sum(
        any(
            found.state == "fails"
            for found in plate_gains(*_cells({"P1": 0.5, "P2": 0.5}, seed=seed), possible=POSSIBLE)
        )
        for seed in range(300)
    )
    assert charged <= 3


def test_the_order_of_cells_changes_nothing():
    gains, plates, blocks = _cells({"P1": 0.7, "P2": 0.4})
    order = np.random.default_rng(1).permutation(len(gains))
    for one, other in zip(
        plate_gains(gains, plates, blocks, possible=POSSIBLE),
        plate_gains(gains[order], plates[order], blocks.take(order), possible=POSSIBLE),
        strict=True,
    ):
        assert one.gain.low == pytest.approx(other.gain.low)
        assert one.beside_others.high == pytest.approx(other.beside_others.high)
