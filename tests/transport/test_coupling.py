"""Claims about couplings: closed forms first, then scipy and POT as oracles, invariances, refusals."""

from dataclasses import FrozenInstanceError
from itertools import pairwise

import numpy as np
import ot
import pytest
import torch
from gaussian_grids import entropic_cross_covariance, gaussian_grid
from scipy.optimize import linear_sum_assignment

from cellbridge.errors import CouplingError, NumericalError
from cellbridge.transport.cost import spread, transport_cost
from cellbridge.transport.coupling import SHARP, TOLERANCE, couple, relative_entropy
from cellbridge.transport.entropic import Potentials, Problem, plan_of
from cellbridge.transport.sinkhorn import log_sweep

ENTROPIC = ("log", "stabilised")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clouds(n, m, d, *, seed=0):
    return normal(n, d, seed=seed), 1.2 * normal(m, d, seed=seed + 1) + 0.3


def cloud_cost(n, m, d, *, seed=0):
    return transport_cost(*clouds(n, m, d, seed=seed), dtype=torch.float64)


def weights(n, seed):
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return drawn / drawn.sum()


def as_plan(coupling):
    if coupling.plan is not None:
        return coupling.plan
    n = len(coupling.permutation)
    return torch.eye(n, dtype=torch.float64)[coupling.permutation] / n


def moments(plan, x, y):
    mean_x, mean_y = plan.sum(1) @ x, plan.sum(0) @ y
    return (x - mean_x).T @ plan @ (y - mean_y)


@pytest.mark.parametrize("method", ENTROPIC)
@pytest.mark.parametrize("reg", [0.3, 1.0, 10.0])
def test_plan_between_gaussians_on_a_line_has_the_closed_forms_covariance(method, reg):
    a, b = np.array([[1.5]]), np.array([[0.6]])
    x, p = gaussian_grid([0.2], a, points=150)
    y, q = gaussian_grid([-1.0], b, points=150)
    coupling = couple(transport_cost(x, y, dtype=torch.float64), reg=reg, method=method, a=p, b=q, tolerance=1e-8)
    np.testing.assert_allclose(
        moments(coupling.plan, x, y).numpy(), entropic_cross_covariance(a, b, reg), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("reg", [0.5, 3.0])
def test_plan_between_correlated_gaussians_in_the_plane_has_the_closed_forms_covariance_and_precision(reg):
    a, b = np.array([[1.0, 0.5], [0.5, 0.8]]), np.array([[0.7, -0.3], [-0.3, 1.2]])
    x, p = gaussian_grid([0.0, 1.0], a, points=26)
    y, q = gaussian_grid([2.0, -1.0], b, points=26)
    coupling = couple(transport_cost(x, y, dtype=torch.float64), reg=reg, a=p, b=q, tolerance=1e-8)
    cross = moments(coupling.plan, x, y).numpy()
    np.testing.assert_allclose(cross, entropic_cross_covariance(a, b, reg), atol=1e-3)
    precision = np.linalg.inv(np.block([[a, cross], [cross.T, b]]))
    np.testing.assert_allclose(precision[:2, 2:], -np.eye(2) / reg, atol=5e-3 / reg)


@pytest.mark.parametrize("method", ENTROPIC)
@pytest.mark.parametrize("share", [1.0, 0.1, 0.02])
def test_marginals_are_the_given_ones_to_a_millionth(method, share):
    cost, a, b = cloud_cost(90, 60, 8), weights(90, 1), weights(60, 2)
    coupling = couple(cost, reg=share, reg_unit="spread", method=method, a=a, b=b)
    off = (coupling.plan.sum(1) - a).abs().sum() + (coupling.plan.sum(0) - b).abs().sum()
    assert float(off) <= TOLERANCE
    assert coupling.marginal_error == pytest.approx(float(off), abs=1e-9)
    assert float(coupling.plan.sum()) == pytest.approx(1, abs=1e-12)


def test_exact_coupling_of_equals_is_scipys_assignment():
    cost = cloud_cost(80, 80, 8)
    coupling = couple(cost, method="exact")
    _, columns = linear_sum_assignment(cost.numpy())
    assert coupling.permutation.tolist() == columns.tolist()
    assert coupling.method == "assignment"


def test_automatic_assignment_costs_what_the_exact_one_does():
    cost = cloud_cost(100, 100, 64)
    automatic = couple(cost, reg=0.003, reg_unit="spread")
    assert automatic.method == "assignment"
    assert automatic.cost == pytest.approx(couple(cost, method="exact").cost, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "weighted"), [(60, 60, False), (60, 40, False), (50, 60, True)])
