"""Pairs from a coupling: every source once, its target drawn from what the plan gives it."""

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from cellbridge.errors import CouplingError, NumericalError
from cellbridge.transport.coupling import Coupling


def draw_targets(coupling: Coupling, *, generator: Generator) -> Int[Tensor, " source"]:
    """Return one target for each source, on the coupling's device: its only one, or a draw from P(target | source).

    Drawing pairs from the plan itself, with replacement, would leave a third of the sources unused.

    Parameters
    ----------
    generator : on any device; one number per source is drawn from it, whatever the plan.

    Raises
    ------
    NumericalError : a source has no mass left in an unbalanced plan.
    """
    if coupling.permutation is not None:
        return coupling.permutation
    assert coupling.plan is not None
    plan = coupling.plan
    # A row of an unbalanced plan may be tiny: divide before summing.
    largest = plan.amax(1, keepdim=True)
    if not bool((largest > 0).all()):
        empty = int((largest == 0).sum())
        raise NumericalError(
            f"{empty} of {len(plan)} sources have no mass left in the unbalanced plan. Raise tau towards 1 or reg, or leave outliers out."
        )
    below = (plan / largest).cumsum(1)
    drawn = torch.rand(len(plan), generator=generator, device=generator.device, dtype=plan.dtype).to(plan.device)
    # In (0, total], so that a target without mass is never the first to reach it.
    reached = (1 - drawn)[:, None] * below[:, -1:]
    return torch.searchsorted(below, reached)[:, 0]


def draw_independent(sources: int, targets: int, *, generator: Generator) -> Int[Tensor, " source"]:
    """Return a random target for each source, each target used as often as another, or once more: independent pairs, the baseline.

    Raises
    ------
    CouplingError : a side is empty.
    """
    if sources < 1 or targets < 1:
        raise CouplingError(f"{sources} sources and {targets} targets: both sides need one or more.")
    rounds = [
        torch.randperm(targets, generator=generator, device=generator.device) for _ in range(-(-sources // targets))
    ]
    return torch.cat(rounds)[:sources]
