"""How a flow is trained: its lines, its times, and that the loss is least at the velocity that is known."""

from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from cellbridge.baselines.flow import NetworkVelocity
from cellbridge.baselines.flow_matching import (
    Draws,
    Lines,
    control_lines,
    draw_lines,
    noise_lines,
    skewed,
    velocity_loss,
)
from cellbridge.diffusion.schedule import make_schedule

SIZE = 24


@dataclass(frozen=True)
class Cells:
    """Batches of either kind."""

    source: Tensor
    target: Tensor
    labels: Tensor
    weights: Tensor

    @property
    def images(self) -> Tensor:
        return self.target


def cells(step: int, micro: int, *, parts: int = 1) -> Cells:
    draw = torch.Generator().manual_seed(step)
    source, target = torch.randn(2, SIZE, 1, 3, 3, generator=draw)
    rows = slice(micro * SIZE // parts, (micro + 1) * SIZE // parts)
    return Cells(source[rows], target[rows], (torch.arange(SIZE) % 6)[rows], torch.ones(SIZE)[rows])


def draws(**options) -> Draws:
    return Draws(
        **{
            "rows": 3,
            "times": "uniform",
            "condition_dropout": 0.3,
            "seed": 7,
            "noise_level": 0.5,
            "noise_probability": 0.5,
        }
        | options
    )


class Linear(nn.Module):
    """v = weight x + bias, called as a backbone is."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x, t, class_labels, return_dict):
        return (self.weight * x + self.bias,)


def test_at_one_time_the_loss_is_least_at_the_velocity_between_gaussians():
    """E[target - source | x_s] = (m_1 - m_0) + (s d_1² - (1 - s) d_0²) / var x_s (x_s - mean x_s), found by regression on drawn lines."""
    draw, count = torch.Generator().manual_seed(0), 20_000
    source = (-0.4 + 0.2 * torch.randn(count, generator=draw)).view(-1, 1, 1, 1)
    target = (0.1 + 0.3 * torch.randn(count, generator=draw)).view(-1, 1, 1, 1)
    at = 0.7
    labels = torch.zeros(count, dtype=torch.int64)
    lines = Lines(source, target, torch.full((count,), at), labels, torch.ones(count))
    network = Linear()
    loss = velocity_loss(NetworkVelocity(network, make_schedule("cosine", 100), source="control"), 100)
    optimiser = torch.optim.LBFGS(network.parameters(), max_iter=20)

    def closure():
        optimiser.zero_grad()
        value = loss(network, lines).loss
        value.backward()
        return value

    optimiser.step(closure)
    variance = 0.3**2 * 0.2**2 + 0.7**2 * 0.3**2
    gain = (0.7 * 0.3**2 - 0.3 * 0.2**2) / variance
    assert network.weight.item() == pytest.approx(gain, abs=0.05)
    assert network.bias.item() == pytest.approx(0.5 - gain * (0.3 * -0.4 + 0.7 * 0.1), abs=0.01)


def test_from_noise_the_loss_is_that_of_v_over_c_squared():
    """|u - (target - epsilon)|² = |v - v_true|² / c²: the velocity is the base's prediction, weighted within [1, 2]."""
    lines = noise_lines(cells, draws())(0, 0)
    network = Linear()
    s = lines.s.view(-1, 1, 1, 1)
    c = (s**2 + (1 - s) ** 2).sqrt()
    v = (s * lines.start - (1 - s) * lines.target) / c
    loss = velocity_loss(NetworkVelocity(network, make_schedule("cosine", 100), source="noise"), 100)
    assert torch.allclose(loss(network, lines).loss, (v / c).square().mean(), rtol=1e-4)


def test_times_have_their_law():
    """Uniform, and skewed as 1 / (1 + sigma) with log sigma ~ N(-1.2, 1.2²)."""
    drawn = {}
    for kind in ("uniform", "skewed"):
        chance = torch.Generator().manual_seed(1)
        drawn[kind] = draw_lines(
            (4000, 1, 1, 1), times=kind, noise_probability=0.5, condition_dropout=0.2, chance=chance
        )
    assert stats.kstest(drawn["uniform"].s.numpy(), "uniform").pvalue > 0.01
    sigma = (1 / drawn["skewed"].s.double() - 1).numpy()
    assert stats.kstest(sigma, stats.lognorm(1.2, scale=2.718281828**-1.2).cdf).pvalue > 0.01
    assert float(drawn["uniform"].noisy.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(drawn["uniform"].hidden.float().mean()) == pytest.approx(0.2, abs=0.03)
    ends = skewed(torch.tensor([0.0, 0.5, 1.0]))
    assert bool((ends.diff() > 0).all())
    assert ends[1].item() == pytest.approx(1 / (1 + 2.718281828**-1.2), rel=1e-5)


def test_noise_is_added_to_some_control_cells_and_is_all_that_a_flow_from_noise_starts_from():
    made, plain = control_lines(cells, draws())(3, 0), cells(3, 0)
    moved = (made.start - plain.source).flatten(1)
    touched = moved.abs().amax(1) > 0
    assert 0 < int(touched.sum()) < SIZE
    assert float(moved[touched].std()) == pytest.approx(0.5, rel=0.2)
    assert torch.equal(made.target, plain.target)
    noise = noise_lines(cells, draws())(3, 0)
    assert torch.equal(noise.target, plain.target)
    assert not torch.equal(noise.start, plain.source)
    assert torch.equal(noise.start, noise_lines(lambda step, _: cells(step + 9, 0), draws())(3, 0).start)


def test_a_hidden_condition_leaves_its_plate():
    labels, shown = cells(0, 0).labels, noise_lines(cells, draws())(0, 0).labels
    hidden = shown != labels
    assert bool(hidden.any())
    assert torch.equal(shown[hidden], labels[hidden] - labels[hidden] % 3)


@pytest.mark.parametrize("lines", [control_lines, noise_lines])
def test_a_step_is_a_function_of_seed_and_step_however_it_is_cut(lines):
    whole = lines(cells, draws())
    cut = lines(lambda step, micro: cells(step, micro, parts=4), draws(accumulation=4))
    for step in (2, 0):
        parts = [cut(step, micro) for micro in range(4)]
        for name in ("start", "target", "s", "labels"):
            assert torch.equal(torch.cat([getattr(one, name) for one in parts]), getattr(whole(step, 0), name))
    assert not torch.equal(whole(1, 0).s, lines(cells, draws(seed=8))(1, 0).s)
