"""Fit a network to a bridge between two unpaired samples: iterative Markovian fitting from a plan that is optimal for nearly the right ends.

What is simulated from a real source trains the backward direction, and from a real target the forward one, online, from the averaged
weights, with a few rounds kept. Begun at a bridge of the form f(x_0) k(x_0, x_1) g(x_1), as every closed-form reference is, this stays optimal
and mends the ends (as iterative proportional fitting does). Rounds can instead be given pairs of another coupling to begin with. An
under-trained network can undo what the reference had: at intervals the bridge is judged on held-out rows, and the best state is what stays,
be it the reference itself. Ends alone would not see a plan whose conditional spread has collapsed, so that the plan is judged, too.

References
----------
Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, algorithm 1 and proposition 10.
De Bortoli et al. 2024, "Schrödinger bridge flow for unpaired data translation", arXiv:2409.09347, algorithm 1 (online, one network).
"""

import copy
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.drift import EndpointDrift
from cellbridge.bridge.integrate import batch_chances, simulate, times
from cellbridge.bridge.judging import Judge, Look
from cellbridge.bridge.matching import Examples, Pairs, examples, matching_loss, require_finite
from cellbridge.training import ema

Draw = Callable[[int, Generator], Tensor]
"""How many, generator → rows of one side."""

Couple = Callable[[Generator], Pairs]
"""Coupled pairs to begin with, drawn anew at each call."""


@dataclass(frozen=True)
class Schedule:
    """How a network is fitted.

    Parameters
    ----------
    batch_size : rows of a step, both directions together.
    learning_rate : at its highest; it falls to zero along a cosine.
    ema_decay : of the weights that are simulated from, judged and kept.
    simulated : rows that a round simulates in each direction.
    steps_a_round : optimiser steps of a round.
    replay : rounds whose pairs are kept.
    simulation_steps : of the SDE, while fitting.
    coupled : share of the budget in which the pairs are those of a coupling, where there is one.
    looks : how often the bridge is judged on held-out rows.
    """

    batch_size: int = 256
    learning_rate: float = 3e-3
    ema_decay: float = 0.999
    simulated: int = 2048
    steps_a_round: int = 80
    replay: int = 3
    simulation_steps: int = 5
    coupled: float = 0.3
    looks: int = 5


@dataclass(frozen=True)
class NetworkFit:
    """A fitted model, every look at it, and the step whose weights were kept (0: the network was left out)."""

    model: EndpointDrift
    looks: tuple[Look, ...]
    kept: int
    steps: int

    @property
    def last_kept(self) -> Look:
        """The look at the weights that were kept."""
        return next(look for look in self.looks if look.step == self.kept)


def fit_network(
    model: EndpointDrift,
    sources: Draw,
    targets: Draw,
    held_out: tuple[Tensor, Tensor],
    *,
    reg: float,
    seed: int,
    budget: Budget,
    schedule: Schedule | None = None,
    couple: Couple | None = None,
) -> NetworkFit:
    """Fit a model whose network says nothing yet, so that it begins as its reference.

    Parameters
    ----------
    sources, targets : of the training rows.
    held_out : rows of both sides that neither draws.
    budget : all simulating, training and judging counts.
    couple : pairs for the first `schedule.coupled` of the budget, in place of simulated ones.

    Raises
    ------
    NumericalError : a loss that is not finite.
    """
    schedule = schedule or Schedule()
    generator = Generator().manual_seed(seed)
    fit = _Fit(model, reg=reg, schedule=schedule)
    judge = Judge(held_out, reg=reg, seed=seed)
    looks = [judge.look(model, step=0)]
    best, best_look = copy.deepcopy(fit.average.state_dict()), looks[0]
    due = 1
    rounds: deque[tuple[Pairs, Pairs]] = deque(maxlen=schedule.replay)
    while budget.used < 1:
        if couple is not None and budget.used < schedule.coupled:
            pairs = couple(generator)
            rounds.append((pairs, pairs))
        else:
            rounds.append(_simulated(fit.slow, sources, targets, reg=reg, schedule=schedule, generator=generator))
        fit.round(rounds, budget=budget, generator=generator)
        if budget.used >= due / schedule.looks:
            looks.append(judge.look(fit.slow, step=fit.steps))
            due = math.floor(budget.used * schedule.looks) + 1
            if looks[-1].beats(best_look):
                best, best_look = copy.deepcopy(fit.average.state_dict()), looks[-1]
    model.network.load_state_dict(best)
    return NetworkFit(model.eval(), tuple(looks), best_look.step, fit.steps)


class _Fit:
    """Weights, their average, and the optimiser."""

    def __init__(self, model: EndpointDrift, *, reg: float, schedule: Schedule):
        self._model, self._reg, self._schedule = model, reg, schedule
        self.average: nn.Module = copy.deepcopy(model.network)
        self.slow = EndpointDrift(self.average, model.preconditioning)
        self._weights = list(model.network.parameters())
        self._averages = list(self.average.parameters())
        self._optimizer = torch.optim.Adam(self._weights, lr=schedule.learning_rate, fused=True)
        self.steps = 0

    def round(self, rounds: deque[tuple[Pairs, Pairs]], *, budget: Budget, generator: Generator) -> None:
        """Take the steps of a round on the pairs of the last ones."""
        size, steps = self._schedule.batch_size, self._schedule.steps_a_round
        forward, backward = (Pairs.joined(list(sides)) for sides in zip(*rounds, strict=True))
        shown = examples(self._model, forward, backward, reg=self._reg, count=size * steps, generator=generator)
        self._set_rate(budget.used)
        for number in range(steps):
            loss = self._step(shown.take(slice(number * size, (number + 1) * size)))
        require_finite(loss, step=self.steps)

    def _step(self, shown: Examples) -> Tensor:
        loss = matching_loss(self._model, shown)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        ema.update(self._averages, self._weights, updates=self.steps, decay=self._schedule.ema_decay)
        self.steps += 1
        return loss.detach()

    def _set_rate(self, used: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate * (0.5 + 0.5 * math.cos(math.pi * used))


def _simulated(
    model: EndpointDrift, sources: Draw, targets: Draw, *, reg: float, schedule: Schedule, generator: Generator
) -> tuple[Pairs, Pairs]:
    """Return pairs for the forward direction (real targets) and for the backward one (real sources)."""
    grid = times(schedule.simulation_steps)
    source, target = sources(schedule.simulated, generator), targets(schedule.simulated, generator)
    end = simulate(model, source, reg=reg, chances=batch_chances(source, generator), grid=grid)
    start = simulate(model, target, reg=reg, chances=batch_chances(target, generator), grid=grid, direction="backward")
    return Pairs(start, target), Pairs(source, end)
