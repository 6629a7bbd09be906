"""Flow matching, as the peers use it: an ODE whose velocity was regressed on straight lines, from control cells or from noise.

Along x_s = (1 - s) source + s target, the velocity that is expected at x_s carries the law of the sources to that of the targets:
dx/ds = u(x, s) = E[target - source | x_s = x]. Where a source and its target are drawn by lot, as both recipes have it, the law comes out
right and nothing says that a cell comes out as that cell: an ODE has no conditional spread, and its map is not the optimal one.

References
----------
Lipman et al. 2023, "Flow matching for generative modeling", arXiv:2210.02747, eq. 9 and 23; Tong et al. 2023, arXiv:2302.00482, sec. 3.2
(independent coupling). The recipes: Zhang et al. 2025, "CellFlux", arXiv:2502.09775, and Jones et al. 2026, "Elucidating the design space of
flow matching for cellular microscopy", arXiv:2603.26790.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor, nn

from cellbridge.conditions import Condition
from cellbridge.diffusion.schedule import Schedule
from cellbridge.errors import ConditionError, did_you_mean
from cellbridge.networks.condition_table import ConditionTable
from cellbridge.runtime import noise_per_image
from cellbridge.translators.translator import TracedTranslator, Trajectory, Translator, pick_frames
from cellbridge.typing import CellBatch, Images, Labels

SourceOf = Literal["control", "noise"]
Watch = Callable[[float, Images], None]


class Velocity(nn.Module, ABC):
    """u(x, s) for the condition of each image."""

    @abstractmethod
    def forward(self, x: Images, s: Tensor, labels: Labels) -> Images:
        """Return dx/ds.

        Parameters
        ----------
        s : (batch,), in [0, 1].
        labels : row of the condition embedding, and the plate where the network is told it (`networks.condition_table`).
        """


@final
class NetworkVelocity(Velocity):
    """A diffusion backbone as a velocity.

    Its time t is the one at which the schedule's SNR is that of the target in x_s, alpha / sigma = s / (1 - s): 0 steps at the target, and
    T at the source. From control cells its output is u. From noise x_s is, up to the factor c = (s² + (1 - s)²)^½, a noisy image of the
    schedule, so the network is given x_s / c and asked for v = alpha epsilon - sigma target, of which

        u = ((2 s - 1) x_s / c - v) / c

    is a fixed affine map: a base that predicts v starts at its own probability flow. An output of zero is no change from control cells, and
    the linear guess for data of mean 0 and variance 1 from noise.

    Parameters
    ----------
    network : called as `network(x, t, class_labels=labels, return_dict=False)[0]`.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, *, source: SourceOf):
        super().__init__()
        self.network = network
        self.source = source
        self.schedule = schedule

    def forward(self, x: Images, s: Tensor, labels: Labels) -> Images:
        """Return dx/ds in the type of `x` also where the network computes in a smaller one."""
        return self.of(self.network, x, s, labels)

    def of(self, network: nn.Module, x: Images, s: Tensor, labels: Labels) -> Images:
        """Return what the velocity would be with another network of the kind, such as a compiled form of this one."""
        if self.source == "control":
            return self._output(network, x, s, labels)
        at = _along(s, x)
        c = (at.square() + (1 - at).square()).sqrt()
        rescaled = x / c
        return ((2 * at - 1) * rescaled - self._output(network, rescaled, s, labels)) / c

    def times(self, s: Tensor) -> Tensor:
        """Return the network's time at each s: from T - 1 at the source to -1, the clean image, at the target."""
        return self.schedule.time_of_angle(torch.atan2(1 - s.float(), s.float())).float()

    def _output(self, network: nn.Module, x: Images, s: Tensor, labels: Labels) -> Images:
        output: Images = network(x, self.times(s), class_labels=labels, return_dict=False)[0]
        return output.to(x.dtype)


@final
class GuidedVelocity(Velocity):
    """Push the velocity away from that of no condition: u_none + scale (u - u_none).

    Scale 1 is the conditional velocity bit for bit and 0 the other, in one network call; any other scale takes two, as one batch. The
    plate stays as it is.

    Parameters
    ----------
    rows : of the condition embedding, of which row 0 is no condition.

    References
    ----------
    Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w; CellFlux's code has w = 0.2, and Jones et al.'s scale 1.
    """

    def __init__(self, velocity: Velocity, scale: float, *, rows: int):
        super().__init__()
        self.velocity = velocity
        self.scale = scale
        self.rows = rows

    def forward(self, x: Images, s: Tensor, labels: Labels) -> Images:
        """Return the guided dx/ds."""
        none = without_condition(labels, rows=self.rows)
        if self.scale in (0, 1):
            alone: Images = self.velocity(x, s, labels if self.scale else none)
            return alone
        both = torch.cat([none, labels])
        unconditional, conditional = self.velocity(torch.cat([x, x]), torch.cat([s, s]), both).chunk(2)
        result: Images = unconditional + self.scale * (conditional - unconditional)
        return result


def without_condition(labels: Labels, *, rows: int) -> Labels:
    """Return the labels of no condition on the same plates."""
    return labels - labels % rows


