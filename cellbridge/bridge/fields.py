"""Stationary Gaussian fields on a torus, between which the bridge is known at image size.

The covariance of a stationary field of C channels on an H × W torus is block-circulant: its Fourier coefficients are independent between
frequencies, and at each of them the channels have a C × C Hermitian spectrum. The formulas for Gaussians hold frequency by frequency, and the
optimal drift is a convolution. With the orthonormal transform a spectrum's mean over frequencies is the channels' covariance at a pixel.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class FieldBridge:
    """The bridge between two stationary fields, zero-mean.

    Parameters
    ----------
    source, target : (height, width, channel, channel), complex128 spectra A and B, Hermitian and positive definite at each frequency.
    cross : the same shape, E[X_0 X_1ᴴ] at each frequency.
    reg : squared volatility, per pixel.
    """

    source: Tensor
    target: Tensor
    cross: Tensor
    reg: float

    @property
    def gain(self) -> Tensor:
        """Return Cᴴ A⁻¹: what a source's coefficients are multiplied by for the conditional mean."""
        return torch.linalg.solve(self.source, self.cross).mH

    @property
    def conditional(self) -> Tensor:
        """Return the spectrum of X_1 given X_0, B - Cᴴ A⁻¹ C."""
        return self.target - self.gain @ self.cross

    def mean(self, source: Tensor) -> Tensor:
        """Return E[X_1 | X_0 = source], images (batch, channel, height, width)."""
        return filtered(source, self.gain)

    def draw(self, source: Tensor, generator: Generator) -> Tensor:
        """Return X_1 given each source."""
        return self.mean(source) + sample_field(self.conditional, len(source), generator=generator).to(source)


def field_bridge(source: Tensor, target: Tensor, *, reg: float) -> FieldBridge:
    """Solve the bridge at each frequency: C = A^½ (D - reg) A^-½ / 2, D = (4 A^½ B A^½ + reg²)^½.

    Parameters
    ----------
    source, target : spectra (height, width, channel, channel).
    """
    values, basis = torch.linalg.eigh(source)
    root, inverse = ((basis * power[..., None, :]) @ basis.mH for power in (values.sqrt(), values.rsqrt()))
    inner, turn = torch.linalg.eigh(root @ target @ root)
    share = 2 * inner.clamp_min(0) / ((4 * inner.clamp_min(0) + reg**2).sqrt() + reg)
    cross = root @ ((turn * share[..., None, :]) @ turn.mH) @ inverse
    return FieldBridge(source, target, cross, reg)


def sample_field(spectrum: Tensor, count: int, *, generator: Generator) -> Tensor:
    """Draw fields (count, channel, height, width), float64, of a spectrum with S(-k) = conj S(k)."""
    height, width, channels = spectrum.shape[:3]
    noise = torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)
    values, basis = torch.linalg.eigh(spectrum)
    return filtered(noise, (basis * values.clamp_min(0).sqrt()[..., None, :]) @ basis.mH)


def filtered(images: Tensor, response: Tensor) -> Tensor:
    """Multiply the Fourier coefficients of images (batch, channel, height, width) by (height, width, channel, channel)."""
    coefficients = torch.fft.fft2(images.double(), norm="ortho")
    moved = torch.einsum("hwcd,ndhw->nchw", response, coefficients)
    return torch.fft.ifft2(moved, norm="ortho").real.to(images)


def spectrum_of(images: Tensor) -> Tensor:
    """Estimate the spectrum (height, width, channel, channel) of zero-mean images (batch, channel, height, width)."""
    coefficients = torch.fft.fft2(images.double(), norm="ortho")
    return torch.einsum("nchw,ndhw->hwcd", coefficients, coefficients.conj()) / len(images)


def power_law(channels: int, size_px: int, *, slope: float, mixing: Tensor, level: float = 1.0) -> Tensor:
    """Return the spectrum M diag(p_c) Mᵀ with p_c(k) ∝ (1 + (|k| / k_c)²)^(-slope / 2), each channel of variance `level` before mixing.

    Parameters
    ----------
    size_px : of the square images.
    slope : how fast fine structure falls off.
    mixing : (channel, channel), M, real.
    """
    frequency = torch.fft.fftfreq(size_px, dtype=torch.float64) * size_px
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    corner = torch.linspace(1.5, 4.0, channels, dtype=torch.float64)
    power = (1 + (radius[..., None] / corner).square()) ** (-slope / 2)
    power = level * power / power.mean((0, 1))
    mixing = mixing.double()
    return ((mixing * power[..., None, :]) @ mixing.T).to(torch.complex128)


def spectrum_uvp(found: Tensor, truth: Tensor, *, target: Tensor) -> float:
    """Return the squared Bures-Wasserstein distance of two zero-mean fields over half the target's variance, in %.

    It is the sum over frequencies of tr(S_1 + S_2 - 2 (S_1^½ S_2 S_1^½)^½).
    """
    values, basis = torch.linalg.eigh(found)
    root = (basis * values.clamp_min(0).sqrt()[..., None, :]) @ basis.mH
    shared = torch.linalg.eigvalsh(root @ truth @ root).clamp_min(0).sqrt().sum()
    return 100 * float((_trace(found) + _trace(truth) - 2 * shared) / (_trace(target) / 2))


def mean_field_uvp(means: Tensor, truth: Tensor, *, target: Tensor) -> float:
    """Return the squared error of conditional means (source, channel, height, width) over half the target's variance, in %."""
    error = (means - truth).double().square().sum((1, 2, 3)).mean()
    return 100 * float(error / (_trace(target) / 2))


def _trace(spectrum: Tensor) -> Tensor:
    return spectrum.diagonal(dim1=-2, dim2=-1).real.sum()
