"""Claims about pairs drawn from a coupling."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from cellbridge.errors import CouplingError, NumericalError
from cellbridge.transport.cost import transport_cost
from cellbridge.transport.coupling import Coupling, couple
from cellbridge.transport.pairing import draw_independent, draw_targets


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def coupling_of(plan):
    return Coupling(plan, None, 0.0, 1.0, 0.0, 0.0, 0, "log")


def test_targets_are_drawn_by_each_rows_conditional():
    plan = torch.tensor([[0.1, 0.0, 0.3, 0.1], [0.0, 0.05, 0.0, 0.45]], dtype=torch.float64)
    generator, draws = seeded(0), 4000
    drawn = torch.stack([draw_targets(coupling_of(plan), generator=generator) for _ in range(draws)])
    for row in range(2):
        expected = draws * plan[row] / plan[row].sum()
        counts = torch.bincount(drawn[:, row], minlength=4)
        assert counts[plan[row] == 0].sum() == 0
        kept = expected > 0
        statistic = float(((counts - expected)[kept].square() / expected[kept]).sum())
        assert statistic < chi2.ppf(0.999, int(kept.sum()) - 1)


def test_a_permutation_is_its_own_pairing():
    x = torch.randn(50, 6, generator=seeded(0))
    coupling = couple(transport_cost(x, x.flip(0)), method="exact")
    assert draw_targets(coupling, generator=seeded(1)).tolist() == list(range(49, -1, -1))


@pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 25), (25, 60)])
@pytest.mark.parametrize("method", ["exact", "stabilised"])
def test_every_source_has_one_target_that_exists(n, m, method):
    x, y = torch.randn(n, 6, generator=seeded(0)), torch.randn(m, 6, generator=seeded(1))
    targets = draw_targets(couple(transport_cost(x, y), reg=0.3, method=method), generator=seeded(2))
    assert targets.shape == (n,)
    assert targets.dtype == torch.int64
    assert int(targets.min()) >= 0
    assert int(targets.max()) < m


def test_mean_cost_of_pairs_is_the_couplings_cost():
    x, y = torch.randn(400, 4, generator=seeded(0)), torch.randn(400, 4, generator=seeded(1)) + 1
    cost = transport_cost(x, y)
    coupling = couple(cost, reg=1.0)
    generator = seeded(2)
    drawn = [float(cost.gather(1, draw_targets(coupling, generator=generator)[:, None]).mean()) for _ in range(50)]
    assert np.mean(drawn) == pytest.approx(coupling.cost, rel=0.01)


def test_rows_of_vanishing_mass_are_still_drawn_by_their_conditional():
    plan = torch.tensor([[0.5, 0.5], [1e-300, 3e-300]], dtype=torch.float64)
    generator = seeded(0)
    drawn = torch.stack([draw_targets(coupling_of(plan), generator=generator) for _ in range(2000)])
    assert float(drawn[:, 1].double().mean()) == pytest.approx(0.75, abs=0.04)


def test_a_source_without_mass_is_refused():
    plan = torch.tensor([[0.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"1 of 2 sources have no mass.*Raise tau") as refused:
        draw_targets(coupling_of(plan), generator=seeded(0))
    assert refused.value.exit_code == 3


def test_draws_depend_on_the_generator_alone():
    x = torch.randn(80, 3, generator=seeded(0))
    coupling = couple(transport_cost(x, x + 0.5), reg=1.0)
    before = torch.get_rng_state()
    first, again, other = (draw_targets(coupling, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("n", "m"), [(10, 10), (25, 10), (10, 25)])
def test_independent_pairs_use_each_target_equally_often(n, m):
    targets = draw_independent(n, m, generator=seeded(0))
    counts = torch.bincount(targets, minlength=m)
    assert targets.shape == (n,)
    assert int(counts.max()) == -(-n // m)
    assert int(counts.min()) == n // m


def test_independent_pairs_need_both_sides():
    with pytest.raises(CouplingError, match="0 targets"):
        draw_independent(3, 0, generator=seeded(0))
