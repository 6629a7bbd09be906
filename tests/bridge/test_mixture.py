import pytest
import torch

from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.integrate import batch_chances, simulate, times
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.errors import ModelError

MEANS = torch.tensor([[-2.0], [1.0], [3.0]], dtype=torch.float64)
SPREADS = torch.tensor([0.3, 0.1, 0.6], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64)


def line(reg: float) -> MixtureBridge:
    return MixtureBridge.of_potential(WEIGHTS, MEANS, SPREADS.view(3, 1, 1), reg=reg)


@pytest.mark.parametrize("reg", [0.2, 1.0, 10.0])
@pytest.mark.parametrize("s", [0.0, 0.3, 0.9])
def test_the_expected_endpoint_is_that_of_quadrature(reg: float, s: float) -> None:
    y = torch.linspace(-12, 14, 20_001, dtype=torch.float64)
    log_potential = (WEIGHTS - SPREADS.log() / 2 - (y[:, None] - MEANS[:, 0]).square() / (2 * SPREADS)).logsumexp(1)
    x = torch.tensor([[-1.5], [0.2], [2.4]], dtype=torch.float64)
    weights = (log_potential - (y - x).square() / (2 * reg * (1 - s))).softmax(1)
    found = line(reg).mean(x, torch.full((3,), s), "forward")
    assert torch.allclose(found[:, 0], weights @ y, atol=1e-6)
    if s == 0:
        variance = weights @ y.square() - (weights @ y).square()
        assert torch.allclose(line(reg).conditionals(x).covariances[:, 0, 0], variance, atol=1e-6)


def test_with_one_component_it_is_the_bridge_between_gaussians() -> None:
    chance = torch.Generator().manual_seed(0)
    factors = torch.randn(2, 3, 3, generator=chance, dtype=torch.float64)
    A, B = factors @ factors.mT + 0.2 * torch.eye(3, dtype=torch.float64)
    gaussian = gaussian_bridge(torch.ones(3), A, torch.zeros(3), B, reg=0.7)
    mean, covariance = gaussian.conditional(torch.zeros(1, 3, dtype=torch.float64))
    found = MixtureBridge(torch.zeros(1), mean, covariance[None], reg=0.7)
    x = torch.randn(4, 3, generator=chance, dtype=torch.float64)
    assert torch.allclose(found.conditionals(x).means, gaussian.conditional(x)[0])
    expected = x + 0.6 * gaussian.drift(x, 0.4)
    assert torch.allclose(found.mean(x, torch.full((4,), 0.4), "forward"), expected)


def test_one_step_and_many_draw_the_same_conditional() -> None:
    bridge, x = line(1.0), torch.full((40_000, 1), 0.3, dtype=torch.float64)
    truth = bridge.conditionals(x[:1])
    for steps in (1, 4):
        chances = batch_chances(x, torch.Generator().manual_seed(steps))
        found = simulate(bridge, x, reg=1.0, chances=chances, grid=times(steps))
        assert abs(float(found.mean() - truth.means)) < 0.03
        assert abs(float(found.var() / truth.covariances) - 1) < 0.03


def test_backward_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="source to target only"):
        line(1.0).mean(torch.zeros(1, 1), torch.zeros(1), "backward")
