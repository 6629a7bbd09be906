"""Noise schedules: how much image and how much noise is in x_t, at any real time."""

import math
from typing import Literal

import torch
from torch import Tensor

from cellbridge.errors import ConfigError
from cellbridge.typing import Times

CLEAN = -1.0
"""The time of the image without any noise, one step below the first step of the schedule."""

Kind = Literal["cosine", "linear", "scaled_linear"]

_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999
_BETAS = {"linear": (1e-4, 2e-2), "scaled_linear": (8.5e-4, 1.2e-2)}
"""First and last beta at T = 1000."""


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
        self._ends_blank = self.zero_terminal_snr
        self._on_device: dict[torch.device, Tensor] = {self._angles.device: self._angles}

    @property
    def steps(self) -> int:
        """T; times lie in [-1, T - 1]."""
        return len(self.alpha_bar)

    @property
    def noisiest(self) -> float:
        """The last time, T - 1."""
        return float(self.steps - 1)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether nothing of the image is left at T - 1."""
        return bool(self.alpha_bar[-1] == 0)

    @property
    def betas(self) -> Tensor:
        """The share of noise that each step adds, beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}: (T,), float64; the last is 1 at zero terminal SNR."""
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        return 1 - self.alpha_bar / before

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
        return self._signal(self.angle(t)).to(t.dtype)

    def sigma(self, t: Times) -> Tensor:
        """Return the standard deviation of the noise in x_t, in the float type of `t`; exactly 0 at t = -1."""
        return self.angle(t).sin().to(t.dtype)

    def log_snr(self, t: Times) -> Tensor:
        """Return log(alpha^2 / sigma^2); infinite at t = -1."""
        return (-2 * self.angle(t).tan().log()).to(t.dtype)

    def coefficients(self, t: Times, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) in the type of `images`, shaped to multiply them: (batch, 1, 1, 1)."""
        angle = self.angle(t).view(-1, *[1] * (images.ndim - 1))
        return self._signal(angle).to(images.dtype), angle.sin().to(images.dtype)

    def time_of_angle(self, angle: Tensor) -> Tensor:
        """Return the time in [-1, T - 1] at which arctan(sigma / alpha) is `angle`, where that lies: the inverse of `angle`, in its type there."""
        table = self._table(angle.device)
        wanted = angle.detach().to(table.dtype).contiguous()
        upper = torch.searchsorted(table, wanted).clamp(1, self.steps)
        low, high = table[upper - 1], table[upper]
        return upper - 2 + ((wanted - low) / (high - low)).clamp(0, 1)

    def _signal(self, angle: Tensor) -> Tensor:
        # The cosine of the float nearest to pi / 2 is 6e-17, which epsilon would be divided by in silence.
        cosine = angle.cos()
        return cosine.masked_fill(angle >= self._table(angle.device)[-1], 0.0) if self._ends_blank else cosine

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._on_device[device] = self._angles.to(device, dtype)
        return self._on_device[device]


def make_schedule(
    kind: Kind,
    steps: int,
    *,
    beta_start: float | None = None,
    beta_end: float | None = None,
    zero_terminal_snr: bool = False,
) -> Schedule:
    """Build a schedule of `steps` steps by name.

    - linear: beta equally spaced from 1e-4 to 2e-2, times 1000 / T.
    - scaled_linear: sqrt(beta) equally spaced, beta from 8.5e-4 to 1.2e-2, times 1000 / T.
    - cosine: beta_i = min(1 - f((i + 1) / T) / f(i / T), 0.999) with f(u) = cos^2((u + 0.008) / 1.008 pi / 2).

    Parameters
    ----------
    beta_start, beta_end : first and last beta at T = 1000, for the two linear kinds.
    zero_terminal_snr : let nothing of the image be left at T - 1 (see `with_zero_terminal_snr`).

    Raises
    ------
    ConfigError : betas that do not rise within (0, 1), so few steps that one reaches 1, or betas for the cosine schedule.

    References
    ----------
    Ho et al. 2020, arXiv:2006.11239 (linear); Rombach et al. 2022, arXiv:2112.10752 (scaled_linear, in their code);
    Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17 (cosine).
    """
    if kind == "cosine":
        _refuse_betas(beta_start, beta_end)
        edges = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = ((edges + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)).cos() ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=_LARGEST_BETA)
    else:
        first, last = beta_range(kind, steps, beta_start=beta_start, beta_end=beta_end)
        betas = _spaced(kind, first, last, steps)
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    return Schedule(with_zero_terminal_snr(alpha_bar) if zero_terminal_snr else alpha_bar)


def with_zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that its first value stays and its last becomes 0.

    With a = sqrt(alpha_bar): a'_t = (a_t - a_T) a_0 / (a_0 - a_T). A network that predicts epsilon says nothing of the image where
    nothing of it is left; see `require_defined`.

    References
    ----------
    Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", arXiv:2305.08891, algorithm 1.
    """
    signal = alpha_bar.sqrt()
    return ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2


def beta_range(
    kind: Literal["linear", "scaled_linear"],
    steps: int,
    *,
    beta_start: float | None = None,
    beta_end: float | None = None,
) -> tuple[float, float]:
    """Return the first and last beta of a linear schedule of `steps` steps: those of T = 1000, times 1000 / T."""
    default_start, default_end = _BETAS[kind]
    start = default_start if beta_start is None else beta_start
    end = default_end if beta_end is None else beta_end
    if not 0 < start <= end < 1:
        raise ConfigError(
            f"schedule.beta_start = {start:g} and beta_end = {end:g}: expected 0 < beta_start <= beta_end < 1, "
            f"such as {default_start:g} and {default_end:g}."
        )
    if end * 1000 >= steps:
        raise ConfigError(
            f"schedule.steps = {steps}: the {kind} schedule needs more than {math.floor(end * 1000)} steps. Use 1000, or kind: cosine."
        )
    return start * 1000 / steps, end * 1000 / steps


def _spaced(kind: Kind, first: float, last: float, steps: int) -> Tensor:
    if kind == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2


def _refuse_betas(*betas: float | None) -> None:
    if any(beta is not None for beta in betas):
        raise ConfigError(
            "schedule.beta_start and beta_end: the cosine schedule has none. Leave them out, or use kind: linear or scaled_linear."
        )
