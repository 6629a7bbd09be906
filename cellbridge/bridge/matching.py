"""Bridge matching: regress the endpoints of coupled pairs on points of the Brownian bridges between them, both directions at once.

Of the pairs' coupling it keeps the marginals and makes the process Markov; the Schrödinger bridge is the coupling that it leaves as it is.

References
----------
Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, eq. 8 and 12 (the loss, here of endpoints).
De Bortoli et al. 2024, "Schrödinger bridge flow for unpaired data translation", arXiv:2409.09347 (one network for both directions).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cellbridge.bridge.drift import EndpointDrift
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.path import bridge_sample
from cellbridge.errors import NumericalError

_EDGE = 1e-3
"""Nothing is left to be learnt nearer to an endpoint than this."""


@dataclass(frozen=True)
class Pairs:
    """Coupled samples: row i of the source with row i of the target, (pair, …)."""

    source: Tensor
    target: Tensor

    def take(self, rows: Tensor) -> "Pairs":
        """Return some of the pairs."""
        return Pairs(self.source[rows], self.target[rows])

    @classmethod
    def joined(cls, parts: "list[Pairs]") -> "Pairs":
        """Return all pairs of all parts."""
        return cls(torch.cat([part.source for part in parts]), torch.cat([part.target for part in parts]))


@dataclass(frozen=True)
class Examples:
    """What the network is shown and asked, row by row: inputs (row, …), elapsed times and signs (row,), outputs like the inputs."""

    inputs: Tensor
    elapsed: Tensor
    sign: Tensor
    outputs: Tensor

    def take(self, rows: slice) -> "Examples":
        """Return some of the rows."""
        return Examples(self.inputs[rows], self.elapsed[rows], self.sign[rows], self.outputs[rows])


def stratified_times(count: int, *, generator: Generator) -> Tensor:
    """Return elapsed times in [0, 1 - 0.001], one drawn in each of `count` equal parts, in random order."""
    times = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return times[torch.randperm(count, generator=generator)] * (1 - _EDGE)


@torch.no_grad()
def examples(
    model: EndpointDrift, forward: Pairs, backward: Pairs, *, reg: float, count: int, generator: Generator
) -> Examples:
    """Draw examples, half for either direction, mixed.

    Parameters
    ----------
    forward : pairs whose target the forward direction is to predict.
    backward : pairs whose source the backward direction is to predict; the same pairs, unless they were simulated.
    count : how many; even.
    """
    sides: tuple[tuple[Pairs, Direction], ...] = ((forward, "forward"), (backward, "backward"))
    halves = [_half(model, pairs, way, reg=reg, count=count // 2, generator=generator) for pairs, way in sides]
    order = torch.randperm(2 * (count // 2), generator=generator)
    fields = ("inputs", "elapsed", "sign", "outputs")
    return Examples(*(torch.cat([getattr(half, name) for half in halves])[order] for name in fields))


def _half(
    model: EndpointDrift, pairs: Pairs, direction: Direction, *, reg: float, count: int, generator: Generator
) -> Examples:
    chosen = pairs.take(torch.randint(len(pairs.source), (count,), generator=generator))
    elapsed = stratified_times(count, generator=generator)
    s, sign, end = (elapsed, 1.0, chosen.target) if direction == "forward" else (1 - elapsed, -1.0, chosen.source)
    x = bridge_sample(chosen.source, chosen.target, s, reg=reg, generator=generator)
    outputs = model.preconditioning.target(end, x, s, direction)
    return Examples(model.preconditioning.inputs(x, s, direction), elapsed, torch.full_like(s, sign), outputs)


def matching_loss(model: EndpointDrift, shown: Examples) -> Tensor:
    """Return the mean squared error of the network, in units in which saying nothing costs 1 at a plan with the linear guess's moments."""
    result: Tensor = (model.network(shown.inputs, shown.elapsed, shown.sign) - shown.outputs).square().mean()
    return result


def require_finite(loss: Tensor, *, step: int) -> None:
    """Raise NumericalError where a loss is not finite."""
    if not torch.isfinite(loss):
        raise NumericalError(
            f"step {step}: the loss of bridge matching is {float(loss)}. Check the data for outliers, or raise reg."
        )
