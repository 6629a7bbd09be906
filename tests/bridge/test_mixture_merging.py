import torch

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.mixture_descent import Potential, balanced, carrying, state_of
from cellbridge.bridge.mixture_fitting import fit_mixture, fit_reversed
from cellbridge.bridge.mixture_merging import merged

EYE = torch.eye(2, dtype=torch.float64)
REG = 0.5


def three() -> tuple[Potential, torch.Tensor, torch.Tensor]:
    """Return a potential whose last two components are one and the same, and rows of both of its ends."""
    chance = torch.Generator().manual_seed(0)
    offsets = torch.tensor([[4.0, 0.0], [-4.0, 1.0], [-4.0, 1.0]], dtype=torch.float64)
    x = torch.randn(2000, 2, generator=chance)
    one = torch.rand(2000, generator=chance) < 0.5
    y = torch.randn(2000, 2, generator=chance) + torch.where(one[:, None], offsets[0], offsets[1]).float() + x
    return Potential(torch.zeros(3).double(), offsets, EYE.expand(3, -1, -1).clone()), x, y


def test_components_that_are_the_same_are_merged_first_and_nothing_is_lost() -> None:
    potential, x, y = three()
    state = balanced(state_of(potential, x, y), None, sweeps=30)
    found = merged(state, x, y)
    assert len(found.potential.log_weights) == 2
    assert torch.allclose(found.potential.offsets[0], potential.offsets[0])  # the one apart is left as it was
    assert found.objective <= state.objective + 1e-3


def test_balanced_weights_take_as_much_of_the_source_as_they_give_of_the_target() -> None:
    potential, x, y = three()
    found = balanced(state_of(potential, x, y), None, sweeps=200)
    taken, given = found.of_source.softmax(1).mean(0), found.of_target.softmax(1).mean(0)
    assert torch.allclose(taken, given, atol=1e-3)


def test_a_component_that_carries_everything_is_the_bridge_between_gaussians() -> None:
    _, x, y = three()
    A, B = torch.cov(x.T).double(), torch.cov(y.T).double()
    P = carrying(torch.ones(2000, 1), torch.ones(2000, 1), x, y).covariances[0]
    assert torch.allclose(P + P @ A @ P, B, rtol=2e-3, atol=2e-3)


def test_shares_of_both_sides_are_those_of_bayes() -> None:
    chance = torch.Generator().manual_seed(1)
    means, weights = 2 * torch.randn(3, 2, generator=chance, dtype=torch.float64), torch.randn(3, generator=chance)
    found = MixtureBridge(weights, means, 0.3 * EYE.expand(3, -1, -1), reg=REG)
    y = torch.randn(50, 2, generator=chance, dtype=torch.float64)
    each = torch.distributions.MultivariateNormal(means, 0.3 * EYE).log_prob(y[:, None]) + weights
    assert torch.allclose(found.shares_of_target(y), each.softmax(1))
    at_source = weights + y @ means.T / REG  # the quadratic part is the same for all
    assert torch.allclose(found.shares_of_source(y), at_source.softmax(1))


def test_the_bridge_fitted_backward_has_the_joint_moments_of_the_one_it_is_made_from() -> None:
    chance = torch.Generator().manual_seed(0)
    source = torch.randn(3000, 2, generator=chance, dtype=torch.float64)
    target = torch.randn(3000, 2, generator=chance, dtype=torch.float64) @ torch.diag(torch.tensor([2.0, 0.5])).double()
    forward = fit_mixture(source, target, reg=REG, seed=0, budget=Budget(5.0), components=(1,))
    backward = fit_reversed(forward, source, target, reg=REG, budget=Budget(5.0))
    there = source.T @ forward.bridge.conditionals(source).means / len(source)
    back = backward.bridge.conditionals(target).means.T @ target / len(target)
    assert torch.allclose(there, back, atol=0.1)
