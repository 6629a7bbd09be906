"""Times: the grid along which the ODE is solved, and the draw of times, noise and hidden conditions for a training step."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from cellbridge.diffusion.schedule import CLEAN, Schedule
from cellbridge.errors import ConfigError
from cellbridge.typing import Images, Labels, Times

Grid = Literal["uniform", "quadratic", "log_snr"]


def solver_times(schedule: Schedule, *, steps: int, grid: Grid) -> Tensor:
    """Return the `steps` + 1 times, ascending from the clean image (-1) to the noisiest (T - 1), in float64.

    - uniform: equal steps in t. For `steps` that divide T these are the "trailing" times of diffusers, and -1.
    - quadratic: -1, then (T - 1) u^2 for u from 0 to 1; dense at small t, where dark backgrounds turn into noise.
    - log_snr: -1, then equal steps of the log-SNR from t = 0 to T - 1.

    Raises
    ------
    ConfigError : fewer than two steps for a grid that puts its first step below t = 0, or none at all; log_snr where the log-SNR
        has no end (zero terminal SNR).
    """
    least = 1 if grid == "uniform" else 2
    if steps < least:
        raise ConfigError(f"solver.steps = {steps}: the {grid} grid needs at least {least}.")
    clean = torch.tensor([CLEAN], dtype=torch.float64)
    if grid == "uniform":
        return torch.linspace(CLEAN, schedule.noisiest, steps + 1, dtype=torch.float64)
    if grid == "quadratic":
        return torch.cat([clean, schedule.noisiest * torch.linspace(0, 1, steps, dtype=torch.float64) ** 2])
    if schedule.zero_terminal_snr:
        raise ConfigError(
            "solver.grid = log_snr: the log-SNR of a schedule with zero terminal SNR has no end. Use grid: quadratic or uniform."
        )
    first, last = schedule.log_snr(torch.tensor([0.0, schedule.noisiest], dtype=torch.float64)).tolist()
    log_snr = torch.linspace(first, last, steps, dtype=torch.float64)
    times = schedule.time_of_angle((-log_snr / 2).exp().atan())
    times[0], times[-1] = 0.0, schedule.noisiest
    return torch.cat([clean, times])


@dataclass(frozen=True)
class TrainingDraw:
    """The chance of one training step: a time, noise and a (possibly hidden) condition for each image."""

    t: Times
    epsilon: Images
    labels: Labels


def training_draw(
    images: Images,
    labels: Labels,
    *,
    steps: int,
    generator: Generator,
    condition_dropout: float = 0.0,
    null_label: int = 0,
) -> TrainingDraw:
    """Draw times, noise and hidden conditions for a whole batch from one generator.

    t = T u - 1 with u uniform on (0, 1], so that the network meets every time the solver asks for, fractions and (-1, 0)
    included. The batch is stratified: in a random order, image i of B has u in ((i, i + 1] / B), which leaves each image's own law
    uniform and takes the unevenness of the times out of the loss. Each image hides its condition on its own.

    Parameters
    ----------
    steps : T of the schedule.
    generator : on the device of `images`; seed it by (seed, step, micro-batch) and resumed runs draw the same.
    condition_dropout : probability that an image's label becomes `null_label`.

    References
    ----------
    Kingma et al. 2021, "Variational diffusion models", arXiv:2107.00630, appendix I.1 (stratified times).
    Ho & Salimans 2022, "Classifier-free diffusion guidance", arXiv:2207.12598, algorithm 1.
    """
    count, device = len(images), images.device
    stratum = torch.randperm(count, generator=generator, device=device)
    u = (stratum + 1 - torch.rand(count, generator=generator, device=device)) / max(count, 1)
    epsilon = torch.randn(images.shape, generator=generator, device=device, dtype=images.dtype)
    hidden = torch.rand(count, generator=generator, device=device) < condition_dropout
    return TrainingDraw(steps * u - 1, epsilon, labels.masked_fill(hidden, null_label))
