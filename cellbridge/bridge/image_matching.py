"""What the training engine needs to fit a bridge between images: points of the Brownian bridges of coupled pairs, and the loss on them.

Of the pairs' coupling, bridge matching keeps the marginals and makes the process Markov.

References
----------
Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, eq. 8 and 12 (the loss, here of endpoints).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from cellbridge.bridge.images import ImageBridge
from cellbridge.bridge.linear_guess import Where
from cellbridge.bridge.path import along
from cellbridge.runtime import generator
from cellbridge.training.slicing import sliced
from cellbridge.typing import Images, Labels

EDGE = 1e-3
"""Nothing is left to be learnt nearer to an endpoint than this."""

_PARTS = 5
"""Parts of the way whose losses are told apart."""


class ImagePairs(Protocol):
    """Coupled images, as the data loader gives them."""

    @property
    def source(self) -> Images: ...
    @property
    def target(self) -> Images: ...
    @property
    def labels(self) -> Labels: ...
    @property
    def weights(self) -> Tensor: ...


@dataclass(frozen=True)
class MixedPairs:
    """Pairs of a coupling, some of them replaced by simulated ones.

    Parameters
    ----------
    simulated : (batch,), which.
    """

    source: Images
    target: Images
    labels: Labels
    weights: Tensor
    simulated: Tensor


@dataclass(frozen=True)
class Draw:
    """The chance of a training step.

    Parameters
    ----------
    elapsed : (batch,), in [0, 1 - 0.001].
    forward : (batch,), the direction that is asked.
    reg : (batch,), squared volatility.
    noise, other : (batch, channel, y, x), standard normal: for the point of the bridge, and for a start that is drawn.
    """

    elapsed: Tensor
    forward: Tensor
    reg: Tensor
    noise: Tensor
    other: Tensor


@dataclass(frozen=True)
class Bridged:
    """Pairs and the chance of their step.

    Parameters
    ----------
    figures : name → number, of the coupling that the pairs come from.
    """

    pairs: ImagePairs
    draw: Draw
    figures: Mapping[str, float] = field(default_factory=dict)


def training_draw(images: Images, *, reg: tuple[float, float], generator: torch.Generator) -> Draw:
    """Draw times that are spread evenly over the batch, directions of which each has half, log-uniform volatilities, and noise."""
    n, device = len(images), images.device
    rank = torch.randperm(n, generator=generator, device=device)
    elapsed = (rank + torch.rand(n, generator=generator, device=device)) / n * (1 - EDGE)
    forward = torch.randperm(n, generator=generator, device=device) * 2 < n
    low, high = (math.log(value) for value in reg)
    volatility = low + (high - low) * torch.rand(n, generator=generator, device=device)
    noise, other = torch.randn((2, *images.shape), generator=generator, dtype=images.dtype, device=device)
    return Draw(elapsed, forward, volatility.exp(), noise, other)


def bridged_batches(
    source: Callable[[int, int], ImagePairs],
    *,
    reg: tuple[float, float],
    seed: int,
    accumulation: int = 1,
    figures: Callable[[int], Mapping[str, float]] | None = None,
) -> Callable[[int, int], Bridged]:
    """Return (step, micro-batch) → pairs with times, directions and noise: a pure function, as `source` is.

    Parameters
    ----------
    figures : step → what to tell of its coupling.
    """
    drawn: tuple[int, Draw] | None = None

    def batches(step: int, micro: int) -> Bridged:
        nonlocal drawn
        pairs = source(step, micro)
        size = len(pairs.source)
        if drawn is None or drawn[0] != step:
            whole = pairs.source.new_empty((1, *pairs.source.shape[1:])).expand(size * accumulation, -1, -1, -1)
            chance = generator(pairs.source.device, "image bridge", seed, step)
            drawn = (step, training_draw(whole, reg=reg, generator=chance))
        part = slice(micro * size, (micro + 1) * size)
        return Bridged(pairs, sliced(drawn[1], part), figures(step) if figures is not None else {})

    return batches


def matching_losses(bridge: ImageBridge, pairs: ImagePairs, draw: Draw, *, network: nn.Module | None = None) -> Tensor:
    """Return each pair's mean squared error of the network, (batch,).

    Saying nothing costs 1 at a plan with the linear guess's moments, at all times and volatilities.

    Parameters
    ----------
    pairs : labels are the numbers of the conditions.
    network : the bridge's, compiled or wrapped.
    """
    return losses_beside_silence(bridge, pairs, draw, network=network)[0]


def losses_beside_silence(
    bridge: ImageBridge, pairs: ImagePairs, draw: Draw, *, network: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Return each pair's loss, and what it costs to say nothing, which leaves the linear guess: (batch,) each.

    Parameters
    ----------
    pairs, network : as of `matching_losses`.
    """
    point, where, wanted = _asked(bridge, pairs, draw)
    output = bridge.output(point, where, network=network)
    return (output - wanted).square().flatten(1).mean(1), wanted.square().flatten(1).mean(1)


def _asked(bridge: ImageBridge, pairs: ImagePairs, draw: Draw) -> tuple[Images, Where, Images]:
    """Return points of the bridges between pairs, where they are, and what the network is to say there."""
    forward = draw.forward[:, None, None, None]
    start = torch.where(forward, pairs.source, pairs.target)
    end = torch.where(forward, pairs.target, pairs.source)
    if bridge.linear.optimal:
        back = Where(torch.zeros_like(draw.elapsed), ~draw.forward, pairs.labels, draw.reg)
        drawn = bridge.linear.draw(end, back, noise=draw.other)
        given = pairs.simulated[:, None, None, None] if isinstance(pairs, MixedPairs) else torch.zeros_like(forward)
        start = torch.where(given, start, drawn)
    elapsed, reg = along(draw.elapsed, start), along(draw.reg, start)
    point = torch.lerp(start, end, elapsed) + (reg * elapsed * (1 - elapsed)).sqrt() * draw.noise
    where = Where(draw.elapsed, draw.forward, pairs.labels, draw.reg)
    return point, where, bridge.wanted(end, point, where)


def watched(losses: Tensor, bridged: Bridged) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what to watch of a step, as (sum, count) by name: losses by direction and by part of the way, and its coupling's figures.

    Parameters
    ----------
    losses : (batch,), detached.
    """
    draw = bridged.draw
    masks = {"loss/forward": draw.forward, "loss/backward": ~draw.forward}
    part = (draw.elapsed * _PARTS).long().clamp_max(_PARTS - 1)
    masks |= {f"loss/part {number + 1} of {_PARTS}": part == number for number in range(_PARTS)}
    one = torch.ones((), device=losses.device)
    told = {name: (one * value, one) for name, value in bridged.figures.items()}
    return {name: ((losses * mask).sum(), mask.sum().to(losses.dtype)) for name, mask in masks.items()} | told
