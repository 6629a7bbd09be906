import pytest
import torch

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.integrate import batch_chances, simulate, times
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.mixture_fitting import fit_mixture
from cellbridge.bridge.moments import second_moments
from cellbridge.errors import NumericalError
from cellbridge.metrics.plans import conditional_uvp, mean_uvp

ENOUGH = 30.0


def test_correlated_gaussians_need_one_component_which_is_their_bridge() -> None:
    chance = torch.Generator().manual_seed(0)
    factors = torch.randn(2, 4, 4, generator=chance, dtype=torch.float64)
    source, target = torch.randn(2, 3000, 4, generator=chance, dtype=torch.float64) @ factors
    found = fit_mixture(source, target, reg=0.5, seed=0, budget=Budget(ENOUGH), components=(1, 4))
    assert found.components == 1
    truth = gaussian_bridge(
        torch.zeros(4), factors[0].T @ factors[0], torch.zeros(4), factors[1].T @ factors[1], reg=0.5
    )
    x = source[:50]
    total = float(truth.target_covariance.trace())
    assert mean_uvp(found.bridge.conditionals(x).means, truth.conditional(x)[0], target_variance=total) < 1.0


@pytest.mark.parametrize("reg", [0.2, 2.0])
def test_a_plan_of_three_modes_is_found_from_unpaired_samples(reg: float) -> None:
    means = torch.tensor([[3.0, 0.0], [-2.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
    spreads = torch.tensor([[[0.5, 0.3], [0.3, 0.4]], [[0.2, 0.0], [0.0, 0.8]], [[0.6, -0.2], [-0.2, 0.2]]])
    truth = MixtureBridge.of_potential(torch.zeros(3), means, spreads, reg=reg)
    chance = torch.Generator().manual_seed(0)
    source, unseen = torch.randn(2, 3000, 2, generator=chance, dtype=torch.float64)
    target = simulate(truth, unseen, reg=reg, chances=batch_chances(unseen, chance), grid=times(1))
    found = fit_mixture(source, target, reg=reg, seed=0, budget=Budget(ENOUGH), components=(1, 4))
    x = torch.randn(40, 2, generator=chance, dtype=torch.float64)
    many = x.repeat_interleave(500, 0)
    drawn = simulate(found.bridge, many, reg=reg, chances=batch_chances(many, chance), grid=times(1))
    total = float(torch.cov(target.T).trace())
    assert found.components == 4
    assert conditional_uvp(drawn.view(40, 500, 2), truth.conditionals(x), target_variance=total) < 2.0


def test_without_time_the_smallest_number_of_components_is_fitted() -> None:
    source, target = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0))
    assert fit_mixture(source, target, reg=1.0, seed=0, budget=Budget(1e-6)).components == 1


def test_few_rows_are_drawn_to_a_round_covariance_and_no_spread_is_an_error() -> None:
    rows = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    covariance = second_moments(rows)[1]
    assert float(torch.linalg.eigvalsh(covariance)[0]) > 0.1
    many = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(second_moments(many)[1], torch.cov(many.double().T), rtol=1e-2, atol=1e-2)
    with pytest.raises(NumericalError, match="nothing to bridge"):
        second_moments(torch.ones(10, 2))
