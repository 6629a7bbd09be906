import pytest
import torch

from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.metrics.plans import (
    Conditionals,
    bures_squared,
    conditional_energy,
    conditional_uvp,
    cost_ratio,
    energy_and_terms,
    energy_distance,
    marginal_uvp,
    mean_uvp,
    precision_residual,
    variance_ratio,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bures_distance_of_commuting_gaussians_is_that_of_their_standard_deviations() -> None:
    first = Conditionals(torch.tensor([[1.0, 0.0]]), torch.diag(torch.tensor([4.0, 1.0]))[None])
    second = Conditionals(torch.tensor([[0.0, 2.0]]), torch.diag(torch.tensor([1.0, 9.0]))[None])
    assert float(bures_squared(first, second)) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (1 - 3) ** 2)


def test_bures_distance_is_that_of_pot() -> None:
    ot = pytest.importorskip("ot")
    factors = normal(2, 4, 4)
    covariances = factors @ factors.mT
    means = normal(2, 4, seed=1)
    ours = bures_squared(*(Conditionals(m[None], c[None]) for m, c in zip(means, covariances, strict=True)))
    theirs = ot.gaussian.bures_wasserstein_distance(*(v.numpy() for v in (*means, *covariances)))
    assert float(ours) == pytest.approx(float(theirs) ** 2, rel=1e-6)


def test_a_deterministic_map_with_the_right_mean_misses_all_conditional_variance() -> None:
    truth = Conditionals(torch.zeros(3, 2), torch.eye(2).expand(3, -1, -1))
    draws = torch.zeros(3, 50, 2)
    assert conditional_uvp(draws, truth, target_variance=4.0) == pytest.approx(100.0)
    assert variance_ratio(draws, truth) == 0.0
    assert mean_uvp(draws.mean(1), truth.means, target_variance=4.0) == 0.0


def test_exact_draws_are_at_the_sampling_floor() -> None:
    truth = Conditionals(torch.zeros(20, 2), torch.eye(2).expand(20, -1, -1))
    draws = normal(20, 2000, 2)
    assert conditional_uvp(draws, truth, target_variance=2.0) < 0.5
    assert variance_ratio(draws, truth) == pytest.approx(1.0, abs=0.02)
    assert marginal_uvp(draws.flatten(0, 1), torch.zeros(2), torch.eye(2)) < 0.05


def test_energy_distance_in_one_dimension_is_twice_that_of_the_distribution_functions() -> None:
    first, second = normal(2000, 1), normal(1500, 1, seed=1) + 0.8
    grid = torch.linspace(-6, 7, 4001, dtype=torch.float64)
    gap = (first <= grid).double().mean(0) - (second <= grid).double().mean(0)
    assert energy_distance(first, second) == pytest.approx(2 * float(torch.trapezoid(gap.square(), grid)), abs=5e-3)
    assert abs(conditional_energy(first.view(4, 500, 1), normal(4, 500, 1, seed=2))) < 0.02
    with pytest.raises(ValueError, match="two of each"):
        energy_distance(first[:1], second)


def test_the_residual_is_zero_for_a_bridge_and_one_for_independent_pairs() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    bridge = gaussian_bridge(torch.zeros(2), eye, torch.zeros(2), 2 * eye, reg=0.5)
    source = normal(40_000, 2)
    mean, covariance = bridge.conditional(source)
    target = mean + normal(40_000, 2, seed=1) @ torch.linalg.cholesky(covariance).T
    assert precision_residual(source, target, reg=0.5) < 0.03
    assert precision_residual(
        source, target[torch.randperm(40_000, generator=torch.Generator())], reg=0.5
    ) == pytest.approx(1, abs=0.03)
    assert cost_ratio(source, target, true_cost=float((source - target).square().sum(1).mean() / 2)) == pytest.approx(1)
    with pytest.raises(ValueError, match="needs more than 5"):
        precision_residual(source[:5], target[:5], reg=0.5)


def test_the_terms_of_a_distance_are_what_it_changes_by_where_a_row_counts_more() -> None:
    chance = torch.Generator().manual_seed(1)
    moved, real = torch.randn(30, 3, generator=chance), 1 + torch.randn(50, 3, generator=chance)
    distance, terms = energy_and_terms(moved, real)
    assert distance == pytest.approx(energy_distance(moved, real))
    across = torch.cdist(moved.double(), real.double()).mean(1)
    within = torch.cdist(moved.double(), moved.double())

    def distance_of(shares: torch.Tensor) -> float:
        return float(2 * shares @ across - shares @ within @ shares * 30 / 29)

    even, step = torch.full((30,), 1 / 30, dtype=torch.float64), 1e-4
    more = even * (1 - step)
    more[0] += step
    slope = (distance_of(more) - distance_of(even)) / step
    assert slope == pytest.approx(30 * float(terms[0] - terms.mean()), rel=0.02)
