import pytest
import torch

from cellbridge.bridge.fields import (
    field_bridge,
    mean_field_uvp,
    power_law,
    sample_field,
    spectrum_of,
    spectrum_uvp,
)
from cellbridge.bridge.gaussian import gaussian_bridge


def spectra(size_px: int, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    mixings = torch.eye(channels) + 0.3 * torch.randn(2, channels, channels, generator=chance)
    return tuple(
        power_law(channels, size_px, slope=slope, mixing=m) for slope, m in zip((3.0, 2.0), mixings, strict=True)
    )


def dense(spectrum: torch.Tensor) -> torch.Tensor:
    """Return the covariance of all pixels and channels, from the transform as a matrix."""
    size, channels = spectrum.shape[0], spectrum.shape[2]
    fourier = torch.fft.fft(torch.eye(size, dtype=torch.complex128), norm="ortho")
    both = torch.kron(torch.eye(channels, dtype=torch.complex128), torch.kron(fourier, fourier))
    blocks = torch.zeros(channels * size**2, channels * size**2, dtype=torch.complex128)
    flat = spectrum.reshape(size**2, channels, channels)
    for c in range(channels):
        for d in range(channels):
            at = torch.arange(size**2)
            blocks[c * size**2 + at, d * size**2 + at] = flat[:, c, d]
    return (both.mH @ blocks @ both).real


def test_conditional_mean_and_covariance_are_those_of_the_dense_formulas() -> None:
    source, target = spectra(4)
    found = field_bridge(source, target, reg=0.5)
    zero = torch.zeros(32, dtype=torch.float64)
    whole = gaussian_bridge(zero, dense(source), zero, dense(target), reg=0.5)
    x = sample_field(source, 3, generator=torch.Generator().manual_seed(1))
    mean, covariance = whole.conditional(x.flatten(1))
    assert torch.allclose(found.mean(x).flatten(1), mean, atol=1e-9)
    assert torch.allclose(dense(found.conditional), covariance, atol=1e-9)


@pytest.mark.parametrize("size_px", [16, 64])
def test_five_channels_fulfil_optimality_at_each_frequency(size_px: int) -> None:
    source, target = spectra(size_px, channels=5)
    found = field_bridge(source, target, reg=1.0)
    joint = torch.cat([torch.cat([source, found.cross], -1), torch.cat([found.cross.mH, target], -1)], -2)
    block = torch.linalg.inv(joint)[..., :5, 5:]
    assert torch.allclose(block, -torch.eye(5, dtype=torch.complex128).expand_as(block), atol=1e-8)


def test_samples_have_the_spectrum_they_were_drawn_from() -> None:
    source, target = spectra(8)
    images = sample_field(source, 4000, generator=torch.Generator().manual_seed(0))
    assert spectrum_uvp(spectrum_of(images), source, target=source) < 0.2
    assert spectrum_uvp(target, source, target=source) > 5
    pixel = torch.cov(images.permute(1, 0, 2, 3).flatten(1))
    assert torch.allclose(pixel, source.mean((0, 1)).real, atol=0.05)


def test_draws_scatter_about_the_mean_by_the_conditional_spectrum() -> None:
    source, target = spectra(8)
    bridge = field_bridge(source, target, reg=0.5)
    x = sample_field(source, 1, generator=torch.Generator().manual_seed(0)).expand(3000, -1, -1, -1)
    drawn = bridge.draw(x, torch.Generator().manual_seed(1))
    assert mean_field_uvp(drawn.mean(0, keepdim=True), bridge.mean(x[:1]), target=target) < 0.1
    assert spectrum_uvp(spectrum_of(drawn - bridge.mean(x)), bridge.conditional, target=target) < 0.2
