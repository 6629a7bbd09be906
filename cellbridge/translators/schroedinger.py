"""Over a bridge: every cell by the process that the bridge learned, from the control to a condition and back.

What is learned lies between the control and each condition, so that a way between two conditions leads through the control, backward
over the one and forward over the other. A translation to the condition that the cells are under takes no way at all and returns them: the
bridge from a law to itself is the identity in law, and no leg of it was trained. It says nothing of the model. What a leg
and its return leave of a cell is another question, which two translations answer, there and back (`evaluate`'s round trip).

References
----------
Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, algorithm 1 (sampling, in both directions).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, final

import torch

from cellbridge.bridge.drift import Endpoint
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.integrate import Grid, Step, flow, row_chances, simulate, times
from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError, ConfigError, did_you_mean
from cellbridge.runtime import derive_seed
from cellbridge.translators.translator import TracedTranslator, Trajectory, nearest_times
from cellbridge.typing import CellBatch, Images, Seeds

Way = Literal["sde", "ode"]
"""`sde`: the bridge's own process, which draws from all targets that a cell may have; `ode`: its probability flow, one target for each
cell, with the right marginal and no conditional spread."""

CALLS_A_STEP: Mapping[Way, int] = {"sde": 1, "ode": 4}
"""Network calls: the probability flow's midpoint rule asks twice, each time for both directions."""


@dataclass(frozen=True)
class Span:
    """What lies between the control and one condition: what is known of the endpoints, and the squared volatility it was learned at."""

    endpoint: Endpoint
    reg: float


@dataclass(frozen=True)
class _Leg:
    span: Span
    direction: Direction


@final
class Schroedinger(TracedTranslator):
    """Simulate the bridge from each cell.

    Parameters
    ----------
    spans : condition → what lies between the control and it.
    control : the condition at s = 0 of every span.
    way : `sde` or `ode`.
    steps, grid : of each leg; a step costs `CALLS_A_STEP`.
    step : of the SDE: `mean` goes by Brownian bridges to the mean endpoint, `euler` by Euler's rule, `draw` to an endpoint drawn with
        the spread that the bridge's preconditioning has.
    name : what results call it.

    Raises
    ------
    ValueError : fewer than one step.
    """

    name = "bridge"

    def __init__(
        self,
        spans: Mapping[Condition, Span],
        control: Condition,
        *,
        way: Way = "sde",
        steps: int = 20,
        grid: Grid = "quadratic",
        step: Step = "mean",
        name: str = "bridge",
    ):
        self.spans = dict(spans)
        self.control = control
        self.way = way
        self.step: Step = step
        self.grid = times(steps, grid=grid)
        self.name = name

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the cells under `target`; those of a batch may be under several conditions.

        Raises
        ------
        ConditionError : the bridge does not lead to `target`, or not from the condition of a cell.
        """
        images = torch.empty_like(batch.images)
        for source in dict.fromkeys(batch.conditions):
            rows = torch.tensor([name == source for name in batch.conditions], device=images.device)
            x = batch.images[rows]
            for leg in self._legs(Condition.parse(source), target):
                ((_, x),) = self._states(leg, x, batch.seeds[rows])
            images[rows] = x
        return replace(batch, images=images, conditions=(target.name,) * len(images))

    def trace(self, batch: CellBatch, *, target: Condition, frames: int) -> Trajectory:
        """Return states of the process itself, noise and all.

        Time runs evenly over the legs: on a way through the control, that is where the cell is at 0.5.

        Raises
        ------
        ConditionError : as `translate`. ConfigError : the cells are under several conditions, or under the target.
        """
        sources = sorted(set(batch.conditions))
        if len(sources) != 1:
            raise ConfigError(f"a trajectory is of cells under one condition, found {', '.join(sources)}.")
        legs, steps = self._legs(Condition.parse(sources[0]), target), len(self.grid) - 1
        if not legs:
            raise ConfigError(f'no way leads from "{target.name}" to itself: there is no trajectory to show.')
        found = [(number + elapsed) / len(legs) for number in range(len(legs)) for elapsed in self.grid.tolist()[:-1]]
        found.append(1.0)
        chosen = nearest_times(found, frames=frames)
        x, states = batch.images, {0: batch.images}
        for number, leg in enumerate(legs):
            first = number * steps
            for position, state in self._states(leg, x, batch.seeds, stops=[i - first for i in chosen]):
                x = states[first + position] = state
        return Trajectory(tuple(found[i] for i in chosen), tuple(states[i] for i in chosen))

    def calls(self, *, legs: int = 1) -> int:
        """Return how often the network is called for a cell on a way of so many legs."""
        return legs * (len(self.grid) - 1) * CALLS_A_STEP[self.way]

    def _legs(self, source: Condition, target: Condition) -> list[_Leg]:
        for condition in (source, target):
            if condition != self.control and condition not in self.spans:
                known = [c.name for c in (self.control, *self.spans)]
                raise ConditionError(
                    f'no bridge leads to or from "{condition.name}".{did_you_mean(condition.name, known)}'
                )
        if source == target:
            return []
        back = [_Leg(self.spans[source], "backward")] if source != self.control else []
        return back + ([_Leg(self.spans[target], "forward")] if target != self.control else [])

    def _states(self, leg: _Leg, x: Images, seeds: Seeds, *, stops: Iterable[int] = ()) -> Iterator[tuple[int, Images]]:
        """Yield the state at those of the grid's positions that are among `stops`, and at the end."""
        model, direction, last = leg.span.endpoint, leg.direction, len(self.grid) - 1
        # Two legs of one cell meet with chance of their own, and all ways forward from it with the same.
        own = seeds if direction == "forward" else _of_return(seeds)
        chances = row_chances(own, tuple(x.shape[1:]))
        for start, end in pairwise(sorted({0, last, *(stop for stop in stops if 0 < stop < last)})):
            part = self.grid[start : end + 1]
            if self.way == "ode":
                x = flow(model, x, direction=direction, grid=part)
            else:
                x = simulate(
                    model, x, reg=leg.span.reg, chances=chances, direction=direction, grid=part, step=self.step
                )
            yield end, x


def _of_return(seeds: Seeds) -> Seeds:
    """Return the seeds of the way back of each cell."""
    derived = [derive_seed("bridge, backward", seed) for seed in seeds.tolist()]
    return torch.tensor(derived, dtype=torch.int64, device=seeds.device)
