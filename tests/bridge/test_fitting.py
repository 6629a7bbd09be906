import pytest
import torch
from torch import Tensor

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.drift import EndpointDrift
from cellbridge.bridge.fitting import Schedule, fit_network
from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.integrate import batch_chances, simulate, times
from cellbridge.bridge.matching import Pairs, examples, matching_loss, require_finite
from cellbridge.bridge.preconditioning import GaussianPreconditioning
from cellbridge.errors import NumericalError
from cellbridge.metrics.plans import Conditionals, conditional_uvp
from cellbridge.networks.perceptron import BridgePerceptron

REG = 1.0
EYE = torch.eye(2, dtype=torch.float64)
SCHEDULE = Schedule(simulated=512, steps_a_round=40)


def wrong_reference(seed: int = 0) -> EndpointDrift:
    """Return a silent model that takes both sides for standard normal."""
    network = BridgePerceptron(2, generator=torch.Generator().manual_seed(seed))
    return EndpointDrift(network, GaussianPreconditioning(gaussian_bridge(EYE[0] * 0, EYE, EYE[0] * 0, EYE, reg=REG)))


def sides(count: int = 3000) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    source = torch.randn(count, 2, generator=chance)
    return source, torch.randn(count, 2, generator=chance) @ torch.tensor([[0.8, 0.5], [0.0, 0.4]]) + 1.0


def test_a_network_learns_the_plan_of_a_gaussian_that_its_reference_does_not_know() -> None:
    source, target = sides()
    model = wrong_reference()
    truth = gaussian_bridge(source.mean(0), torch.cov(source.T), target.mean(0), torch.cov(target.T), reg=REG)
    x = source[:40].repeat_interleave(300, 0)

    def error() -> float:
        draws = simulate(model, x, reg=REG, chances=batch_chances(x, torch.Generator().manual_seed(1)), grid=times(10))
        mean, covariance = truth.conditional(source[:40].double())
        known = Conditionals(mean, covariance.expand(40, -1, -1))
        return conditional_uvp(draws.view(40, 300, 2), known, target_variance=float(torch.cov(target.T).trace()))

    before = error()
    fit = fit_network(
        model,
        lambda count, chance: source[torch.randint(2500, (count,), generator=chance)],
        lambda count, chance: target[torch.randint(2500, (count,), generator=chance)],
        (source[2500:], target[2500:]),
        reg=REG,
        seed=0,
        budget=Budget(3.0),
        schedule=SCHEDULE,
    )
    assert before > 100
    assert error() < 15
    assert fit.kept > 0
    assert fit.looks[0].step == 0


def test_a_network_that_harms_is_left_out() -> None:
    source, _ = sides()
    model = wrong_reference()  # right here: both sides are standard normal
    start = {name: value.clone() for name, value in model.network.state_dict().items()}
    fit = fit_network(
        model,
        lambda count, chance: (
            50 * torch.randn(count, 2, generator=chance)
        ),  # what is trained on is not what is judged on
        lambda count, chance: 50 * torch.randn(count, 2, generator=chance),
        (source[:400], source[400:800]),
        reg=REG,
        seed=0,
        budget=Budget(0.5),
        schedule=SCHEDULE,
    )
    assert fit.kept == 0
    assert all(torch.equal(value, start[name]) for name, value in fit.model.network.state_dict().items())


def test_saying_nothing_costs_one_at_a_plan_of_the_reference() -> None:
    bridge = gaussian_bridge(EYE[0] * 0, EYE, EYE[1], 0.5 * EYE, reg=REG)
    model = EndpointDrift(BridgePerceptron(2), GaussianPreconditioning(bridge))
    chance = torch.Generator().manual_seed(0)
    source = torch.randn(4000, 2, generator=chance, dtype=torch.float64)
    mean, covariance = bridge.conditional(source)
    pairs = Pairs(
        source.float(), (mean + torch.randn(4000, 2, generator=chance, dtype=torch.float64) @ covariance.sqrt()).float()
    )
    shown = examples(model, pairs, pairs, reg=REG, count=8000, generator=chance)
    assert float(matching_loss(model, shown)) == pytest.approx(1.0, abs=0.04)
    assert set(shown.sign.tolist()) == {1.0, -1.0}


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(NumericalError, match="step 7"):
        require_finite(torch.tensor(float("nan")), step=7)
