"""Bridges between images: what is known in closed form of Gaussian ones, what the network is shown and asked, and chance by step."""

from dataclasses import dataclass

import pytest
import torch
from test_linear_guess import SHAPE, D, at, drawn, estimated
from torch import Tensor, nn

from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.image_matching import (
    EDGE,
    Bridged,
    Draw,
    MixedPairs,
    bridged_batches,
    matching_losses,
    training_draw,
    watched,
)
from cellbridge.bridge.images import ImageBridge, ImageEndpoint
from cellbridge.bridge.integrate import batch_chances, row_chances, simulate, times
from cellbridge.bridge.linear_guess import Moments
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.networks.bridge_backbone import BridgeBackbone

REG = 0.3


class Linear(nn.Module):
    """A backbone that mixes all pixels and channels of the image linearly, and notes what it was told."""

    def __init__(self, features: int = D):
        super().__init__()
        self.mixing = nn.Parameter(torch.zeros(features, features))

    def forward(self, x: Tensor, t: Tensor, *, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.seen, self.t, self.labels = x, t, class_labels
        image = x[:, : SHAPE[0]]
        return ((image.flatten(1) @ self.mixing).view_as(image),)


@dataclass(frozen=True)
class Given:
    source: Tensor
    target: Tensor
    labels: Tensor
    weights: Tensor


def pairs(source: Tensor, target: Tensor, label: int = 0) -> Given:
    n = len(source)
    return Given(source.float(), target.float(), torch.full((n,), label), torch.ones(n))


def bridge(moments: Moments, *, clock: str = "elapsed", optimal: bool = False, reg=(REG, REG)) -> ImageBridge:
    return ImageBridge(
        BridgeBackbone(Linear()), moments, make_schedule("cosine", 1000), clock=clock, reg=reg, optimal=optimal
    )


def chance(n: int, *, elapsed: float | None = None, forward: bool = True, seed: int = 0) -> Draw:
    draw = training_draw(torch.empty(n, *SHAPE), reg=(REG, REG), generator=torch.Generator().manual_seed(seed))
    if elapsed is None:
        return draw
    return Draw(torch.full((n,), elapsed), torch.full((n,), forward), draw.reg, draw.noise, draw.other)


@pytest.mark.parametrize("modes", [0, 6])
def test_saying_nothing_costs_one_at_pairs_of_the_moments(modes):
    source, target = drawn(4000, 1)
    model = bridge(estimated(source, target, modes))
    with torch.no_grad():
        losses = matching_losses(model, pairs(source, target), chance(4000))
    assert float(losses.mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("forward", [True, False])
def test_a_linear_network_learns_the_endpoint_that_gaussian_images_have(forward):
    """From one variance a channel, by regression alone, to E[X_1 | X_s] of the whole covariance."""
    source, target = drawn(4000, 2)
    model, s = bridge(estimated(source, target, 0)), 0.6
    draw = chance(4000, elapsed=s, forward=forward)
    start, end = (source, target) if forward else (target, source)
    optimiser = torch.optim.LBFGS(model.network.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = matching_losses(model, pairs(source, target), draw).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    x = torch.lerp(start, end, s).float() + (REG * s * (1 - s)) ** 0.5 * draw.noise
    with torch.no_grad():
        found = model.endpoint(x, at(4000, s, forward=forward, reg=REG))
    exact = torch.linalg.lstsq(torch.cat([x.flatten(1), torch.ones(4000, 1)], 1).double(), end.flatten(1)).solution
    expected = torch.cat([x.flatten(1), torch.ones(4000, 1)], 1).double() @ exact
    error = (found.flatten(1) - expected).square().mean() / (end.flatten(1) - expected).square().mean()
    assert float(error) < 0.01


def test_the_optimal_guess_is_the_bridge_between_gaussian_images():
    """Simulated with a network that says nothing: the right target and the right plan."""
    source, target = drawn(6000, 3)
    moments = estimated(source, target, D, coupled=False)
    model = bridge(moments, optimal=True)
    with torch.no_grad():
        moved = simulate(
            ImageEndpoint(model, condition=0, reg=REG),
            source.float(),
            reg=REG,
            chances=batch_chances(source.float(), torch.Generator().manual_seed(0)),
            grid=times(40),
            step="mean",
        )
    basis = moments.modes.flatten(1).double()
    whole = [basis.T @ c.double() @ basis for c in moments.covariances[0]]
    exact = gaussian_bridge(moments.means[0, 0].flatten(), whole[0], moments.means[0, 1].flatten(), whole[1], reg=REG)
    joint = torch.cov(torch.cat([source.flatten(1), moved.flatten(1).double()], 1).T)
    scale = float(whole[1].diagonal().mean())
    torch.testing.assert_close(moved.double().mean(0), target.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(joint[D:, D:], whole[1], rtol=0, atol=0.15 * scale)
    torch.testing.assert_close(joint[:D, D:], exact.cross, rtol=0, atol=0.15 * scale)


def test_pairs_of_the_gaussian_plan_are_drawn_anew_and_simulated_ones_are_kept():
    source, target = drawn(2000, 4)
    model = bridge(estimated(source, target, D, coupled=False), optimal=True)
    draw = chance(2000, elapsed=0.0)
    plain = matching_losses(model, pairs(source, target), draw)
    other = matching_losses(model, pairs(source.flip(0), target), draw)
    assert torch.equal(plain, other), "whatever the sources were"
    given = pairs(source, target)
    mixed = MixedPairs(given.source, given.target, given.labels, given.weights, torch.arange(2000) % 2 == 0)
    found = matching_losses(model, mixed, draw)
    assert torch.equal(found[1::2], plain[1::2])
    assert not torch.isclose(found[::2], plain[::2]).any()


@pytest.mark.parametrize("clock", ["endpoint", "noise", "elapsed"])
def test_a_clock_runs_between_the_ends_that_it_says(clock):
    source, target = drawn(300, 5)
    model = bridge(estimated(source, target, 4), clock=clock)
    seen = []
    for elapsed in (0.0, 0.25, 0.5, 0.75, 1.0):
        model.output(source[:2].float(), at(2, elapsed, reg=REG))
        seen.append(float(model.network.backbone.t[0]))
    if clock == "noise":
        assert seen[0] == seen[-1] == -1
        assert seen[2] == max(seen)
        angle = model.schedule.angle(torch.tensor([seen[2]], dtype=torch.float64))
        assert float(angle.tan()) == pytest.approx((REG / 4) ** 0.5, rel=1e-3)
    else:
        assert seen == sorted(seen, reverse=True)
        assert (seen[0], seen[-1]) == pytest.approx((999, -1), abs=1e-3)


def test_the_network_is_told_condition_direction_time_and_volatility():
    source, target = drawn(300, 6)
    model, x = bridge(estimated(source, target, 0), reg=(0.01, 1.0)), source[:3].float()
    for forward, label in ((True, 1), (False, 2)):
        model.output(x, at(3, 0.25, forward=forward, reg=0.1))
        backbone = model.network.backbone
        assert backbone.labels.tolist() == [label] * 3
        planes = backbone.seen[:, SHAPE[0] :]
        assert torch.equal(planes[:, 0], torch.full_like(planes[:, 0], -0.5))
        torch.testing.assert_close(planes[:, 1], torch.zeros_like(planes[:, 1]), rtol=0, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch():
    source, target = drawn(300, 7)
    model, x = bridge(estimated(source, target, 4)), source[:5].float()
    torch.nn.init.normal_(model.network.backbone.mixing, std=0.1, generator=torch.Generator().manual_seed(0))
    end = ImageEndpoint(model, condition=0, reg=REG)
    chances = [row_chances(torch.arange(5)[i], SHAPE) for i in (slice(0, 5), slice(3, 4))]
    with torch.no_grad():
        together = simulate(end, x, reg=REG, chances=chances[0], grid=times(4), step="mean")
        alone = simulate(end, x[3:4], reg=REG, chances=chances[1], grid=times(4), step="mean")
    torch.testing.assert_close(together[3:4], alone, rtol=1e-4, atol=1e-5)


def test_the_chance_of_a_step_covers_times_directions_and_volatilities():
    draw = training_draw(torch.empty(64, *SHAPE), reg=(0.01, 1.0), generator=torch.Generator().manual_seed(0))
    parts = (draw.elapsed / (1 - EDGE) * 64).long().sort().values
    assert parts.tolist() == list(range(64)), "one time in each of 64 equal parts"
    assert int(draw.forward.sum()) == 32
    logs = draw.reg.log10()
    assert -2 <= float(logs.min()) < -1.6
    assert -0.4 < float(logs.max()) <= 0
    assert torch.equal(draw.noise.isfinite().all(), torch.tensor(True))


def test_chance_is_a_function_of_seed_and_step_however_it_is_cut():
    source, target = drawn(8, 8)
    given = pairs(source, target)

    def part(step: int, micro: int, *, of: int) -> Given:
        rows = slice(8 // of * micro, 8 // of * (micro + 1))
        return Given(given.source[rows], given.target[rows], given.labels[rows], given.weights[rows])

    whole = bridged_batches(lambda s, m: part(s, m, of=1), reg=(0.1, 1.0), seed=3)(5, 0).draw
    cut = bridged_batches(lambda s, m: part(s, m, of=4), reg=(0.1, 1.0), seed=3, accumulation=4)
    parts = [cut(5, micro).draw for micro in range(4)]
    for name in ("elapsed", "forward", "reg", "noise", "other"):
        assert torch.equal(torch.cat([getattr(one, name) for one in parts]), getattr(whole, name))
    assert not torch.equal(cut(6, 0).draw.noise, parts[0].noise)


def test_what_is_watched_are_means_by_direction_and_part_and_the_coupling():
    losses, draw = torch.arange(1.0, 11.0), chance(10)
    found = watched(losses, Bridged(pairs(*drawn(10, 9)), draw, {"plan_cost": 2.5}))
    total, count = found["loss/forward"]
    assert float(total) == pytest.approx(float(losses[draw.forward].sum()))
    assert float(count) == 5
    assert float(found["plan_cost"][0]) == 2.5
    assert sum(float(found[f"loss/part {i + 1} of 5"][1]) for i in range(5)) == 10
