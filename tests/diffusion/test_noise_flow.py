"""Claims about the flow on low modes: invertible, with the right volume, white where the noise is."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.stats import multivariate_normal

from cellbridge.diffusion.noise_flow import FlowPrior, LowFrequencyFlow, fit_flow, from_modes, to_modes
from cellbridge.runtime import noise_per_image


@pytest.fixture
def flow() -> LowFrequencyFlow:
    """A flow that is far from the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = LowFrequencyFlow(6, width=16).double()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return made


def test_modes_are_scipy_s_and_only_they_come_back():
    x = torch.randn(3, 2, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low = to_modes(x, 4)
    np.testing.assert_allclose(low, dctn(x.numpy(), axes=(-2, -1), norm="ortho")[..., :4, :4], atol=1e-12)
    back = from_modes(low, (2, 12, 10))
    torch.testing.assert_close(to_modes(back, 4), low)
    assert torch.linalg.norm(back) < torch.linalg.norm(x)


def test_the_inverse_gives_the_latent_back_and_the_opposite_volume(flow):
    latent = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    modes, log_det = flow(latent)
    back, log_det_back = flow.inverse(modes)
    torch.testing.assert_close(back, latent, atol=1e-10, rtol=0)
    torch.testing.assert_close(log_det_back, -log_det)
    assert (modes - latent).abs().max().item() > 0.3


def test_the_log_determinant_is_the_jacobian_s(flow):
    for latent in torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)):
        jacobian = torch.autograd.functional.jacobian(lambda z: flow(z[None])[0][0], latent)
        assert flow(latent[None])[1].item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9)


def test_the_untrained_flow_is_the_identity_and_its_likelihood_a_normal_s():
    untrained = LowFrequencyFlow(5).double()
    y = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(untrained(y)[0], y)
    expected = multivariate_normal(np.zeros(5)).logpdf(y.numpy())
    np.testing.assert_allclose(untrained.log_likelihood(y).detach(), expected)


def test_a_gaussian_s_likelihood_is_reached():
    """Modes with another mean and spread: held-out likelihood within 0.05 nats per mode of the truth's."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(600, 1, 8, 8, dtype=torch.float64, generator=draw)
    low = to_modes(x, 2)
    x = x + from_modes(0.8 + 0.4 * low, (1, 8, 8))
    prior = fit_flow(x, modes=2, seed=0)
    fresh = 0.8 + 1.4 * torch.randn(2000, 4, dtype=torch.float64, generator=draw)
    truth = -0.5 * ((fresh - 0.8) / 1.4).square() - math.log(1.4) - 0.5 * math.log(2 * math.pi)
    found = prior.flow.log_likelihood(fresh).mean().item() / 4
    assert found > truth.mean().item() - 0.05
    untrained = LowFrequencyFlow(4).double().log_likelihood(fresh).mean().item() / 4
    assert untrained < truth.mean().item() - 0.3


def test_what_is_not_gaussian_is_learnt():
    """Two modes on two arcs: a quadratic bend that no covariance holds is found by the couplings."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(800, 1, 8, 8, dtype=torch.float64, generator=draw)
    low = to_modes(x, 2).flatten(1)
    bent = low.clone()
    bent[:, 1] = 0.3 * low[:, 1] + low[:, 0] ** 2 - 1
    x = x + from_modes((bent - low).view(-1, 1, 2, 2), (1, 8, 8))
    drawn = to_modes(fit_flow(x, modes=2, seed=0).sample(torch.arange(1500), (1, 8, 8)).double(), 2).flatten(1)
    found = np.corrcoef(drawn[:, 0] ** 2, drawn[:, 1])[0, 1]
    assert found > 0.7
    assert np.corrcoef(bent[:, 0] ** 2, bent[:, 1])[0, 1] > 0.9


def test_white_noise_fitted_stays_white_and_high_frequencies_are_never_touched():
    x = torch.randn(200, 2, 12, 12, generator=torch.Generator().manual_seed(6))
    prior = fit_flow(x, seed=0)
    drawn, white = (
        part.double()
        for part in (
            prior.sample(torch.arange(50), (2, 12, 12)),
            noise_per_image(torch.arange(50), (2, 12, 12), purpose="x_T"),
        )
    )
    low = to_modes(drawn, 4) - to_modes(white, 4)
    assert low.square().mean().sqrt().item() < 0.2
    torch.testing.assert_close(drawn - from_modes(low, (2, 12, 12)), white, atol=1e-6, rtol=0)


def test_weights_of_another_flow_are_refused(flow):
    tensors = FlowPrior(LowFrequencyFlow(6, width=16), shape=(6, 8, 8), modes=1).tensors()
    with pytest.raises(ValueError, match="weights of another flow"):
        FlowPrior.from_tensors({**tensors, "sizes": torch.tensor([5, 8, 8, 1, 16, 4])})
