"""Samplers that reuse the estimates of earlier steps, so that a higher order costs one network call a step: PNDM and DPM-Solver++ (2M)."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.samplers import Sampler, estimate, signal_and_noise
from cellbridge.diffusion.timesteps import Grid, solver_times
from cellbridge.errors import ConfigError
from cellbridge.typing import Images, Labels, Seeds

_ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the latest estimates, newest first, for equal steps."""

_NO_SIGNAL = 1e-12
"""What is left of cos(pi / 2) in double precision lies below."""

_LEAST_SIGNAL = 1e-3
"""Of x_T, for Runge-Kutta's four estimates to agree: the linear schedule ends at 6.4e-3, the cosine at 4.9e-5."""


@final
@dataclass(frozen=True)
class Pndm(Sampler):
    """Pseudo numerical methods: the noise estimate is extrapolated, and DDIM's step takes it from one time to the next.

    The first step is repeated with the mean of two estimates (F-PNDM as everybody runs it), or the first three are of Runge-Kutta with
    four calls each (`runge_kutta`, the paper's own start). The weights presuppose equal steps in t, so the grid is uniform. Each step
    divides by the signal at its start: on the cosine schedule, which starts from 5e-5, 10 and 20 steps are worse than DDIM's.

    Raises
    ------
    ConfigError : fewer steps than the start takes.

    References
    ----------
    Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds", arXiv:2202.09778, eq. 9 to 13.
    """

    steps: int = 50
    runge_kutta: bool = False

    def __post_init__(self) -> None:
        least = 4 if self.runge_kutta else 2
        if self.steps < least:
            raise ConfigError(f"solver.steps = {self.steps}: this start of PNDM needs at least {least}.")

    def sample(self, denoiser: Denoiser, x_T: Images, labels: Labels, *, seeds: Seeds) -> Images:
        """Return images that are functions of their noise and label."""
        times = solver_times(denoiser.schedule, steps=self.steps, grid="uniform").flip(0)
        return pndm(denoiser, x_T, labels, times=times, runge_kutta=self.runge_kutta)

    @property
    def network_calls(self) -> int:
        """One a step, and the start's one or nine more."""
        return self.steps + (9 if self.runge_kutta else 1)


@final
@dataclass(frozen=True)
class DpmSolverPlusPlus(Sampler):
    """DPM-Solver++ (2M): x_0 is extrapolated along the log-SNR; the first step, and the last, whose log-SNR is infinite, are DDIM's.

    References
    ----------
    Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095, algorithm 2.
    """

    steps: int = 25
    grid: Grid = "uniform"

    def sample(self, denoiser: Denoiser, x_T: Images, labels: Labels, *, seeds: Seeds) -> Images:
        """Return images that are functions of their noise and label."""
        times = solver_times(denoiser.schedule, steps=self.steps, grid=self.grid).flip(0)
        return dpm_solver_plus_plus(denoiser, x_T, labels, times=times)

    @property
    def network_calls(self) -> int:
        """One a step."""
        return self.steps


@torch.no_grad()
def pndm(denoiser: Denoiser, x: Images, labels: Labels, *, times: Tensor, runge_kutta: bool = False) -> Images:
    """Follow F-PNDM through `times`, descending and equally spaced.

    Raises
    ------
    ConfigError : there is no signal at the first time, by which PNDM divides; or too little for the start by Runge-Kutta, whose
        error then stays whatever the steps.
    """
    signal = signal_and_noise(denoiser, float(times[0]))[0]
    if signal < (_LEAST_SIGNAL if runge_kutta else _NO_SIGNAL):
        raise ConfigError(
            f"solver.method = pndm{' with runge_kutta' * runge_kutta}: divides by the signal at T - 1, of which this schedule has "
            f"{signal:.1g}. Use flow, ddim or dpm++, or the linear schedule."
        )
    estimates: list[Images] = []
    for number, (start, end) in enumerate(pairwise(times.tolist())):
        if runge_kutta and number < 3:
            first, x = _runge_kutta_step(denoiser, x, labels, start, end)
            estimates.append(first)
            continue
        epsilon = estimate(denoiser, x, labels, start)[1]
        estimates = [*estimates[-3:], epsilon]
        if number == 0:
            end_epsilon = estimate(denoiser, _transfer(denoiser, x, epsilon, start, end), labels, end)[1]
            x = _transfer(denoiser, x, (epsilon + end_epsilon) / 2, start, end)
            continue
        weights = _ADAMS_BASHFORTH[len(estimates)]
        combined = sum(w * e for w, e in zip(weights, reversed(estimates), strict=True))
        assert isinstance(combined, Tensor)
        x = _transfer(denoiser, x, combined, start, end)
    return x


@torch.no_grad()
def dpm_solver_plus_plus(denoiser: Denoiser, x: Images, labels: Labels, *, times: Tensor) -> Images:
    """Follow DPM-Solver++ (2M) through descending `times`.

    x_s = sigma_s / sigma_t x + (alpha_s - sigma_s alpha_t / sigma_t) D,  D = x_0 + h / (2 h') (x_0 - x_0'), with h the step of half the
    log-SNR and a dash for the step before. Written so, neither end needs an exception: without signal h' is infinite and D = x_0.
    """
    before: Images | None = None
    previous = math.inf
    for start, end in pairwise(times.tolist()):
        x_0 = estimate(denoiser, x, labels, start)[0]
        (alpha, sigma), (alpha_end, sigma_end) = (signal_and_noise(denoiser, t) for t in (start, end))
        step = math.log(alpha_end / sigma_end * sigma / alpha) if min(alpha, sigma_end) > 0 else math.inf
        direction = x_0
        if before is not None and math.isfinite(step):
            direction = x_0 + step / (2 * previous) * (x_0 - before)
        x = sigma_end / sigma * x + (alpha_end - sigma_end * alpha / sigma) * direction
        before, previous = x_0, step
    return x


def _runge_kutta_step(denoiser: Denoiser, x: Images, labels: Labels, start: float, end: float) -> tuple[Images, Images]:
    """Return the estimate at the step's start, and where four estimates take x."""
    middle = (start + end) / 2
    first = estimate(denoiser, x, labels, start)[1]
    second = estimate(denoiser, _transfer(denoiser, x, first, start, middle), labels, middle)[1]
    third = estimate(denoiser, _transfer(denoiser, x, second, start, middle), labels, middle)[1]
    fourth = estimate(denoiser, _transfer(denoiser, x, third, start, end), labels, end)[1]
    mean = (first + 2 * second + 2 * third + fourth) / 6
    return first, _transfer(denoiser, x, mean, start, end)


def _transfer(denoiser: Denoiser, x: Images, epsilon: Images, start: float, end: float) -> Images:
    """Take x from one time to another by a given noise: DDIM's step, eq. 11 of the paper."""
    (alpha, sigma), (alpha_end, sigma_end) = (signal_and_noise(denoiser, t) for t in (start, end))
    return alpha_end * (x - sigma * epsilon) / alpha + sigma_end * epsilon
