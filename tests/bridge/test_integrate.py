from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cellbridge.bridge.drift import EndpointDrift, drift, probability_flow
from cellbridge.bridge.gaussian import GaussianBridge, gaussian_bridge
from cellbridge.bridge.integrate import batch_chances, flow, row_chances, simulate, times
from cellbridge.bridge.preconditioning import GaussianPreconditioning
from cellbridge.metrics.plans import Conditionals, bures_squared
from cellbridge.networks.perceptron import BridgePerceptron

REG = 1.0


def exact() -> tuple[GaussianBridge, EndpointDrift]:
    """Return a Gaussian bridge, and the model that is it: a network that says nothing."""
    A = torch.tensor([[1.0, 0.4], [0.4, 0.6]], dtype=torch.float64)
    B = torch.tensor([[0.5, -0.3], [-0.3, 1.5]], dtype=torch.float64)
    bridge = gaussian_bridge(torch.zeros(2), A, torch.ones(2), B, reg=REG)
    return bridge, EndpointDrift(BridgePerceptron(2), GaussianPreconditioning(bridge)).double()


def conditional_error(step, grid: Tensor, count: int = 10_000) -> float:
    """Return the distance of the simulated conditional of one source from the true one, in % of half the target's variance."""
    bridge, model = exact()
    x = torch.tensor([[0.7, -0.4]], dtype=torch.float64).expand(count, -1)
    chances = batch_chances(x, torch.Generator().manual_seed(0))
    found = simulate(model, x, reg=REG, chances=chances, grid=grid, step=step)
    mean, covariance = bridge.conditional(x[:1])
    distance = bures_squared(Conditionals.of_draws(found[None]), Conditionals(mean, covariance[None]))
    return 100 * float(distance) / (float(bridge.target_covariance.trace()) / 2)


def test_drift_and_probability_flow_are_those_of_the_closed_form() -> None:
    bridge, model = exact()
    x, s = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.3
    at = torch.full((4,), s, dtype=torch.float64)
    assert torch.allclose(drift(model, x, at), bridge.drift(x, s), atol=1e-5)
    assert torch.allclose(drift(model, x, at, "backward"), bridge.backward_drift(x, s), atol=1e-5)
    assert torch.allclose(probability_flow(model, x, at), bridge.probability_flow(x, s), atol=1e-5)


def test_drawn_endpoints_leave_no_error_at_any_number_of_steps_where_eulers_steps_do() -> None:
    for steps in (1, 3, 10):
        assert conditional_error("draw", times(steps)) < 0.3
    assert conditional_error("euler", times(3)) > 0.5


@pytest.mark.parametrize("steps", [10, 20])
def test_eulers_steps_on_the_quadratic_grid_keep_a_conditional_spectrum_that_the_uniform_grid_loses(steps: int) -> None:
    """Along an axis of conditional variance p the exact drift is linear, and so what Euler's steps do to a variance is a recursion."""
    spectrum = 1 / (1 + torch.arange(32, dtype=torch.float64).square() / 4)  # of natural images: little at fine scales

    def error(grid: Tensor) -> float:
        variance = torch.zeros_like(spectrum)
        for now, later in pairwise(grid.tolist()):
            slope = (spectrum / (REG * (1 - now) + now * spectrum) - 1) / (1 - now)
            variance = (1 + (later - now) * slope).square() * variance + REG * (later - now)
        return float((variance.sqrt() - spectrum.sqrt()).square().sum() / spectrum.sum())

    quadratic, uniform = (error(times(steps, grid=grid)) for grid in ("quadratic", "uniform"))
    assert quadratic < uniform / 10


def test_both_ways_carry_each_end_to_the_other() -> None:
    bridge, model = exact()
    chance = torch.Generator().manual_seed(0)
    noise = torch.randn(8_000, 2, generator=chance, dtype=torch.float64)
    ends = {
        "forward": bridge.target_mean + noise @ torch.linalg.cholesky(bridge.target_covariance).T,
        "backward": bridge.source_mean + noise @ torch.linalg.cholesky(bridge.source_covariance).T,
    }
    for direction, start, end in (("forward", "backward", "forward"), ("backward", "forward", "backward")):
        found = simulate(model, ends[start], reg=REG, chances=batch_chances(noise, chance), direction=direction)
        by_flow = flow(model, ends[start], direction=direction, grid=times(15))
        for moved in (found, by_flow):
            assert torch.allclose(moved.mean(0), ends[end].mean(0), atol=0.06)
            assert torch.allclose(torch.cov(moved.T), torch.cov(ends[end].T), atol=0.09)


def test_a_row_is_the_same_whatever_else_is_in_the_batch() -> None:
    _, model = exact()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seeds = torch.arange(5) + 7
    before = torch.get_rng_state()
    whole = simulate(model, x, reg=REG, chances=row_chances(seeds, (2,)))
    alone = simulate(model, x[3:4], reg=REG, chances=row_chances(seeds[3:4], (2,)))
    assert torch.allclose(whole[3:4], alone, atol=1e-10)
    assert not torch.allclose(whole[3:4], simulate(model, x[3:4], reg=REG, chances=row_chances(seeds[:1], (2,))))
    assert torch.equal(before, torch.get_rng_state())


def test_grids_run_from_zero_to_one_and_need_a_step() -> None:
    assert times(2).tolist() == [0.0, 0.75, 1.0]
    assert times(4, grid="uniform").tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match="at least one"):
        times(0)
