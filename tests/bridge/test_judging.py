"""What held-out rows say of a bridge: ends that are missed, and a plan that cannot be optimal."""

import pytest
import torch
from torch import Tensor

from cellbridge.bridge.drift import Endpoint, EndpointDrift
from cellbridge.bridge.gaussian import Direction, gaussian_bridge
from cellbridge.bridge.judging import Judge, Look
from cellbridge.bridge.preconditioning import Chance, GaussianPreconditioning
from cellbridge.networks.perceptron import BridgePerceptron

EYE = torch.eye(2, dtype=torch.float64)
TARGET = torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64)


class Map(Endpoint):
    """A plan whose ends are right and that has no spread: each row goes where the linear map between two Gaussians takes it."""

    def __init__(self) -> None:
        values, basis = torch.linalg.eigh(TARGET)
        self.root = ((basis * values.sqrt()) @ basis.T).float()
        self.end = torch.empty(0)

    def mean(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        return x @ (self.root if direction == "forward" else torch.linalg.inv(self.root))

    def draw(self, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        if float(s[0]) == (0.0 if direction == "forward" else 1.0):
            self.end = self.mean(x, s, direction)
        return self.end


class Independent(Endpoint):
    """A plan whose ends are right and in which the one says nothing of the other."""

    def mean(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        return torch.zeros_like(x)

    def draw(self, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        return chance.end @ torch.linalg.cholesky(TARGET).T.float() if direction == "forward" else chance.end


def judged(model: Endpoint, *, reg: float = 1.0) -> Look:
    chance = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 800, 2, generator=chance, dtype=torch.float64)
    rows = source.float(), (target @ torch.linalg.cholesky(TARGET).T).float()
    return Judge(rows, reg=reg, seed=0).look(model, step=1)


def bridge(target: Tensor, *, reg: float = 1.0) -> EndpointDrift:
    found = gaussian_bridge(EYE[0] * 0, EYE, EYE[0] * 0, target, reg=reg)
    return EndpointDrift(BridgePerceptron(2), GaussianPreconditioning(found))


@pytest.mark.parametrize("reg", [0.1, 1.0, 10.0])
def test_the_spread_of_a_gaussian_bridge_is_one_whether_or_not_its_ends_are_those_of_the_rows(reg: float) -> None:
    for target in (TARGET, EYE):
        assert judged(bridge(target, reg=reg), reg=reg).spread == pytest.approx(1.0, abs=0.1)


def test_the_right_ends_beat_wrong_ones_and_not_the_other_way_round() -> None:
    right, wrong = judged(bridge(TARGET)), judged(bridge(3 * EYE))
    assert right.beats(wrong)
    assert not wrong.beats(right)
    assert not right.beats(right)


@pytest.mark.parametrize("plan", [Map, Independent])
def test_plans_that_collapsed_or_forgot_their_source_are_refused_though_their_ends_are_right(
    plan: type[Endpoint],
) -> None:
    wrong = judged(bridge(3 * EYE))
    found = judged(plan())
    assert found.distance < 0.05 * wrong.distance
    assert found.off > 0
    assert not found.beats(wrong)