def test_exact_coupling_costs_what_pots_network_simplex_finds(n, m, weighted):
    cost = cloud_cost(n, m, 8)
    a, b = (weights(n, 1), weights(m, 2)) if weighted else (None, None)
    coupling = couple(cost, method="exact", a=a, b=b)
    theirs = ot.emd2(*([] if w is None else w.numpy() for w in (a, b)), cost.numpy())
    assert coupling.cost == pytest.approx(theirs, rel=1e-9)
    assert coupling.marginal_error <= TOLERANCE


@pytest.mark.parametrize("method", ENTROPIC)
def test_plan_is_that_of_pots_log_domain_sinkhorn(method):
    cost, a, b = cloud_cost(40, 30, 5), weights(40, 1), weights(30, 2)
    ours = couple(cost, reg=2.0, method=method, a=a, b=b, tolerance=1e-8).plan
    theirs = ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), 2.0, method="sinkhorn_log", stopThr=1e-12)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-10)


def test_pots_squared_cost_with_twice_the_reg_gives_the_same_plan():
    (x, y), reg = clouds(40, 40, 5), 1.5
    ours = couple(transport_cost(x, y, dtype=torch.float64), reg=reg, method="log").plan
    squared = ot.dist(x.numpy(), y.numpy(), metric="sqeuclidean")
    theirs = ot.sinkhorn([], [], squared, 2 * reg, method="sinkhorn_log", stopThr=1e-12)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("method", ENTROPIC)
def test_entropic_plan_becomes_the_assignment_as_reg_vanishes(method):
    cost = cloud_cost(50, 50, 8)
    assignment = couple(cost, method="exact")
    excess, off = [], []
    for share in (0.3, 0.03, 0.003):
        coupling = couple(cost, reg=share, reg_unit="spread", method=method)
        excess.append(coupling.cost - assignment.cost)
        off.append(float((coupling.plan - as_plan(assignment)).abs().sum()))
    assert excess[0] > excess[1] > excess[2] > -1e-6
    assert excess[2] < 1e-3 * spread(cost)
    assert off[0] > off[1] > off[2]


@pytest.mark.parametrize("method", ENTROPIC)
@pytest.mark.parametrize("tau", [0.9, 0.99])
def test_unbalanced_plan_is_pots(method, tau):
    cost, reg = cloud_cost(40, 30, 3), 1.0
    ours = couple(cost, reg=reg, method=method, tau=tau, tolerance=1e-8)
    a, b, rho = np.full(40, 1 / 40), np.full(30, 1 / 30), reg * tau / (1 - tau)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost.numpy(), reg, rho, method="sinkhorn", reg_type="kl", numItermax=20000, stopThr=1e-14
    )
    assert ours.retained_mass == pytest.approx(theirs.sum(), rel=1e-5)
    np.testing.assert_allclose(ours.retained_mass * ours.plan.numpy(), theirs, rtol=1e-3, atol=1e-9)


def test_unbalanced_becomes_balanced_as_tau_becomes_one():
    cost = cloud_cost(60, 60, 8)
    balanced = couple(cost, reg=0.3, reg_unit="spread", method="stabilised")
    off = []
    for tau in (0.9, 0.99, 0.999, 0.9999):
        coupling = couple(cost, reg=0.3, reg_unit="spread", tau=tau)
        off.append((1 - coupling.retained_mass, float((coupling.plan - balanced.plan).abs().sum())))
    masses, plans = zip(*off, strict=True)
    assert all(later < earlier / 3 for earlier, later in pairwise(masses))
    assert all(later < earlier / 3 for earlier, later in pairwise(plans))
    assert masses[-1] < 0.01


def test_unbalanced_plan_drops_an_outlier_that_a_balanced_one_must_serve():
    x, y = clouds(50, 50, 2)
    x[0] += 30
    cost = transport_cost(x, y, dtype=torch.float64)
    balanced, unbalanced = (couple(cost, reg=1.0, method="stabilised", tau=tau) for tau in (1.0, 0.9))
    assert float(balanced.plan[0].sum()) == pytest.approx(1 / 50, abs=1e-6)
    assert float(unbalanced.plan[0].sum()) < 0.1 / 50
    assert unbalanced.retained_mass < 1
    assert balanced.retained_mass == 1


