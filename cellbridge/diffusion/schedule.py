"""Noise schedules: how much image and how much noise is in x_t, at any real time."""

import math
from typing import Literal

import torch
from torch import Tensor

from cellbridge.errors import ConfigError
from cellbridge.typing import Times

CLEAN = -1.0
"""The time of the image without any noise, one step below the first step of the schedule."""

_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999


class Schedule:
    """Signal and noise at time t: x_t = alpha(t) x_0 + sigma(t) epsilon, with alpha^2 + sigma^2 = 1.

    The T steps of the discrete schedule lie at t = 0 … T - 1, and the clean image at t = -1 (the product over no step is 1).
    Between neighbours the *angle* arctan(sigma / alpha) is linear in t. It is finite at both ends, where the log-SNR is
    not, and along it the probability-flow ODE reads dx/d(angle) = v. Data lie at t = -1 and not at t = 0: a dark background whose
    spread is near sigma(0) (0.010 for the linear schedule, 0.0064 for the cosine) would otherwise invert to noise that is too quiet.

    Parameters
    ----------
    alpha_bar : (T,), decreasing, in [0, 1]; kept in float64.
    """

    def __init__(self, alpha_bar: Tensor):
        self.alpha_bar = alpha_bar.detach().to("cpu", torch.float64)
        angles = torch.atan2((1 - self.alpha_bar).sqrt(), self.alpha_bar.sqrt())
        self._angles = torch.cat([torch.zeros(1, dtype=torch.float64), angles])
        self._on_device: dict[torch.device, Tensor] = {self._angles.device: self._angles}

    @property
    def steps(self) -> int:
        """T; times lie in [-1, T - 1]."""
        return len(self.alpha_bar)

    @property
    def noisiest(self) -> float:
        """The last time, T - 1."""
        return float(self.steps - 1)

    def to(self, device: torch.device | str) -> "Schedule":
        """Put the table on `device` ahead of its first use there (which does the same)."""
        self._table(torch.device(device))
        return self

    def angle(self, t: Times) -> Tensor:
        """Return arctan(sigma / alpha) in [0, pi / 2], in float64 where the device has it; t outside the range is clamped to it."""
        table = self._table(t.device)
        position = (t.to(table.dtype) + 1).clamp(0, self.steps)
        lower = position.floor().clamp(max=self.steps - 1)
        index = lower.long()
        return torch.lerp(table[index], table[index + 1], position - lower)

    def alpha(self, t: Times) -> Tensor:
        """Return the share of the image in x_t, in the float type of `t`."""
        return self.angle(t).cos().to(t.dtype)

    def sigma(self, t: Times) -> Tensor:
        """Return the standard deviation of the noise in x_t, in the float type of `t`; exactly 0 at t = -1."""
        return self.angle(t).sin().to(t.dtype)

    def log_snr(self, t: Times) -> Tensor:
        """Return log(alpha^2 / sigma^2); infinite at t = -1."""
        return (-2 * self.angle(t).tan().log()).to(t.dtype)

    def coefficients(self, t: Times, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) in the type of `images`, shaped to multiply them: (batch, 1, 1, 1)."""
        angle = self.angle(t).view(-1, *[1] * (images.ndim - 1))
        return angle.cos().to(images.dtype), angle.sin().to(images.dtype)

    def time_of_angle(self, angle: Tensor) -> Tensor:
        """Return the time at which arctan(sigma / alpha) is `angle`; the inverse of `angle`, in float64 on the CPU."""
        wanted = angle.detach().to("cpu", torch.float64).contiguous()
        upper = torch.searchsorted(self._angles, wanted).clamp(1, self.steps)
        low, high = self._angles[upper - 1], self._angles[upper]
        return upper - 2 + ((wanted - low) / (high - low)).clamp(0, 1)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._on_device[device] = self._angles.to(device, dtype)
        return self._on_device[device]


def make_schedule(kind: Literal["cosine", "linear"], steps: int) -> Schedule:
    """Build a schedule of `steps` steps by name.

    linear: beta from 1e-4 to 2e-2, times 1000 / T. cosine: beta_i = min(1 - f((i + 1) / T) / f(i / T), 0.999) with
    f(u) = cos^2((u + 0.008) / 1.008 pi / 2).

    Raises
    ------
    ConfigError : the linear schedule has so few steps that a beta reaches 1.

    References
    ----------
    Ho et al. 2020, arXiv:2006.11239 (linear); Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17 (cosine).
    """
    if kind == "linear":
        first, last = linear_betas(steps)
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
    else:
        edges = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = ((edges + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)).cos() ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=_LARGEST_BETA)
    return Schedule(torch.cumprod(1 - betas, dim=0))


def linear_betas(steps: int) -> tuple[float, float]:
    """Return the first and last beta of the linear schedule of `steps` steps."""
    first, last = 1e-4 * 1000 / steps, 2e-2 * 1000 / steps
    if last >= 1:
        raise ConfigError(
            f"schedule.steps = {steps}: the linear schedule needs more than 20 steps. Use 1000, or kind: cosine."
        )
    return first, last
