"""The Brownian bridge between coupled pairs, at volatility sqrt(reg)."""

import torch
from torch import Generator, Tensor


def along(s: Tensor, x: Tensor) -> Tensor:
    """Return one value per row in a shape that multiplies x, (batch, …)."""
    return s.to(x).view(-1, *(1,) * (x.ndim - 1))


def bridge_sample(source: Tensor, target: Tensor, s: Tensor, *, reg: float, generator: Generator) -> Tensor:
    """Sample the Brownian bridge pinned at a source and a target.

    x_s ~ N((1 - s) source + s target, reg s (1 - s) I); exact at s = 0 and s = 1.

    Parameters
    ----------
    source, target : (batch, …); row i of one is coupled to row i of the other.
    s : (batch,), bridge time in [0, 1].
    reg : squared volatility of the reference process, in squared units of the data.

    References
    ----------
    Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, eq. 4.
    """
    noise = torch.randn(source.shape, generator=generator, dtype=source.dtype, device=source.device)
    return bridge_point(source, target, s, reg=reg, noise=noise)


def bridge_point(source: Tensor, target: Tensor, s: Tensor, *, reg: float, noise: Tensor) -> Tensor:
    """Return the point of the Brownian bridge that standard normal noise selects: mean + sqrt(reg s (1 - s)) noise."""
    s = along(s, source)
    return torch.lerp(source, target, s) + (reg * s * (1 - s)).sqrt() * noise
