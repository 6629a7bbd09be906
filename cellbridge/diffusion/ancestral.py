"""Sampling with fresh noise at every step: DDIM at any eta, and DDPM's ancestral sampling.

For a step from time t to s < t, with abar = alpha^2:

    beta = 1 - abar_t / abar_s,   beta~ = (1 - abar_s) / (1 - abar_t) beta,

so the posterior q(x_s | x_t, x_0) has variance beta~ and the forward step has beta, whatever lies between t and s. The step to the clean
image has beta~ = 0 and ends at the mean. Noise comes from each image's own seed and the number of the step.

References
----------
Ho et al. 2020, "Denoising diffusion probabilistic models", arXiv:2006.11239, eq. 7.
Song et al. 2021, "Denoising diffusion implicit models", arXiv:2010.02502, eq. 12 and 16.
Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models", arXiv:2102.09672, eq. 15 (learned range) and 19 (fewer steps).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.samplers import Sampler, estimate, signal_and_noise
from cellbridge.diffusion.schedule import CLEAN
from cellbridge.diffusion.timesteps import Grid, solver_times
from cellbridge.errors import ConfigError, ModelError
from cellbridge.runtime import noise_per_image
from cellbridge.typing import Images, Labels, Seeds

Variance = Literal["small", "large", "learned"]
"""Of DDPM's steps: beta~ (right for data of no spread), beta (right for data of unit spread), or between them as the network says."""


@final
@dataclass(frozen=True)
class Ddim(Sampler):
    """DDIM: eta = 0 follows the ODE to first order, eta = 1 is DDPM with the small variance.

    Raises
    ------
    ConfigError : eta is outside [0, 1], where a step would need more noise than x_s holds.
    """

    steps: int = 50
    eta: float = 0.0
    grid: Grid = "uniform"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"solver.eta = {self.eta}: expected 0 (deterministic) to 1 (as noisy as DDPM).")

    def sample(self, denoiser: Denoiser, x_T: Images, labels: Labels, *, seeds: Seeds) -> Images:
        """Return images after `steps` steps, one call each."""
        times = solver_times(denoiser.schedule, steps=self.steps, grid=self.grid).flip(0)
        return ddim(denoiser, x_T, labels, times=times, eta=self.eta, seeds=seeds)

    @property
    def network_calls(self) -> int:
        """One a step."""
        return self.steps

    @property
    def stochastic(self) -> bool:
        """At eta above 0."""
        return self.eta > 0


@final
@dataclass(frozen=True)
class Ddpm(Sampler):
    """Ancestral sampling: every step draws from the posterior of the step before, given the estimated x_0."""

    steps: int = 1000
    variance: Variance = "small"
    grid: Grid = "uniform"

    def sample(self, denoiser: Denoiser, x_T: Images, labels: Labels, *, seeds: Seeds) -> Images:
        """Return images after `steps` steps, one call each."""
        times = solver_times(denoiser.schedule, steps=self.steps, grid=self.grid).flip(0)
        return ddpm(denoiser, x_T, labels, times=times, variance=self.variance, seeds=seeds)

    @property
    def network_calls(self) -> int:
        """One a step."""
        return self.steps

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True


@torch.no_grad()
def ddim(denoiser: Denoiser, x: Images, labels: Labels, *, times: Tensor, eta: float, seeds: Seeds) -> Images:
    """Follow x_s = alpha_s x_0 + sqrt(sigma_s^2 - eta^2 beta~) epsilon + eta sqrt(beta~) z through descending `times`."""
    for number, (start, end) in enumerate(pairwise(times.tolist())):
        x_0, epsilon = estimate(denoiser, x, labels, start)
        alpha, sigma = signal_and_noise(denoiser, end)
        added = eta**2 * _variances(denoiser, start, end)[0]
        x = alpha * x_0 + math.sqrt(max(sigma**2 - added, 0.0)) * epsilon
        if added > 0:
            x = x + math.sqrt(added) * _noise(seeds, x, number)
    return x


@torch.no_grad()
def ddpm(denoiser: Denoiser, x: Images, labels: Labels, *, times: Tensor, variance: Variance, seeds: Seeds) -> Images:
    """Draw x_s ~ N(mean of q(x_s | x_t, x_0), variance) through descending `times`; the clean image takes no noise.

    Raises
    ------
    ModelError : the variance is to be learned, and the denoiser says nothing of it.
    """
    for number, (start, end) in enumerate(pairwise(times.tolist())):
        at = torch.full((len(x),), start, device=x.device, dtype=torch.float32)
        x_0, fraction = denoiser.with_fraction(x, at, labels)
        small, beta = _variances(denoiser, start, end)
        (alpha, sigma), (alpha_end, sigma_end) = (signal_and_noise(denoiser, t) for t in (start, end))
        x = alpha_end * beta / sigma**2 * x_0 + alpha / alpha_end * sigma_end**2 / sigma**2 * x
        if end > CLEAN:
            x = x + _deviation(variance, fraction, small, beta) * _noise(seeds, x, number)
    return x


def _deviation(variance: Variance, fraction: Tensor | None, small: float, beta: float) -> Tensor | float:
    if variance != "learned":
        return math.sqrt(small if variance == "small" else beta)
    if fraction is None:
        raise ModelError(
            "solver.variance = learned: the model does not say how noisy its steps are (or guidance mixes two that do). Train the "
            "base with schedule.variance: learned_range, or use variance: small or large."
        )
    return (0.5 * (fraction * math.log(beta) + (1 - fraction) * math.log(small))).exp()


def _variances(denoiser: Denoiser, start: float, end: float) -> tuple[float, float]:
    """Return (beta~, beta) of a step from `start` to the earlier `end`."""
    (alpha, sigma), (alpha_end, sigma_end) = (signal_and_noise(denoiser, t) for t in (start, end))
    beta = 1 - (alpha / alpha_end) ** 2
    return (sigma_end / sigma) ** 2 * beta, beta


def _noise(seeds: Seeds, like: Images, number: int) -> Images:
    return noise_per_image(seeds, tuple(like.shape[1:]), purpose=f"sampler step {number}").to(like)
