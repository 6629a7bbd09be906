"""What the training engine needs to fit a flow: where each line starts, where on it the network is asked, and the loss on its velocity.

References
----------
Lipman et al. 2023, arXiv:2210.02747, eq. 9 and 23 (the regression on straight lines).
Zhang et al. 2025, arXiv:2502.09775, and its code: control cells to which noise is added now and then, times near the target.
Jones et al. 2026, arXiv:2603.26790, and its code: noise, times evenly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from cellbridge.baselines.flow import NetworkVelocity, without_condition
from cellbridge.diffusion.monitors import band_monitors, loss_figures
from cellbridge.networks.condition_monitor import MONITOR, condition_over_time
from cellbridge.runtime import generator
from cellbridge.training.loop import LossOutput
from cellbridge.training.slicing import sliced
from cellbridge.typing import Images, Labels

Times = Literal["uniform", "skewed"]
"""`uniform` on [0, 1]; `skewed`: s = 1 / (1 + sigma), log sigma ~ N(-1.2, 1.2²), most of it near the target."""

_LOG_MEAN, _LOG_DEVIATION = -1.2, 1.2


class LabelledCells(Protocol):
    """Cells as targets of a flow from noise."""

    @property
    def images(self) -> Images: ...
    @property
    def labels(self) -> Labels: ...
    @property
    def weights(self) -> Tensor: ...


class PairedCells(Protocol):
    """Control cells and the targets they are paired with."""

    @property
    def source(self) -> Images: ...
    @property
    def target(self) -> Images: ...
    @property
    def labels(self) -> Labels: ...
    @property
    def weights(self) -> Tensor: ...


@dataclass(frozen=True)
class Lines:
    """What one (micro-)step is computed on: straight lines, and the point of each that the network is asked at.

    Parameters
    ----------
    start, target : images at s = 0 and s = 1.
    s : (batch,).
    labels : (batch,), of which some may be hidden.
    weights : (batch,), of each line in the loss.
    """

    start: Images
    target: Images
    s: Tensor
    labels: Labels
    weights: Tensor


@dataclass(frozen=True)
class LineDraw:
    """The chance of a whole step: times, noise, which sources it is added to, and whose condition is hidden."""

    s: Tensor
    noise: Images
    noisy: Tensor
    hidden: Tensor


def draw_lines(
    shape: tuple[int, ...], *, times: Times, noise_probability: float, condition_dropout: float, chance: Generator
) -> LineDraw:
    """Draw a whole step from one generator, on its device; each image for itself, and the times stratified over the batch.

    Parameters
    ----------
    shape : (batch, channel, height, width).
    """
    count, device = shape[0], chance.device
    stratum = torch.randperm(count, generator=chance, device=device)
    u = (stratum + torch.rand(count, generator=chance, device=device)) / max(count, 1)
    noise = torch.randn(shape, generator=chance, device=device)
    noisy = torch.rand(count, generator=chance, device=device) < noise_probability
    hidden = torch.rand(count, generator=chance, device=device) < condition_dropout
    return LineDraw(u if times == "uniform" else skewed(u), noise, noisy, hidden)


def skewed(u: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-1.2 + 1.2 z)) with z the normal quantile of 1 - u: rises from 0 to 1, its median at 0.77.

    Reference: Karras et al. 2022, arXiv:2206.00364, table 1 (the law of sigma).
    """
    z = torch.special.ndtri(1 - u.double()).clamp(-6, 6)
    return torch.sigmoid(-(_LOG_MEAN + _LOG_DEVIATION * z)).to(u.dtype)


@dataclass(frozen=True)
class Draws:
    """How the chance of a step is drawn and handed out.

    Parameters
    ----------
    rows : of the condition embedding.
    noise_level, noise_probability : of what is added to control cells.
    seed, accumulation : of the training; noise does not depend on how many micro-batches a step is cut into.
    """

    rows: int
    times: Times
    condition_dropout: float
    seed: int
    noise_level: float = 0.0
    noise_probability: float = 0.0
    accumulation: int = 1


def control_lines(source: Callable[[int, int], PairedCells], draws: Draws) -> Callable[[int, int], Lines]:
    """Return (step, micro-batch) → lines from control cells, a pure function: noise_level times noise is added to a share of them."""
    drawn = _by_step(draws)

    def batches(step: int, micro: int) -> Lines:
        cells = source(step, micro)
        draw = drawn(step, micro, cells.target)
        share = draw.noisy.to(cells.source.dtype).view(-1, 1, 1, 1)
        start = cells.source + draws.noise_level * share * draw.noise
        return Lines(start, cells.target, draw.s, _shown(cells.labels, draw, draws), cells.weights)

    return batches


def noise_lines(source: Callable[[int, int], LabelledCells], draws: Draws) -> Callable[[int, int], Lines]:
    """Return (step, micro-batch) → lines from standard normal noise, a pure function."""
    drawn = _by_step(draws)

    def batches(step: int, micro: int) -> Lines:
        cells = source(step, micro)
        draw = drawn(step, micro, cells.images)
        return Lines(draw.noise, cells.images, draw.s, _shown(cells.labels, draw, draws), cells.weights)

    return batches


def _by_step(draws: Draws) -> Callable[[int, int, Images], LineDraw]:
    """Return (step, micro-batch, its images) → its part of what the whole step draws, a function of (seed, step) alone."""
    kept: tuple[int, LineDraw] | None = None

    def drawn(step: int, micro: int, like: Images) -> LineDraw:
        nonlocal kept
        size = len(like)
        if kept is None or kept[0] != step:
            whole = draw_lines(
                (size * draws.accumulation, *like.shape[1:]),
                times=draws.times,
                noise_probability=draws.noise_probability,
                condition_dropout=draws.condition_dropout,
                chance=generator(like.device, "flow", draws.seed, step),
            )
            kept = (step, whole)
        return sliced(kept[1], slice(micro * size, (micro + 1) * size))

    return drawn


def _shown(labels: Labels, draw: LineDraw, draws: Draws) -> Labels:
    return torch.where(draw.hidden, without_condition(labels, rows=draws.rows), labels)


def velocity_loss(velocity: NetworkVelocity, steps: int) -> Callable[[nn.Module, Lines], LossOutput]:
    """Return the loss as the training engine calls it, with the network that it hands in (compiled, maybe) in place of the velocity's own.

    mean_i w_i |u(x_s, s)_i - (target - start)_i|² / d at x_s = (1 - s) start + s target; watched by decile of the network's time.

    Parameters
    ----------
    steps : T, of the network's time.
    """

    def loss(module: nn.Module, lines: Lines) -> LossOutput:
        at = lines.s.view(-1, 1, 1, 1).to(lines.start.dtype)
        x = torch.lerp(lines.start, lines.target, at)
        u = velocity.of(module, x, lines.s, lines.labels)
        per_image = (u - (lines.target - lines.start)).square().flatten(1).mean(1)
        t = velocity.times(lines.s)
        watched = band_monitors(loss_figures(per_image.detach()), t, steps=steps)
        ratio = condition_over_time(module, t, lines.labels)
        if ratio is not None:
            watched[MONITOR] = (ratio.sum(), torch.full_like(ratio[0], len(ratio)))
        return LossOutput((lines.weights * per_image).mean(), watched)

    return loss
