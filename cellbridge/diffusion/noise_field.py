"""A stationary coloured Gaussian field: noise whose power, and whose correlation between channels, depend on the radial frequency.

x = mu_c + F⁻¹[ L(|f|) F[w] ], w ~ N(0, I), with L L^T = S(|f|) the channels' cross-spectral matrix in a radial bin of frequencies. It
holds what the battery finds most: another variance, a low-frequency leak, channels that go together. What it cannot hold is place:
that the background is quieter than the cells, and tails.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from cellbridge.diffusion.prior import XTPrior, require_noises, require_shape
from cellbridge.typing import Images, Seeds


@final
class NoiseField(XTPrior):
    """See above.

    Parameters
    ----------
    mean : (channel,), of every pixel.
    factors : (bin, channel, channel), lower triangular L of each bin.
    bins : (height, width), int64, the bin of each frequency in the order of `torch.fft.fft2`; bin 0 is the constant term.
    """

    kind = "field"

    def __init__(self, mean: Tensor, factors: Tensor, bins: Tensor):
        if (
            factors.ndim != 3
            or factors.shape[1:] != (len(mean),) * 2
            or bins.ndim != 2
            or int(bins.max()) >= len(factors)
        ):
            raise ValueError(
                f"mean {tuple(mean.shape)}, factors {tuple(factors.shape)} and bins {tuple(bins.shape)} do not fit"
            )
        self.mean, self.factors, self.bins = mean.double(), factors.double(), bins

    def shape_noise(self, noise: Images, seeds: Seeds) -> Images:
        """Colour noise by Fourier transform, in double precision."""
        require_shape(tuple(noise.shape[1:]), (len(self.mean), *self.bins.shape))
        if not len(noise):
            return noise  # which the transform does not take
        spectrum = torch.fft.fft2(noise.cpu().double())
        factors = self.factors[self.bins].to(spectrum.dtype)
        field = torch.fft.ifft2(torch.einsum("hwcd,ndhw->nchw", factors, spectrum)).real
        return (field + self.mean[:, None, None]).float().to(noise.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return mean, factors and bins."""
        return {"mean": self.mean, "factors": self.factors, "bins": self.bins}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "NoiseField":
        """Build the field from its tensors."""
        return cls(tensors["mean"], tensors["factors"], tensors["bins"])


def fit_field(x_T: Tensor, *, bins: int = 10) -> NoiseField:
    """Fit the field to x_T (n, channel, height, width).

    mu_c is the channel's mean; S_k = Re Σ F F^† / (pixels · count) over images and the frequencies of bin k, after adding channel + 1
    draws of white noise, so that a bin of few frequencies is not singular and what is white stays white.

    Parameters
    ----------
    bins : radial bins of equal width, beside the constant term's own.

    Raises
    ------
    ValueError : fewer than two images, or x_T is not finite.
    """
    x = require_noises(x_T, fewest=2)
    n, channels, height, width = x.shape
    mean = x.mean(dim=(0, 2, 3))
    spectrum = torch.fft.fft2(x - mean[:, None, None]) / (height * width) ** 0.5
    products = torch.einsum("nchw,ndhw->hwcd", spectrum, spectrum.conj()).real
    index = radial_bins(height, width, bins=bins)
    pseudo, identity = channels + 1, torch.eye(channels, dtype=torch.float64)
    matrices = []
    for k in range(bins + 1):
        inside = index == k
        count = n * int(inside.sum())
        matrices.append((products[inside].sum(dim=0) + pseudo * identity) / (count + pseudo))
    return NoiseField(mean, torch.linalg.cholesky(torch.stack(matrices)), index)


def radial_bins(height: int, width: int, *, bins: int) -> Tensor:
    """Return the bin of each frequency (height, width): 0 the constant term, 1 … bins by radius, up to the corner's."""
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :])
    index = torch.ceil(radius / (radius.max() / bins) - 1e-6).clamp(1, bins)
    return torch.where(radius == 0, 0, index).long()
