"""Keeping estimates of x_0 inside the range of images, as denoisers around a denoiser; for sampling only, as inversion needs the ODE itself.

Samplers derive the noise from x_0, so that a confined image and its noise still make up x_t (diffusers does so only with
`use_clipped_model_output`).
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.errors import ConfigError
from cellbridge.typing import Images, Labels, Times


@final
class Clipping(Denoiser):
    """Clip the estimate to [-limit, limit]."""

    def __init__(self, denoiser: Denoiser, limit: float = 1.0):
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.limit = limit

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the clipped estimate."""
        return self.denoiser(x_t, t, labels).clamp(-self.limit, self.limit)

    def with_fraction(self, x_t: Images, t: Times, labels: Labels) -> tuple[Images, Tensor | None]:
        """Return the clipped estimate, and the fraction of the denoiser within."""
        x_0, fraction = self.denoiser.with_fraction(x_t, t, labels)
        return x_0.clamp(-self.limit, self.limit), fraction


@final
class DynamicThresholding(Denoiser):
    """Clip each channel of each image to [-m, m] and divide by m, its own percentile of |x_0|, kept in [1, largest].

    Channels differ in how much of them is bright, so that a percentile over all of them would clip the one that needs its range.
    With `largest` = 1, the default of diffusers, this is plain clipping.

    Parameters
    ----------
    percentile : share of a channel's pixels, in (0, 1), whose range is kept.
    largest : above 1; the most that an estimate is scaled down by.

    Raises
    ------
    ConfigError : `percentile` or `largest` is outside its range.

    References
    ----------
    Saharia et al. 2022, "Photorealistic text-to-image diffusion models", arXiv:2205.11487, section 2.3.
    """

    def __init__(self, denoiser: Denoiser, *, percentile: float = 0.995, largest: float = 2.0):
        super().__init__()
        if not 0 < percentile < 1:
            raise ConfigError(f"threshold_percentile = {percentile}: expected a share between 0 and 1, such as 0.995.")
        if largest <= 1:
            raise ConfigError(
                f"threshold_largest = {largest}: dynamic thresholding does nothing but clip unless it is above 1. "
                "Raise it, or use threshold: clip."
            )
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.percentile = percentile
        self.largest = largest

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the confined estimate, in [-1, 1] wherever the percentile is at most `largest`."""
        return self._confined(self.denoiser(x_t, t, labels))

    def with_fraction(self, x_t: Images, t: Times, labels: Labels) -> tuple[Images, Tensor | None]:
        """Return the confined estimate, and the fraction of the denoiser within."""
        x_0, fraction = self.denoiser.with_fraction(x_t, t, labels)
        return self._confined(x_0), fraction

    def _confined(self, x_0: Images) -> Images:
        margin = quantile_per_channel(x_0.abs(), self.percentile).clamp(1.0, self.largest)
        return torch.minimum(torch.maximum(x_0, -margin), margin) / margin


def quantile_per_channel(images: Tensor, share: float) -> Tensor:
    """Return the quantile of each channel of each image, (batch, channel, 1, 1), by linear interpolation between its pixels.

    `torch.quantile` refuses batches of more than 16 million values.
    """
    pixels = images.flatten(2)
    position = share * (pixels.shape[2] - 1)
    below = math.floor(position)
    highest = pixels.topk(pixels.shape[2] - below, dim=2).values
    upper = highest[..., -2] if highest.shape[2] > 1 else highest[..., -1]
    return torch.lerp(highest[..., -1], upper, position - below)[..., None, None]


def confines(denoiser: nn.Module) -> bool:
    """Return whether the estimate is clipped or thresholded anywhere inside a denoiser."""
    return any(isinstance(part, Clipping | DynamicThresholding) for part in denoiser.modules())
