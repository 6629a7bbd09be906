"""The reverse step from x_t to x_s: its exact posterior, and the range that a network may choose its variance from.

    q(x_s | x_t, x_0) = N(a x_0 + b x_t, beta~),   a = alpha_s beta / sigma_t^2,   b = (alpha_t / alpha_s) sigma_s^2 / sigma_t^2,
    beta = 1 - alpha_t^2 / alpha_s^2,              beta~ = (sigma_s^2 / sigma_t^2) beta.

The best variance of a reverse step lies between beta~ (data without any spread) and beta (data of unit spread).

References
----------
Ho et al. 2020, arXiv:2006.11239, eq. 7; Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models",
arXiv:2102.09672, eq. 9 to 11 and 15.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cellbridge.diffusion.schedule import CLEAN, Schedule
from cellbridge.errors import ModelError
from cellbridge.typing import Images, Times


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0), one per image, shaped (batch, 1, 1, 1) to multiply images.

    Parameters
    ----------
    image, noisy : what x_0 and x_t count for in its mean.
    log_variance : log beta~; minus infinity where x_s is the clean image.
    log_beta : log of the variance of the forward step from s to t.
    """

    image: Tensor
    noisy: Tensor
    log_variance: Tensor
    log_beta: Tensor

    def mean(self, x_0: Images, x_t: Images) -> Images:
        """Return a x_0 + b x_t."""
        return self.image * x_0 + self.noisy * x_t


def posterior(schedule: Schedule, t: Times, s: Times, images: Tensor) -> Posterior:
    """Return q(x_s | x_t, x_0) for times -1 <= s < t, in the type of `images`.

    Computed from angles, in which beta = sin(angle_t - angle_s) sin(angle_t + angle_s) / cos(angle_s)^2 loses no digits.
    """
    shape = (-1, *[1] * (images.ndim - 1))
    late, early = schedule.angle(t).view(shape), schedule.angle(s).view(shape)
    gain = (late - early).sin() * (late + early).sin()
    beta, ratio = gain / early.cos().square(), (early.sin() / late.sin()).square()
    terms = (
        gain / (early.cos() * late.sin().square()),
        late.cos() / early.cos() * ratio,
        (ratio * beta).log(),
        beta.log(),
    )
    return Posterior(*(term.to(images.dtype) for term in terms))


def log_variance_range(schedule: Schedule, t: Times, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return (log beta~, log beta) of the unit step that ends at t, the two ends of a learned variance.

    beta~ is 0 at t = 0 and takes its value at t = 1 there and before, as published; beta takes its value at t = 0 before it.
    """
    small, large = t.clamp_min(1.0), t.clamp_min(0.0)
    lower = posterior(schedule, small, small - 1, images).log_variance
    return lower, posterior(schedule, large, large - 1, images).log_beta


def learned_log_variance(schedule: Schedule, t: Times, fraction: Tensor) -> Tensor:
    """Return fraction log beta + (1 - fraction) log beta~ for the unit step that ends at t."""
    lower, upper = log_variance_range(schedule, t, fraction)
    return fraction * upper + (1 - fraction) * lower


def split_range(output: Tensor, *, channels: int) -> tuple[Images, Tensor]:
    """Split what a network of learned range gives into its prediction and its fraction (v + 1) / 2, each of `channels`.

    Nothing confines the fraction to [0, 1]; the loss keeps it near.

    Raises
    ------
    ModelError : the network does not give twice the channels.
    """
    if output.shape[1] != 2 * channels:
        raise ModelError(
            f"the network gives {output.shape[1]} channels for images of {channels}; a learned range needs {2 * channels}. "
            "Train the base with schedule.variance: learned_range, or set it to fixed."
        )
    prediction, v = output.split(channels, dim=1)
    return prediction, (v + 1) / 2


def step_before(t: Times) -> Times:
    """Return the time one step earlier, never before the clean image."""
    return (t - 1).clamp_min(CLEAN)


def standard_normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)) in nats, elementwise."""
    return 0.5 * (mean.square() + torch.special.expm1(log_variance) - log_variance)


def divergence(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """Return KL(q || p) of two normal laws in nats, elementwise; exactly 0 where they are the same."""
    gap = log_variance_q - log_variance_p
    return 0.5 * (torch.special.expm1(gap) - gap + (mean_q - mean_p).square() * (-log_variance_p).exp())