@torch.no_grad()
def integrate(
    velocity: Velocity,
    x: Images,
    labels: Labels,
    *,
    grid: Tensor,
    order: Literal[1, 2] = 2,
    watch: Watch | None = None,
) -> Images:
    """Solve dx/ds = u from the first time of the grid to the last.

    Parameters
    ----------
    grid : rising times in [0, 1], as `bridge.integrate.times` gives them. Steps are fixed, since those of an adaptive solver would make an
        image depend on its batch.
    order : 1 Euler; 2 the midpoint rule, two calls a step.
    watch : told (time, x) after each step.
    """

    def slope(x: Images, at: float) -> Images:
        found: Images = velocity(x, torch.full((len(x),), at, dtype=x.dtype, device=x.device), labels)
        return found

    for now, later in pairwise(grid.tolist()):
        width = later - now
        if order == 1:
            x = x + width * slope(x, now)
        else:
            x = x + width * slope(x + width / 2 * slope(x, now), now + width / 2)
        if watch is not None:
            watch(later, x)
    return x


@final
class ControlFlow(TracedTranslator):
    """Follow the flow from a control cell, to which noise is added first, to a condition; pairs were drawn by lot within plates (CellFlux).

    Parameters
    ----------
    velocity : guided or not.
    rows : target → its row in the condition embedding.
    control : what the sources are under.
    noise_level : standard deviation of the noise that is added to a cell, in image units; 0 starts at the cell itself, which at any
        level above is told from others by what the noise leaves of it.
    grid, order : of `integrate`.
    """

    name = "control-flow"

    def __init__(
        self,
        velocity: Velocity,
        rows: Mapping[Condition, int],
        *,
        control: Condition,
        noise_level: float,
        grid: Tensor,
        order: Literal[1, 2] = 2,
        name: str = "control-flow",
    ):
        self.velocity = velocity
        self.rows = dict(rows)
        self.control = control
        self.noise_level = noise_level
        self.grid, self.order = grid, order
        self.name = name

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the cells under `target`, in [-1, 1].

        Raises
        ------
        ConditionError : the flow was not trained towards `target`, or a cell is not a control cell.
        """
        return _under(target, batch, self._carried(batch, target))

    def trace(self, batch: CellBatch, *, target: Condition, frames: int) -> Trajectory:
        """Return the way along the flow, with what noise is left of that which was added to the cell.

        Raises
        ------
        ConditionError : as `translate`.
        """
        seen: list[tuple[float, Images]] = []
        result = self._carried(batch, target, lambda s, x: seen.append((s, x.clamp(-1, 1))))
        return pick_frames(batch.images, seen, result, frames=frames)

    def _carried(self, batch: CellBatch, target: Condition, watch: Watch | None = None) -> Images:
        row = _row(self.name, self.rows, target)
        others = sorted(set(batch.conditions) - {self.control.name})
        if others:
            raise ConditionError(
                f'{self.name}: it starts from {self.control.name} alone, found a cell of "{others[0]}".'
            )
        start = batch.images
        if self.noise_level:
            start = start + self.noise_level * _noise(batch)
        labels = torch.full((len(start),), row, dtype=torch.int64, device=start.device)
        moved = integrate(self.velocity, start, labels, grid=self.grid, order=self.order, watch=watch)
        return moved.clamp(-1, 1)


@final
class NoiseFlow(Translator):
    """Follow the flow from noise of the cell's seed to a condition on the cell's plate: a new cell, of which the source says nothing but where
    it lay (Jones et al.).

    Parameters
    ----------
    velocity : guided or not.
    rows : target → its row in the condition embedding.
    table : rows and plates that the network knows; a plate that it does not know takes the row of no plate.
    grid, order : of `integrate`.
    """

    name = "noise-flow"

    def __init__(
        self,
        velocity: Velocity,
        rows: Mapping[Condition, int],
        *,
        table: ConditionTable,
        grid: Tensor,
        order: Literal[1, 2] = 2,
        name: str = "noise-flow",
    ):
        self.velocity = velocity
        self.rows = dict(rows)
        self.table = table
        self.grid, self.order = grid, order
        self.name = name

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return a cell of `target` for each seed and plate, in [-1, 1].

        Raises
        ------
        ConditionError : the flow was not trained on `target`.
        """
        row = _row(self.name, self.rows, target)
        labels = torch.tensor([self.table.label(row, plate=plate) for plate in batch.plates], dtype=torch.int64)
        noise, labels = _noise(batch), labels.to(batch.images.device)
        made = integrate(self.velocity, noise, labels, grid=self.grid, order=self.order)
        return _under(target, batch, made.clamp(-1, 1))


def _under(target: Condition, batch: CellBatch, images: Images) -> CellBatch:
    return replace(batch, images=images, conditions=(target.name,) * len(images))


def _row(name: str, rows: Mapping[Condition, int], target: Condition) -> int:
    if target not in rows:
        known = [condition.name for condition in rows]
        raise ConditionError(f'{name}: the flow was not trained on "{target.name}".{did_you_mean(target.name, known)}')
    return rows[target]


def _noise(batch: CellBatch) -> Images:
    return noise_per_image(batch.seeds, tuple(batch.images.shape[1:]), purpose="source of a flow").to(batch.images)


def _along(s: Tensor, x: Tensor) -> Tensor:
    return s.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
