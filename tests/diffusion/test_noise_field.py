"""Claims about the coloured field: white stays white, and bins keep their energy and their channels' correlation."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from cellbridge.diffusion.noise_field import NoiseField, fit_field, radial_bins
from cellbridge.runtime import noise_per_image

SHAPE = (2, 24, 24)


def field(power: list[float], correlation: float) -> NoiseField:
    """Return a field of two channels whose bins have a power and one correlation."""
    matrix = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    factors = torch.linalg.cholesky(torch.tensor(power, dtype=torch.float64)[:, None, None] * matrix)
    return NoiseField(torch.tensor([0.2, -0.1]), factors, radial_bins(24, 24, bins=len(power) - 1))


def bin_energies(x: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the energy of each channel and bin, and the number of values in it, by numpy's transform."""
    power = np.abs(np.fft.fft2(x)) ** 2 / x[0, 0].size
    energy = np.stack([power[:, :, bins == k].sum(axis=(0, 2)) for k in range(bins.max() + 1)], axis=1)
    return energy, np.bincount(bins.ravel()) * len(x)


def test_sampled_fields_reproduce_the_energy_of_each_bin():
    """Energy / power ~ chi²(frequencies · images), in each bin and channel; 99.9 % bands over all of them."""
    power = [3.0, 2.0, 0.5, 1.0, 1.2, 0.8]
    prior = field(power, 0.6)
    x = prior.sample(torch.arange(200), SHAPE).double().numpy() - np.array([0.2, -0.1])[:, None, None]
    energy, degrees = bin_energies(x, prior.bins.numpy())
    low, high = chi2.ppf([0.0005 / 12, 1 - 0.0005 / 12], degrees[:, None])[:, :].T
    ratio = energy / np.array(power)
    assert (ratio > low).all()
    assert (ratio < high).all()


def test_a_fit_gives_the_field_back():
    """Power within 4 standard errors sqrt(2 / values), correlation within 4 (1 - r²) / sqrt(values / 2)."""
    power = [3.0, 2.0, 0.5, 1.0, 1.2, 0.8]
    given = field(power, 0.6)
    fitted = fit_field(given.sample(torch.arange(400), SHAPE), bins=5)
    matrices = (fitted.factors @ fitted.factors.mT).numpy()
    values = np.bincount(given.bins.numpy().ravel()) * 400
    diagonal = matrices[:, [0, 1], [0, 1]] / np.array(power)[:, None]
    assert (np.abs(diagonal - 1) < 4 * np.sqrt(2 / values)[:, None] + 6 / values[:, None]).all()
    r = matrices[:, 0, 1] / np.sqrt(matrices[:, 0, 0] * matrices[:, 1, 1])
    assert (np.abs(r - 0.6) < 4 * (1 - 0.36) / np.sqrt(values / 2)).all()
    np.testing.assert_allclose(fitted.mean, [0.2, -0.1], atol=0.02)


def test_white_noise_fitted_gives_white_noise():
    """Factors are the identity within their error, and draws are the very noise of their seeds but for that."""
    fitted = fit_field(torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(1)))
    values = torch.bincount(fitted.bins.flatten()) * 300
    error = (fitted.factors - torch.eye(2)).abs().amax(dim=(1, 2))
    assert bool((error < 4.5 / values.sqrt()).all())
    drawn, white = fitted.sample(torch.arange(8), SHAPE), noise_per_image(torch.arange(8), SHAPE, purpose="x_T")
    assert (drawn - white).square().mean().sqrt().item() < 0.02


def test_the_total_power_is_the_variance_of_what_was_fitted():
    """Parseval: the mean of tr S over all frequencies is the mean square about the mean; of white noise it is 1 per channel."""
    x = 0.7 * torch.randn(50, *SHAPE, generator=torch.Generator().manual_seed(2)).cumsum(dim=-1).div(3)
    fitted = fit_field(x)
    trace = (fitted.factors @ fitted.factors.mT).diagonal(dim1=1, dim2=2).sum(dim=1)
    expected = (x - x.mean(dim=(0, 2, 3), keepdim=True)).double().square().mean() * 2
    assert trace[fitted.bins].mean().item() == pytest.approx(expected.item(), rel=0.01)
    assert field([1.0] * 6, 0.0).factors.square().sum(dim=(1, 2))[0].item() == 2


def test_two_images_are_enough_for_a_bin_of_one_frequency():
    x = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    assert bool(torch.isfinite(fit_field(x).sample(torch.arange(2), (5, 8, 8))).all())


def test_every_frequency_has_one_bin_and_its_conjugate_the_same():
    for height, width in ((24, 24), (16, 12), (9, 15)):
        bins = radial_bins(height, width, bins=10)
        assert int((bins == 0).sum()) == 1
        assert int(bins.max()) == 10
        mirrored = bins.flip(0, 1).roll((1, 1), dims=(0, 1))
        assert torch.equal(bins, mirrored)
