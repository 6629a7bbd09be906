"""Guidance as a denoiser around a denoiser."""

from typing import final

import torch

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.typing import Images, Labels, Times


@final
class ClassifierFreeGuidance(Denoiser):
    """Push the conditional estimate away from the unconditional one.

    x_0 = u + scale (c - u), which is the same rule in epsilon and in v, because each is affine in x_0 at a given x_t.
    Scale 1 is the conditional model bit for bit, and 0 the unconditional one; both cost one network call, any other scale two
    (in one batch of twice the size).

    Parameters
    ----------
    null_label : row of the condition embedding that training showed in place of hidden conditions.

    References
    ----------
    Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null_label: int = 0):
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.scale = scale
        self.null_label = null_label

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the guided estimate of x_0; it may leave [-1, 1] for scales above 1."""
        if self.scale == 1:
            return self.denoiser(x_t, t, labels)
        hidden = torch.full_like(labels, self.null_label)
        if self.scale == 0:
            return self.denoiser(x_t, t, hidden)
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([hidden, labels]))
        unconditional, conditional = both.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)