def images(n, *, seed):
    coarse = normal(n, 5, 8, 8, seed=seed).float()
    return torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("reg", [0.01, 0.1, 1.0])
def test_costs_of_images_do_not_underflow(reg):
    cost = transport_cost(images(64, seed=1), images(64, seed=2) + 0.1, dtype=torch.float64)
    assert float((-cost / reg).exp().sum()) == 0, "the usual kernel is zero everywhere, its plan not defined"
    coupling = couple(cost, reg=reg)
    assert coupling.marginal_error <= TOLERANCE
    assert coupling.relative_entropy < SHARP
    assert coupling.cost == pytest.approx(couple(cost, method="exact").cost, rel=1e-3)


@pytest.mark.parametrize("method", ENTROPIC)
@pytest.mark.parametrize("reg", [1.0, 10.0, 100.0])
def test_entropic_plans_of_images_have_their_marginals(method, reg):
    cost = transport_cost(images(64, seed=1), images(64, seed=2) + 0.1, dtype=torch.float64)
    coupling = couple(cost, reg=reg, method=method)
    assert coupling.method == method
    assert float((64 * coupling.plan.sum(1) - 1).abs().mean()) <= TOLERANCE
    assert float((64 * coupling.plan.sum(0) - 1).abs().mean()) <= TOLERANCE
    if reg == 1.0:
        assert coupling.relative_entropy < SHARP


def test_relative_entropy_is_zero_for_a_permutation_and_one_for_independent_pairs():
    a, b = weights(7, 1), weights(5, 2)
    assert relative_entropy(torch.outer(a, b)) == pytest.approx(1)
    assert relative_entropy(torch.eye(6, dtype=torch.float64)[torch.randperm(6)] / 6) == pytest.approx(0, abs=1e-12)
    halves = torch.eye(4, dtype=torch.float64).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert relative_entropy(halves) == pytest.approx(np.log(2) / np.log(8))
    assert relative_entropy(3 * halves) == relative_entropy(halves)


@pytest.mark.parametrize(("share", "chosen"), [(1.0, "stabilised"), (0.3, "stabilised"), (0.01, "assignment")])
def test_automatic_choice_is_the_assignment_where_the_plan_would_hardly_differ(share, chosen):
    cost = cloud_cost(100, 100, 64)
    sharpness = couple(cost, reg=share, reg_unit="spread", method="stabilised").relative_entropy
    assert (sharpness < SHARP) == (chosen == "assignment")
    assert couple(cost, reg=share, reg_unit="spread").method == chosen


def test_automatic_choice_between_unequal_numbers_is_the_network_simplex():
    coupling = couple(cloud_cost(60, 50, 64), reg=0.003, reg_unit="spread")
    assert coupling.method == "emd"
    assert coupling.marginal_error <= TOLERANCE


