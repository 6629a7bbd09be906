"""Claims about pairs within plates."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from cellbridge.errors import CouplingError
from cellbridge.transport.coupling import couple
from cellbridge.transport.strata import Cells, EpochPairs, pair_epoch, strata

CONTROL = "DMSO"
ENTROPIC = partial(couple, reg=0.5, reg_unit="spread")
EXACT = partial(couple, method="exact")


def cells(counts, *, seed, shift=0.0, d=4):
    """Cells by {(plate, condition): count}; plates lie far apart."""
    plates = [plate for (plate, _), count in counts.items() for _ in range(count)]
    conditions = [condition for (_, condition), count in counts.items() for _ in range(count)]
    noise = torch.randn(len(plates), d, generator=torch.Generator().manual_seed(seed))
    offset = torch.tensor([3.0 * int(plate[1:]) for plate in plates])
    return Cells(noise + shift + offset[:, None], plates, conditions)


def a_study():
    source = cells({("P1", CONTROL): 90, ("P2", CONTROL): 70}, seed=1)
    target = cells({("P1", "taxol@1"): 60, ("P2", "taxol@1"): 100, ("P2", "taxol@3"): 40}, seed=2, shift=1.0)
    return source, target


def pairs_of(source, target, *, solve=ENTROPIC, seed=0, epoch=0, **settings):
    return EpochPairs(source, target, solve=solve, seed=seed, **settings)(epoch)


@pytest.mark.parametrize("solve", [ENTROPIC, EXACT, None])
def test_pairs_never_cross_plates(solve):
    source, target = a_study()
    pairs = pairs_of(source, target, solve=solve)
    assert [source.plates[row] for row in pairs.source] == [target.plates[row] for row in pairs.target]


@pytest.mark.parametrize("solve", [ENTROPIC, EXACT, None])
def test_each_stratum_uses_every_source_once(solve):
    source, target = a_study()
    pairs = pairs_of(source, target, solve=solve, block=32)
    conditions = np.asarray(target.conditions)[pairs.target]
    for condition, sources in (("taxol@1", range(160)), ("taxol@3", range(90, 160))):
        assert sorted(pairs.source[conditions == condition]) == list(sources)
    assert pairs.source.dtype == pairs.target.dtype == np.int64


def test_pairs_are_a_function_of_seed_and_epoch():
    source, target = a_study()
    first, again, later, other = (
        pairs_of(source, target, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert np.array_equal(first.source, again.source)
    assert np.array_equal(first.target, again.target)
    assert not np.array_equal(first.target, later.target)
    assert not np.array_equal(first.target, other.target)


def test_an_epoch_is_solved_once_and_kept_until_the_next():
    source, target = a_study()
    solved = []

    def counting(cost):
        solved.append(cost.shape)
        return couple(cost, method="exact")

    epochs = EpochPairs(source, target, solve=counting, seed=0)
    assert epochs(3) is epochs(3)
    assert len(solved) == 3
    epochs(4)
    assert len(solved) == 6


def test_pairs_of_a_stratum_do_not_depend_on_the_others():
    source, target = a_study()
    alone = Cells(target.features[160:], target.plates[160:], target.conditions[160:])
    together, single = pairs_of(source, target), pairs_of(source, alone)
    of_condition = np.asarray(target.conditions)[together.target] == "taxol@3"
    assert np.array_equal(together.source[of_condition], single.source)
    assert np.array_equal(together.target[of_condition] - 160, single.target)


def test_blocks_use_each_target_before_any_is_used_again():
    source = cells({("P1", CONTROL): 100}, seed=1)
    target = cells({("P1", "a"): 130}, seed=2)
    pairs = pairs_of(source, target, solve=EXACT, block=30)
    assert len(set(pairs.target.tolist())) == 100
    assert [(block.sources, block.targets) for block in pairs.blocks] == [(25, 25)] * 4


def test_few_targets_are_shared_evenly_by_exact_couplings():
    source, target = cells({("P1", CONTROL): 90}, seed=1), cells({("P1", "a"): 30}, seed=2)
    pairs = pairs_of(source, target, solve=EXACT, block=200)
    assert pairs.blocks[0].method == "emd"
    assert np.bincount(pairs.target).tolist() == [3] * 30


def test_couplings_cost_less_than_independent_pairs():
    source, target = a_study()

    def mean_cost(solve):
        pairs = pairs_of(source, target, solve=solve)
        return float((source.features[pairs.source] - target.features[pairs.target]).square().sum(1).mean() / 2)

    exact, entropic, independent = (mean_cost(solve) for solve in (EXACT, ENTROPIC, None))
    assert exact < entropic < independent


def test_plate_shifts_leave_no_trace_in_the_displacement():
    source, target = a_study()
    pairs = pairs_of(source, target)
    displacement = (target.features[pairs.target] - source.features[pairs.source]).mean(0)
    torch.testing.assert_close(displacement, torch.ones(4), atol=0.3, rtol=0)


def test_blocks_say_what_was_solved():
    block = pairs_of(*a_study()).blocks[0]
    assert (block.plate, block.condition, block.sources, block.targets) == ("P1", "taxol@1", 90, 60)
    assert block.marginal_error <= 1e-6
    assert 0 < block.relative_entropy < 1
    assert block.method == "stabilised"


def test_targets_on_a_plate_without_sources_are_refused_and_the_option_is_named():
    source = cells({("P1", CONTROL): 50}, seed=1)
    target = cells({("P1", "a"): 50, ("P2", "a"): 40}, seed=2)
    with pytest.raises(CouplingError, match=r"P2 \(40 of a\).*across_plates: true") as refused:
        EpochPairs(source, target, solve=EXACT, seed=0)
    assert refused.value.exit_code == 2


def test_across_plates_crosses_only_where_a_plate_has_no_sources():
    source = cells({("P1", CONTROL): 50, ("P3", CONTROL): 50}, seed=1)
    target = cells({("P1", "a"): 50, ("P2", "b"): 40}, seed=2)
    epochs = EpochPairs(source, target, solve=EXACT, seed=0, across_plates=True)
    pairs = epochs(0)
    crossed = np.asarray(
        [source.plates[s] != target.plates[t] for s, t in zip(pairs.source, pairs.target, strict=True)]
    )
    of_b = np.asarray(target.conditions)[pairs.target] == "b"
    assert np.array_equal(crossed, of_b)
    assert sorted(pairs.source[of_b]) == list(range(100))
    assert any("across_plates: true" in note for note in epochs.notes)


def test_a_nearly_empty_class_is_refused_and_a_small_one_noted():
    source = cells({("P1", CONTROL): 50}, seed=1)
    with pytest.raises(CouplingError, match="a on plate P1: 50 source and 1 target cells, expected 2"):
        strata(source, cells({("P1", "a"): 1}, seed=2))
    _, notes = strata(source, cells({("P1", "a"): 9}, seed=2))
    assert len(notes) == 1
    assert "50 source and 9 target cells" in notes[0]


def test_plates_of_sources_that_no_target_is_on_are_noted():
    source = cells({("P1", CONTROL): 50, ("P2", CONTROL): 50}, seed=1)
    parts, notes = strata(source, cells({("P1", "a"): 50}, seed=2))
    assert [part.plate for part in parts] == ["P1"]
    assert notes == ("sources of plates without targets are not used: P2",)


@pytest.mark.parametrize(("of_source", "of_target"), [({}, {("P1", "a"): 5}), ({("P1", CONTROL): 5}, {})])
def test_an_empty_side_is_refused(of_source, of_target):
    with pytest.raises(CouplingError, match="both sides need some"):
        strata(cells(of_source, seed=1), cells(of_target, seed=2))


def test_a_block_of_one_cell_is_refused():
    source, target = a_study()
    parts, _ = strata(source, target)
    with pytest.raises(CouplingError, match="block = 1"):
        pair_epoch(source, target, parts, solve=EXACT, seed=0, epoch=0, block=1)


def test_lengths_that_do_not_fit_together_are_refused():
    source, target = a_study()
    with pytest.raises(CouplingError, match="160 rows of features, 159 plates"):
        strata(Cells(source.features, source.plates[1:], source.conditions), target)


def test_a_target_is_turned_as_it_is_nearest_and_the_plan_is_that_of_the_least_costs():
    """Against scipy's assignment over the least of the costs; a source that is a turned target finds it, turned so."""
    chance = torch.Generator().manual_seed(3)
    views = torch.randn(3, 20, 4, generator=chance)
    order, turn = torch.randperm(20, generator=chance), torch.arange(20) % 3
    source = Cells(views[turn, order] + 0.01 * torch.randn(20, 4, generator=chance), ["P1"] * 20, [CONTROL] * 20)
    target = Cells(views[0], ["P1"] * 20, ["taxol@1"] * 20, list(views[1:]))
    pairs = pairs_of(source, target, solve=EXACT)
    costs = torch.cdist(source.features[None], views).square().min(0).values / 2
    rows, columns = linear_sum_assignment(costs.numpy())
    assert dict(zip(pairs.source, pairs.target, strict=True)) == dict(zip(rows, columns, strict=True))
    assert np.array_equal(pairs.target, order.numpy()[pairs.source])
    assert np.array_equal(pairs.turn, turn.numpy()[pairs.source])
    assert not pairs_of(source, target, solve=None).turn.any(), "pairs by lot choose no turn"
