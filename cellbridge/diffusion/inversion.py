"""From an image back to the noise that would have made it.

References
----------
Song et al. 2021, "Denoising diffusion implicit models", arXiv:2010.02502, section 4.3 (order 1).
Pan et al. 2023, "Effective real image editing with accelerated iterative diffusion inversion", arXiv:2309.04907 (fixed point).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.samplers import Order, estimate, network_calls, signal_and_noise, solve
from cellbridge.diffusion.thresholding import confines
from cellbridge.diffusion.timesteps import Grid, solver_times
from cellbridge.errors import ConfigError
from cellbridge.runtime import noise_per_image
from cellbridge.typing import Images, Labels, Seeds


@final
@dataclass(frozen=True)
class Inversion:
    """How an image is turned into noise.

    Parameters
    ----------
    steps, order, grid : of the solver; see `invert`, whose defaults these are.
    fixed_point : iterations that make a step of order 1 the exact inverse of DDIM's step the other way, one call each. Exact is not
        better: it inverts the error of coarse sampling as well, and on dark backgrounds x_T comes out too loud. On the cosine
        schedule, which leaves no signal to iterate on at T - 1, the last step does not converge.
    start_noise : add the noise of t = 0 (0.010 for the linear schedule, 0.0064 for the cosine) and start there. A background flatter
        than that noise has no unit-variance x_T otherwise; the image changes by as much.

    Raises
    ------
    ConfigError : fixed-point iterations of order 2, or a start at t = 0 on a grid that does not have it.
    """

    steps: int = 25
    order: Order = 2
    grid: Grid = "quadratic"
    fixed_point: int = 0
    start_noise: bool = False

    def __post_init__(self) -> None:
        if self.fixed_point and self.order != 1:
            raise ConfigError(
                f"solver.fixed_point = {self.fixed_point}: iterations invert a step of order 1, found order {self.order}. "
                "Set order: 1, or fixed_point: 0."
            )
        if self.start_noise and self.grid == "uniform":
            raise ConfigError(
                "solver.start_noise: starts at t = 0, which the uniform grid steps over. Use grid: quadratic or log_snr."
            )

    @torch.no_grad()
    def invert(self, denoiser: Denoiser, x_0: Images, labels: Labels, *, seeds: Seeds) -> Images:
        """Return x_T; each image's seed draws the noise it starts from, if any.

        Raises
        ------
        ConfigError : the denoiser clips or thresholds, so that it is no longer the ODE's.
        """
        if confines(denoiser):
            raise ConfigError(
                "inversion: the denoiser clips or thresholds x_0, which changes the x_T of every bright pixel. "
                "Clip and threshold in sampling only."
            )
        times = solver_times(denoiser.schedule, steps=self.steps, grid=self.grid)
        x = x_0
        if self.start_noise:
            times = times[1:]
            alpha, sigma = signal_and_noise(denoiser, float(times[0]))
            x = alpha * x_0 + sigma * noise_per_image(seeds, tuple(x_0.shape[1:]), purpose="noise of t = 0").to(x_0)
        if self.fixed_point:
            return _ddim_inverse(denoiser, x, labels, times=times, iterations=self.fixed_point)
        return solve(denoiser, x, labels, times=times, order=self.order)

    @property
    def network_calls(self) -> int:
        """How often `invert` calls the denoiser."""
        if self.start_noise:
            return (1 + self.fixed_point) * network_calls(self.steps - 1, self.order)
        return (1 + self.fixed_point) * network_calls(self.steps, self.order, inverting=True)


def invert(
    denoiser: Denoiser, x_0: Images, labels: Labels, *, steps: int, order: Order = 2, grid: Grid = "quadratic"
) -> Images:
    """Follow the probability-flow ODE from the clean image to the noise x_T at T - 1, with the solver of `sample`.

    For data N(mu, s^2) and an exact denoiser, x_T = sqrt(a) mu + sqrt(a s^2 + 1 - a) (x_0 - mu) / s with a = alpha_bar(T - 1). At 25
    steps of order 2 on the quadratic grid the standard deviation of x_T is 0.985 to 1.000 for s from 0.01 to 0.4; first-order
    inversion on a uniform grid stays far below 1 on dark backgrounds. Invert with the source's condition and without guidance.
    """
    seeds = torch.zeros(len(x_0), dtype=torch.int64)
    return Inversion(steps, order, grid).invert(denoiser, x_0, labels, seeds=seeds)


def _ddim_inverse(denoiser: Denoiser, x: Images, labels: Labels, *, times: Tensor, iterations: int) -> Images:
    """Solve x = DDIM's step from x_t for x_t, time after time: x_t <- alpha_t (x - sigma epsilon(x_t)) / alpha + sigma_t epsilon(x_t)."""
    for start, end in pairwise(times.tolist()):
        (alpha, sigma), (alpha_end, sigma_end) = (signal_and_noise(denoiser, t) for t in (start, end))
        x_t = x
        for _ in range(iterations + 1):
            epsilon = estimate(denoiser, x_t, labels, end)[1]
            x_t = alpha_end * ((x - sigma * epsilon) / alpha) + sigma_end * epsilon
        x = x_t
    return x