@pytest.mark.parametrize("method", ["exact", "stabilised"])
def test_reordering_the_cells_reorders_the_coupling(method):
    cost = cloud_cost(40, 40, 8)
    rows, columns = (torch.randperm(40, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    plain = as_plan(couple(cost, reg=5.0, method=method))
    mixed = as_plan(couple(cost[rows][:, columns], reg=5.0, method=method))
    torch.testing.assert_close(mixed, plain[rows][:, columns], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("method", ["exact", *ENTROPIC])
def test_moving_all_targets_changes_no_plan(method):
    x, y = clouds(40, 40, 8)
    plain, moved = (
        as_plan(couple(transport_cost(x, z, dtype=torch.float64), reg=5.0, method=method)) for z in (y, y + 3.0)
    )
    torch.testing.assert_close(plain, moved, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("method", ENTROPIC)
def test_a_scale_of_cost_and_reg_changes_no_plan(method):
    cost = cloud_cost(40, 40, 8)
    plain, scaled = (couple(k * cost, reg=k * 2.0, method=method).plan for k in (1.0, 1e4))
    torch.testing.assert_close(plain, scaled, rtol=1e-6, atol=1e-12)


def test_both_entropic_solvers_find_the_same_plan():
    cost = cloud_cost(70, 50, 16)
    log, stabilised = (couple(cost, reg=0.1, reg_unit="spread", method=m, tolerance=1e-8).plan for m in ENTROPIC)
    torch.testing.assert_close(log, stabilised, rtol=1e-4, atol=1e-10)


def test_float32_costs_couple_as_float64_ones_do():
    cost = cloud_cost(60, 60, 16)
    fine, coarse = (couple(c, reg=0.2, reg_unit="spread") for c in (cost, cost.float()))
    assert coarse.plan.dtype == torch.float64
    torch.testing.assert_close(coarse.plan, fine.plan, rtol=1e-3, atol=1e-8)


def test_autocast_does_not_reach_the_solver():
    cost = cloud_cost(60, 60, 16)
    plain = couple(cost, reg=0.2, reg_unit="spread")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(couple(cost, reg=0.2, reg_unit="spread").plan, plain.plan)


def test_coupling_draws_nothing_from_the_global_random_state():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    couple(cloud_cost(30, 30, 4), reg=1.0)
    couple(cloud_cost(30, 20, 4), method="exact")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_sweeps_and_plans_stay_on_the_device_of_the_cost():
    cost, a, b = (torch.empty(shape, device="meta", dtype=torch.float64) for shape in ((6, 5), (6,), (5,)))
    for tau in (1.0, 0.9):
        problem = Problem(cost, a, b, tau)
        swept = log_sweep(problem, Potentials(a, b))
        assert {swept.f.device.type, swept.g.device.type, plan_of(problem, swept).device.type} == {"meta"}


def test_a_single_pair_is_coupled():
    assert couple(torch.ones(1, 1), reg=1.0).relative_entropy == 0
    assert couple(torch.ones(1, 4), method="stabilised", reg=1.0).plan[0].tolist() == pytest.approx([0.25] * 4)


def test_coupling_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        couple(torch.ones(2, 2), reg=1.0).cost = 0.0


@pytest.mark.parametrize(
    ("cost", "settings", "said"),
    [
        (torch.tensor([[0.0, float("nan")]]), {"reg": 1.0}, "1 of 2 costs are not finite"),
        (torch.zeros(0, 3), {"reg": 1.0}, r"shape \(0, 3\)"),
        (torch.zeros(3), {"reg": 1.0}, r"shape \(3,\)"),
        (torch.zeros(2, 2), {"reg": 0.0}, "reg = 0.0, expected a positive number"),
        (torch.zeros(2, 2), {"reg": -1.0}, "reg = -1.0"),
        (torch.zeros(2, 2), {"reg": float("nan")}, "reg = nan"),
        (torch.zeros(2, 2), {}, "reg = None"),
        (torch.zeros(2, 2), {"reg": 1.0, "reg_unit": "spread"}, "all costs are equal"),
        (torch.zeros(2, 2), {"reg": 1.0, "tau": 0.0}, "tau = 0"),
        (torch.zeros(2, 2), {"reg": 1.0, "tau": 1.5}, "tau = 1.5"),
        (torch.zeros(2, 2), {"method": "exact", "tau": 0.9}, "only an entropic coupling"),
        (torch.zeros(2, 2), {"reg": 1.0, "a": torch.tensor([1.0, 1.0])}, "weights a .* sum to 2"),
        (torch.zeros(2, 2), {"reg": 1.0, "b": torch.tensor([1.0, 0.0])}, "weights b"),
        (torch.zeros(2, 2), {"reg": 1.0, "b": torch.ones(3) / 3}, "weights b"),
        (torch.full((2, 2), 1e4), {"reg": 0.01}, "dtype=torch.float64"),
    ],
)
def test_what_cannot_be_coupled_is_refused(cost, settings, said):
    with pytest.raises(CouplingError, match=said) as refused:
        couple(cost, **settings)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("tau", [1.0, 0.99])
@pytest.mark.parametrize("method", ENTROPIC)
def test_a_coupling_that_has_not_converged_is_an_error_and_no_plan(method, tau):
    with pytest.raises(NumericalError, match="after 3 iterations") as refused:
        couple(cloud_cost(50, 50, 4), reg=0.01, reg_unit="spread", method=method, tau=tau, max_iterations=3)
    assert refused.value.exit_code == 3


def test_a_network_simplex_that_stopped_early_is_an_error(monkeypatch):
    real = ot.emd
    monkeypatch.setattr(ot, "emd", lambda *args, numItermax, **rest: real(*args, numItermax=20, **rest))
    with pytest.warns(UserWarning, match="numItermax"), pytest.raises(NumericalError, match="numItermax reached"):
        couple(cloud_cost(60, 50, 4), method="exact")
