"""The linear guess against the closed form of jointly Gaussian images, and against the preconditioning by axis that it extends."""

import dataclasses

import pytest
import torch
from torch import Tensor

from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.image_moments import joined, leading_modes, pair_moments
from cellbridge.bridge.linear_guess import LinearGuess, Moments, Where
from cellbridge.bridge.path import bridge_sample
from cellbridge.bridge.preconditioning import AxisPreconditioning

SHAPE = (2, 3, 3)
D = 18


def drawn(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return coupled pairs of correlated Gaussian images of different means."""
    chance = torch.Generator().manual_seed(seed)
    mixing, other = torch.randn(2, D, D, generator=chance, dtype=torch.float64) / D**0.5
    source = torch.randn(n, D, generator=chance, dtype=torch.float64) @ mixing
    target = 0.5 * source + 0.7 * torch.randn(n, D, generator=chance, dtype=torch.float64) @ other
    return (source + 1).view(n, *SHAPE), (target - torch.linspace(0, 1, D).double()).view(n, *SHAPE)


def estimated(source: Tensor, target: Tensor, count: int, *, coupled: bool = True, cells: int = 10**9) -> Moments:
    kinds = torch.cat([side - side.mean(0) for side in (source, target)])
    modes = leading_modes(kinds.float(), count, seed=0)
    return pair_moments(lambda: [(source.float(), target.float())], modes, cells=cells, coupled=coupled)


def at(n: int, elapsed: float, *, forward: bool = True, reg: float = 0.3, condition: int = 0) -> Where:
    rows = torch.ones(n)
    return Where(elapsed * rows, (rows * forward).bool(), (condition * rows).long(), reg * rows)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("elapsed", [0.0, 0.4, 0.95])
def test_with_every_mode_it_is_the_conditional_mean_of_gaussian_pairs(elapsed, forward):
    source, target = drawn(4000, 0)
    guess = LinearGuess(estimated(source, target, D))
    assert len(guess.modes) == D
    s = elapsed if forward else 1 - elapsed
    times, chance = torch.full((4000,), s, dtype=torch.float64), torch.Generator().manual_seed(1)
    x, end = bridge_sample(source, target, times, reg=0.3, generator=chance), target if forward else source
    found, spread = guess(x.float(), at(4000, elapsed, forward=forward))
    off = x.flatten(1) - ((1 - s) * source.mean(0) + s * target.mean(0)).flatten()
    joint = torch.cov(torch.cat([(1 - s) * source + s * target, end]).view(2, 4000, D).permute(1, 0, 2).flatten(1).T)
    variance = joint[:D, :D] + 0.3 * s * (1 - s) * torch.eye(D, dtype=torch.float64)
    gain = torch.linalg.solve(variance, joint[:D, D:]).T
    expected = (end.mean(0).flatten() + off @ gain.T).view_as(end)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    left = (joint[D:, D:] - gain @ joint[:D, D:]).diagonal().view(SHAPE).mean((1, 2)).sqrt()
    torch.testing.assert_close(spread[0, :, 0, 0].double(), left, rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("forward", [True, False])
def test_without_modes_it_is_the_preconditioning_by_channel(forward):
    source, target = drawn(500, 2)
    moments = estimated(source, target, 0)
    flat = dataclasses.replace(moments, means=moments.means.mean((3, 4), keepdim=True).expand_as(moments.means))
    axes = AxisPreconditioning(flat.means[0, :, :, 0, 0], flat.rest[0], flat.rest_cross[0], reg=0.3)
    x, elapsed = source.float(), torch.rand(500, generator=torch.Generator().manual_seed(0))
    where = dataclasses.replace(at(500, 0.0, forward=forward), elapsed=elapsed)
    guess, spread = LinearGuess(flat)(x, where)
    way, s = ("forward", elapsed) if forward else ("backward", 1 - elapsed)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(guess, axes.endpoint(zero, x, s, way), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((guess + spread), axes.endpoint(zero + 1, x, s, way), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [0, 5, D])
@pytest.mark.parametrize("elapsed", [0.0, 0.5, 0.99])
def test_what_it_leaves_has_the_spread_that_it_says(elapsed, count):
    source, target = drawn(4000, 3)
    chance = torch.Generator().manual_seed(1)
    x = bridge_sample(source, target, torch.full((4000,), elapsed).double(), reg=0.3, generator=chance).float()
    guess, spread = LinearGuess(estimated(source, target, count))(x, at(4000, elapsed))
    unit = ((target.float() - guess) / spread).square().mean((0, 2, 3))
    torch.testing.assert_close(unit, torch.ones(2), rtol=0.05, atol=0)


def test_pairs_that_are_independent_say_nothing_of_their_ends_at_the_start():
    source, target = drawn(300, 4)
    guess, _ = LinearGuess(estimated(source, target, 6, coupled=False))(source.float(), at(300, 0.0))
    torch.testing.assert_close(guess, target.float().mean(0).expand_as(guess), rtol=0, atol=1e-5)


def test_conditions_have_moments_of_their_own_and_share_modes():
    first, second = drawn(200, 5), drawn(200, 6)
    parts = [estimated(*first, 4)]
    parts.append(pair_moments(lambda: [tuple(side.float() for side in second)], parts[0].modes, cells=9, coupled=True))
    both, x = LinearGuess(joined(parts)), first[0].float()
    for condition, part in enumerate(parts):
        alone, together = LinearGuess(part), both(x, at(200, 0.3, condition=condition))
        for found, expected in zip(together, alone(x, at(200, 0.3)), strict=True):
            torch.testing.assert_close(found, expected)


def test_few_targets_take_the_shape_of_the_sources():
    source, target = drawn(400, 7)
    many, few = (estimated(source, target, 6, cells=cells).covariances[0] for cells in (10**9, 1))
    shape = few[1] / few[1].trace()
    assert float((shape - many[0] / many[0].trace()).norm()) < 0.2 * float((many[1] / many[1].trace() - shape).norm())
    torch.testing.assert_close(few[1].trace(), many[1].trace())


def test_modes_are_those_of_a_principal_component_analysis():
    source, _ = drawn(300, 8)
    rows = (source - source.mean(0)).flatten(1).float()
    exact = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    found = leading_modes(rows.view(-1, *SHAPE), 3, seed=1).flatten(1)
    torch.testing.assert_close((found @ exact.T).abs(), torch.eye(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(found @ found.T, torch.eye(3), rtol=0, atol=1e-5)


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    leading_modes(torch.randn(10, *SHAPE, generator=torch.Generator()), 2, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("reg", [0.01, 1.0])
def test_its_optimal_plan_is_the_closed_form_bridge_between_gaussians(reg, forward):
    source, target = drawn(4000, 9)
    moments = estimated(source, target, D, coupled=False)
    guess = LinearGuess(moments, optimal=True)
    basis = moments.modes.flatten(1).double()
    means = [mean.flatten().double() for mean in moments.means[0]]
    whole = [basis.T @ c.double() @ basis for c in moments.covariances[0]]
    bridge = gaussian_bridge(means[0], whole[0], means[1], whole[1], reg=reg)
    way = bridge if forward else bridge.reversed()
    start = (source if forward else target)[:50]
    where = at(50, 0.0, forward=forward, reg=reg)
    expected, covariance = way.conditional(start.flatten(1))
    found, _ = guess(start.float(), where)
    torch.testing.assert_close(found.flatten(1).double(), expected, rtol=0, atol=5e-3)
    chance = torch.Generator().manual_seed(0)
    one, many = start[:1].float().expand(6000, -1, -1, -1), at(6000, 0.0, forward=forward, reg=reg)
    ends = guess.draw(one, many, noise=torch.randn(one.shape, generator=chance)).flatten(1).double()
    torch.testing.assert_close(ends.mean(0), expected[0], rtol=0, atol=0.1)
    torch.testing.assert_close(torch.cov(ends.T), covariance, rtol=0, atol=0.08 * float(covariance.diagonal().max()))
