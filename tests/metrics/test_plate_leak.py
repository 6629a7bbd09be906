"""Claims about what outputs tell of plates."""

import numpy as np
import pytest

from cellbridge.metrics.effects import Sample
from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.plate_leak import halves_of_wells, plate_leak

F, PER_WELL, WELLS = 16, 15, 4
DRAWS = {"resamples": 100, "seed": 0}
SHIFT = {name: np.random.default_rng(index).normal(0, 1.5, F) for index, name in enumerate("ABC")}


def cells(plates, kind, *, seed, effect=0.0, distinct=1.0):
    rng = np.random.default_rng(seed)
    names = np.repeat(list(plates), WELLS * PER_WELL)
    wells = np.array([f"{name}/{kind}{i // PER_WELL % WELLS}" for i, name in enumerate(names)])
    features = rng.standard_normal((len(names), F)) + effect + distinct * np.array([SHIFT[name] for name in names])
    codes = np.unique(wells, return_inverse=True)[1].astype(np.int64)
    return Sample(features, names, Blocks(codes, "wells")), wells


def world(distinct=1.0):
    """Control cells of three plates, target cells of two, and the sources on those two."""
    control, wells = cells("ABC", "dmso", seed=0, distinct=distinct)
    real, _ = cells("BC", "drug", seed=1, effect=0.5, distinct=distinct)
    rows = np.flatnonzero(control.plates != "A")
    return control, real, control.take(rows), (wells[rows], wells)


def outputs(source, features):
    return Sample(features, source.plates, source.blocks)


def moved_to(source, plate):
    return source.features + np.array([SHIFT[plate] - SHIFT[name] for name in source.plates])


def test_honest_outputs_are_taken_for_their_sources_plate_as_real_target_cells_are():
    control, real, source, wells = world()
    found = plate_leak(outputs(source, source.features + 0.5), control, real, wells=wells, **DRAWS)
    assert found.accuracy.low > 0.9
    assert found.own.low > 0.8
    assert found.gap.low <= 0 <= found.gap.high
    assert found.chance == pytest.approx(1 / 3)


def test_outputs_that_carry_a_training_plates_staining_are_named():
    control, real, source, wells = world()
    found = plate_leak(outputs(source, moved_to(source, "A") + 0.5), control, real, wells=wells, **DRAWS)
    assert found.gap.high < -0.5
    assert found.wrong[0] == "A"
    assert found.wrong[1] > 0.8
    assert found.to_dict()["wrong"]["plate"] == "A"


def test_where_plates_cannot_be_told_apart_everything_is_at_chance():
    """The classifiers never saw the wells that they are asked about; otherwise accuracy would lie above chance here."""
    control, real, source, wells = world(distinct=0.0)
    found = plate_leak(outputs(source, source.features), control, real, wells=wells, **DRAWS)
    assert abs(found.accuracy.value - 1 / 3) < 0.12
    assert abs(found.own.value - 1 / 3) < 0.15
    assert found.gap.low <= 0 <= found.gap.high


def test_halves_part_the_wells_of_every_plate_and_no_well():
    control, _, _, (_, wells) = world()
    second = halves_of_wells(control.plates, wells, seed=0)
    for plate in "ABC":
        own = control.plates == plate
        assert len(set(wells[own & second])) == len(set(wells[own & ~second])) == WELLS // 2
        assert not set(wells[own & second]) & set(wells[own & ~second])
    assert halves_of_wells(np.array(["A", "A"]), np.array(["A/1", "A/1"]), seed=0) is None


def test_one_plate_tells_nothing_and_no_real_cells_leave_the_gap_open():
    control, real, source, wells = world()
    rows = np.flatnonzero(source.plates == "B")
    alone, names = source.take(rows), wells[0][rows]
    assert plate_leak(alone, alone, real, wells=(names, names), **DRAWS) is None
    found = plate_leak(outputs(source, source.features), control, None, wells=wells, **DRAWS)
    assert found.gap is None
    assert found.to_dict()["gap"]["not_computed"]
