"""The joint of everything that makes images of noise, and the probability-flow ODE, whose solver inversion runs the other way.

Along the angle of the schedule the ODE reads dx = x_0 d(alpha) + epsilon d(sigma), with (x_0, epsilon) the denoiser's estimate at x_t.
Each solver freezes an estimate over its step, so that no coefficient is unbounded at either end. No randomness is involved.

References
----------
Song et al. 2021, "Denoising diffusion implicit models", arXiv:2010.02502, eq. 12 and 13 (order 1).
Lu et al. 2022, "DPM-Solver", arXiv:2206.00927, algorithm 1 (order 2, there with the midpoint in log-SNR).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.schedule import CLEAN, Schedule
from cellbridge.diffusion.timesteps import Grid, solver_times
from cellbridge.typing import Images, Labels, Seeds, Times

Order = Literal[1, 2]


class Sampler(ABC):
    """From noise at T - 1 to the clean image, by a denoiser and nothing else."""

    @abstractmethod
    def sample(self, denoiser: Denoiser, x_T: Images, labels: Labels, *, seeds: Seeds) -> Images:
        """Return images whose noise, label and seed alone decide them, whatever else is in the batch.

        Parameters
        ----------
        x_T : standard normal noise, or the outcome of `invert`.
        seeds : one per image, for the noise that is added on the way; a sampler that adds none does not read them.
        """

    @property
    @abstractmethod
    def network_calls(self) -> int:
        """How often `sample` calls the denoiser."""

    @property
    def stochastic(self) -> bool:
        """Whether noise is added on the way, so that x_T alone does not decide the image."""
        return False


@final
class _Recording(Denoiser):
    """Sees nothing in any image, and notes the times that it is asked for."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule = schedule
        self.times: list[float] = []

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        self.times.extend(t.tolist())
        return torch.zeros_like(x_t)


def asked_times(sampler: Sampler, schedule: Schedule) -> list[float]:
    """Return the times at which a sampler calls its denoiser, in its order."""
    recording, none = _Recording(schedule), torch.zeros(1, dtype=torch.int64)
    sampler.sample(recording, torch.zeros(1, 1, 1, 1), none, seeds=none)
    return recording.times


@final
@dataclass(frozen=True)
class Flow(Sampler):
    """The probability-flow ODE by `sample`; the default of the project."""

    steps: int = 25
    order: Order = 2
    grid: Grid = "quadratic"

    def sample(self, denoiser: Denoiser, x_T: Images, labels: Labels, *, seeds: Seeds) -> Images:
        """Return images that are functions of their noise and label."""
        return sample(denoiser, x_T, labels, steps=self.steps, order=self.order, grid=self.grid)

    @property
    def network_calls(self) -> int:
        """One or two a step."""
        return network_calls(self.steps, self.order)


@torch.no_grad()
def sample(
    denoiser: Denoiser, x_T: Images, labels: Labels, *, steps: int, order: Order = 2, grid: Grid = "quadratic"
) -> Images:
    """Follow the probability-flow ODE from noise at T - 1 to the clean image.

    The same x_T and label give the same image, whatever else is in the batch, up to the network's own arithmetic.

    Parameters
    ----------
    x_T : standard normal noise, or the outcome of `invert`.
    steps, order, grid : see `solver_times` and `network_calls`; 25 steps of order 2 on the quadratic grid are the default.
    """
    times = solver_times(denoiser.schedule, steps=steps, grid=grid).flip(0)
    return solve(denoiser, x_T, labels, times=times, order=order)


def solve(denoiser: Denoiser, x: Images, labels: Labels, *, times: Tensor, order: Order) -> Images:
    """Follow the ODE through `times`, ascending (image to noise) or descending (noise to image).

    Order 1 is DDIM: the network sees the step's noisier time, in both directions (forward this is what diffusers' inverse
    scheduler does). Order 2 evaluates at the step's start, goes half of the step's angle, and takes the whole step with the estimate
    found there.
    """
    step = _ddim_step if order == 1 else _midpoint_step
    for start, end in pairwise(times.tolist()):
        x = step(denoiser, x, labels, start, end)
    return x


def network_calls(steps: int, order: Order, *, inverting: bool = False) -> int:
    """Return how often the denoiser is called; order 2 knows the noise in the clean image (none) without a call."""
    return steps if order == 1 else 2 * steps - int(inverting)


def _ddim_step(denoiser: Denoiser, x: Images, labels: Labels, start: float, end: float) -> Images:
    x_0, epsilon = estimate(denoiser, x, labels, max(start, end))
    alpha, sigma = signal_and_noise(denoiser, start)
    if end > start:
        x_0 = (x - sigma * epsilon) / alpha
    alpha, sigma = signal_and_noise(denoiser, end)
    return alpha * x_0 + sigma * epsilon


def _midpoint_step(denoiser: Denoiser, x: Images, labels: Labels, start: float, end: float) -> Images:
    ends = denoiser.schedule.angle(torch.tensor([start, end], dtype=torch.float64))
    middle = denoiser.schedule.time_of_angle(ends.mean(0, keepdim=True)).item()
    x_0, epsilon = estimate(denoiser, x, labels, start)
    alpha, sigma = signal_and_noise(denoiser, middle)
    x_0, epsilon = estimate(denoiser, alpha * x_0 + sigma * epsilon, labels, middle)
    alpha, alpha_end = ends.cos().tolist()
    sigma, sigma_end = ends.sin().tolist()
    return x + (alpha_end - alpha) * x_0 + (sigma_end - sigma) * epsilon


def estimate(denoiser: Denoiser, x: Images, labels: Labels, t: float) -> tuple[Images, Images]:
    """Return (x_0, epsilon) with x = alpha x_0 + sigma epsilon; the estimated noise in a clean image tends to 0 with sigma.

    Noise follows from x_0, so that a thresholded image and its noise still make up x.
    """
    if t == CLEAN:
        return x, torch.zeros_like(x)
    alpha, sigma = signal_and_noise(denoiser, t)
    x_0 = denoiser(x, torch.full((len(x),), t, device=x.device, dtype=torch.float32), labels)
    return x_0, (x - alpha * x_0) / sigma


def signal_and_noise(denoiser: Denoiser, t: float) -> tuple[float, float]:
    """Return (alpha, sigma) of the denoiser's schedule at one time, in double precision."""
    time = torch.tensor([t], dtype=torch.float64)
    return denoiser.schedule.alpha(time).item(), denoiser.schedule.sigma(time).item()
