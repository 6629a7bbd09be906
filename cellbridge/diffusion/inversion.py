"""From an image back to the noise that would have made it."""

import torch

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.samplers import Order, solve
from cellbridge.diffusion.timesteps import Grid, solver_times
from cellbridge.typing import Images, Labels


@torch.no_grad()
def invert(
    denoiser: Denoiser, x_0: Images, labels: Labels, *, steps: int, order: Order = 2, grid: Grid = "quadratic"
) -> Images:
    """Follow the probability-flow ODE from the clean image to the noise x_T at T - 1, with the solver of `sample`.

    For data N(mu, s^2) and an exact denoiser, x_T = sqrt(a) mu + sqrt(a s^2 + 1 - a) (x_0 - mu) / s with a = alpha_bar(T - 1). At 25
    steps of order 2 on the quadratic grid the standard deviation of x_T is 0.985 to 1.000 for s from 0.01 to 0.4; first-order
    inversion on a uniform grid stays far below 1 on dark backgrounds. Invert with the source's condition and without guidance.
    """
    times = solver_times(denoiser.schedule, steps=steps, grid=grid)
    return solve(denoiser, x_0, labels, times=times, order=order)
