"""From one end of a bridge to the other: the SDE by steps of Brownian bridges, and the probability-flow ODE.

A step draws an endpoint and then the Brownian bridge towards it, which is exact for a given endpoint at any step size; what Euler's step
freezes is the drift. Over ten steps with the exact Gaussian bridge at reg = 1 the former leaves no error and the latter percents.

Reference: Shi et al. 2023, arXiv:2303.16852, algorithm 1 (sampling); Song et al. 2021, arXiv:2011.13456, eq. 13 (the ODE).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor

from cellbridge.bridge.drift import Endpoint, drift, probability_flow
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.preconditioning import Chance
from cellbridge.runtime import generator as seeded_generator

Grid = Literal["quadratic", "uniform"]
Step = Literal["draw", "mean", "euler"]
"""`draw`: an endpoint as far as the model knows its spread, then the bridge to it; `mean`: the bridge to the mean endpoint; `euler`."""

Chances = Callable[[int], Chance]
"""Number of the step → its randomness."""

_EDGE = 1e-3
"""The probability flow divides by the time since the start and to the end; its steps look no nearer to either."""


def times(steps: int, *, grid: Grid = "quadratic") -> Tensor:
    """Return steps + 1 elapsed times from 0 to 1; `quadratic` is 1 - (1 - k / steps)², dense where little time remains.

    Raises
    ------
    ValueError : steps < 1.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps: at least one is needed")
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return even if grid == "uniform" else 1 - (1 - even) ** 2


def batch_chances(like: Tensor, generator: Generator) -> Chances:
    """Return randomness for a whole batch at a time: for training, where rows need no seeds of their own."""

    def draw(_: int) -> Chance:
        end, path = torch.randn(2, *like.shape, generator=generator, dtype=like.dtype, device=like.device)
        return Chance(end, path, torch.rand(len(like), generator=generator, device=like.device))

    return draw


def row_chances(seeds: Tensor, shape: tuple[int, ...]) -> Chances:
    """Return randomness of which each row is a function of its own seed, whatever else is in the batch.

    It is to be asked for step after step. It is drawn on the CPU, so that every device gives the same numbers.

    Parameters
    ----------
    seeds : (batch,), int64, on any device.
    shape : of one row.
    """
    generators = [seeded_generator("cpu", "bridge", seed) for seed in seeds.tolist()]
    size = math.prod(shape)

    def draw(_: int) -> Chance:
        normal = torch.stack([torch.randn(2 * size, generator=each) for each in generators]).to(seeds.device)
        uniform = torch.cat([torch.rand(1, generator=each) for each in generators]).to(seeds.device)
        end, path = (normal[:, part].reshape(-1, *shape) for part in (slice(size), slice(size, None)))
        return Chance(end, path, uniform)

    return draw


@torch.no_grad()
def simulate(
    model: Endpoint,
    x: Tensor,
    *,
    reg: float,
    chances: Chances,
    direction: Direction = "forward",
    grid: Tensor | None = None,
    step: Step = "draw",
) -> Tensor:
    """Run the bridge's SDE from one end to the other.

    Parameters
    ----------
    x : (batch, …), at s = 0 (forward) or s = 1 (backward).
    reg : squared volatility; the one that the model was fitted at.
    grid : elapsed times from 0 to 1, as `times` gives them; by default 20 steps.
    """
    elapsed = times(20) if grid is None else grid
    for number, (now, later) in enumerate(pairwise(elapsed.tolist())):
        s = torch.full((len(x),), now if direction == "forward" else 1 - now, dtype=x.dtype, device=x.device)
        width, ahead, chance = later - now, 1 - now, chances(number)
        if step == "euler":
            x = x + width * drift(model, x, s, direction) + (reg * width) ** 0.5 * chance.path
            continue
        end = model.draw(x, s, direction, chance=chance) if step == "draw" else model.mean(x, s, direction)
        x = torch.lerp(x, end, width / ahead) + (reg * width * (1 - later) / ahead) ** 0.5 * chance.path
    return x


@torch.no_grad()
def flow(model: Endpoint, x: Tensor, *, direction: Direction = "forward", grid: Tensor | None = None) -> Tensor:
    """Solve the probability-flow ODE by the midpoint rule: the marginals of the bridge, and no conditional spread at all.

    Parameters
    ----------
    x : (batch, …), at s = 0 (forward) or s = 1 (backward).
    grid : elapsed times; by default 20 steps.
    """
    elapsed = times(20) if grid is None else grid
    sign = 1.0 if direction == "forward" else -1.0

    def velocity(x: Tensor, at: float) -> Tensor:
        s = min(max(at if direction == "forward" else 1 - at, _EDGE), 1 - _EDGE)
        return sign * probability_flow(model, x, torch.full((len(x),), s, dtype=x.dtype, device=x.device))

    for now, later in pairwise(elapsed.tolist()):
        middle = x + (later - now) / 2 * velocity(x, now)
        x = x + (later - now) * velocity(middle, (now + later) / 2)
    return x
