"""Data whose diffusion is known in closed form: independent pixels N(mean, std^2), with the exact denoiser and ODE."""

import torch
from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.schedule import Schedule


class GaussianDenoiser(Denoiser):
    """E[x_0 | x_t] of N(mean, std^2) pixels, in float64; counts its calls."""

    def __init__(self, schedule: Schedule, *, mean: float | Tensor = 0.0, std: float | Tensor = 0.5):
        super().__init__()
        self.schedule = schedule
        self.mean, self.std = mean, std
        self.calls = 0

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        alpha, sigma = self.schedule.coefficients(t, x_t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def noise_of(self, x_0: Tensor) -> Tensor:
        """Return the exact x_T of the probability-flow ODE: sqrt(a) mean + sqrt(a s^2 + 1 - a) (x_0 - mean) / s."""
        a = self.schedule.alpha_bar[-1]
        return a.sqrt() * self.mean + (a * self.std**2 + 1 - a) ** 0.5 * (x_0 - self.mean) / self.std


def pixels(count: int = 64, *, mean: float = 0.0, std: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return images (4, 1, 4, count / 16) whose pixels are N(mean, std^2), and labels of zeros."""
    drawn = torch.randn(4, 1, 4, count // 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return mean + std * drawn, torch.zeros(4, dtype=torch.int64)


class MixtureDenoiser(Denoiser):
    """E[x_0 | x_t] of pixels drawn from 0.6 N(-0.6, 0.15^2) + 0.4 N(0.3, 0.3^2).

    In one dimension the probability-flow ODE keeps quantiles: F_T(x_T) = F_0(x_0), with F_t the distribution of x_t.
    """

    weights, means, stds = torch.tensor([[0.6, 0.4], [-0.6, 0.3], [0.15, 0.3]], dtype=torch.float64)

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        alpha, sigma = (c.unsqueeze(-1) for c in self.schedule.coefficients(t, x_t))
        variance = alpha**2 * self.stds**2 + sigma**2
        distance = x_t.unsqueeze(-1) - alpha * self.means
        share = (self.weights.log() - variance.log() / 2 - distance**2 / (2 * variance)).softmax(-1)
        return (share * (self.means + alpha * self.stds**2 / variance * distance)).sum(-1)

    def quantile(self, x_t: Tensor, t: float) -> Tensor:
        """Return F_t(x_t)."""
        time = torch.tensor([t], dtype=torch.float64)
        alpha, sigma = self.schedule.alpha(time), self.schedule.sigma(time)
        spread = (alpha**2 * self.stds**2 + sigma**2).sqrt()
        return (self.weights * torch.special.ndtr((x_t.unsqueeze(-1) - alpha * self.means) / spread)).sum(-1)
