"""Judge a bridge on held-out rows of both ends: where it arrives, and whether its plan can be a Schrödinger bridge's at all.

Arriving is an energy distance. Of the plan, E[X_1 | X_0 = x] has the derivative Cov(X_1 | X_0 = x) / reg wherever the plan is optimal, so that

    spread = E tr Cov(X_1 | X_0) / (reg E tr ∂E[X_1 | X_0] / ∂X_0)

is one there, whatever the marginals, and zero for a plan that has collapsed to a map.
"""

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Generator, Tensor

from cellbridge.bridge.drift import Endpoint
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.integrate import batch_chances, simulate, times
from cellbridge.metrics.plans import energy_and_terms

_STEPS = 10
_OFF = math.log(1.1)
"""How far from one a spread may be, in either direction."""
_STEP_LENGTH = 0.03
"""Of the derivative, in standard deviations of the rows."""
_PROBES = 4


@dataclass(frozen=True)
class Look:
    """What held-out rows said at one time.

    Parameters
    ----------
    step : of the fit.
    distance : energy distances of both push-forwards from the real ends, summed.
    spread : of the conditionals over what the plan's optimality makes of its means; the direction that is farther from 1.
    off : how far the spread lies outside of 1 / 1.1 to 1.1, in logarithms, beyond two standard errors.
    terms : what each held-out row adds to the distance, (source + target,), up to what depends on the real rows alone.
    """

    step: int
    distance: float
    spread: float
    off: float
    terms: Tensor = field(repr=False)

    def beats(self, other: "Look") -> bool:
        """Say whether it arrives nearer by more than a standard error, with a plan that can be optimal."""
        gain = other.terms - self.terms
        error = float(gain.std()) * len(gain) ** 0.5
        return self.off <= other.off and other.distance - self.distance > error


@final
class Judge:
    """Held-out rows of both ends, and the same randomness at each look.

    Parameters
    ----------
    held_out : rows of source and target, (n, …) and (m, …).
    """

    def __init__(self, held_out: tuple[Tensor, Tensor], *, reg: float, seed: int):
        self._held_out, self._reg, self._seed = held_out, reg, seed

    def look(self, model: Endpoint, *, step: int) -> Look:
        """Judge both directions."""
        generator = Generator().manual_seed(self._seed)
        source, target = self._held_out
        ways: tuple[tuple[Tensor, Tensor, Direction], ...] = ((source, target, "forward"), (target, source, "backward"))
        distances, spreads, terms = [], [], []
        for start, end, direction in ways:
            moved, again = (self._carried(model, start, direction, generator) for _ in range(2))
            distance, parts = energy_and_terms(moved.flatten(1), end.flatten(1))
            distances.append(distance)
            terms.append(parts)
            variances = (moved - again).double().square().flatten(1).sum(1) / 2
            spreads.append(_spread(variances, self._reg * _divergence(model, start, direction, generator)))
        spread, off = max(spreads, key=lambda found: found[1])
        return Look(step, sum(distances), spread, off, torch.cat(terms))

    def _carried(self, model: Endpoint, start: Tensor, direction: Direction, generator: Generator) -> Tensor:
        chances = batch_chances(start, generator)
        return simulate(model, start, reg=self._reg, chances=chances, direction=direction, grid=times(_STEPS))


@torch.no_grad()
def _divergence(model: Endpoint, start: Tensor, direction: Direction, generator: Generator) -> Tensor:
    """Estimate tr ∂E[end | start] / ∂start of each row, along random signs.

    Reference: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix", Commun. Stat. Simul. 19, 433-450.
    """
    s = torch.full((len(start),), 0.0 if direction == "forward" else 1.0, dtype=start.dtype, device=start.device)
    length = _STEP_LENGTH * float(start.std())
    found = torch.zeros(len(start), dtype=torch.float64)
    for _ in range(_PROBES):
        sign = torch.randint(0, 2, start.shape, generator=generator, device=start.device).to(start) * 2 - 1
        later, earlier = (model.mean(start + way * length * sign, s, direction) for way in (1, -1))
        found += ((later - earlier) * sign).double().flatten(1).sum(1) / (2 * length)
    return found / _PROBES


def _spread(variances: Tensor, responses: Tensor) -> tuple[float, float]:
    """Return the ratio of two means over rows, and how far its logarithm is off beyond tolerance and chance."""
    variance, response = float(variances.mean()), float(responses.mean())
    if min(variance, response) <= 1e-9 * max(variance, response):
        return 0.0, math.inf
    ratio = variance / response
    error = float((variances - ratio * responses).std()) / len(variances) ** 0.5 / variance
    return ratio, max(0.0, abs(math.log(ratio)) - _OFF - 2 * error)
