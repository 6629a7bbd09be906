import math

import pytest
import torch
from gaussian_oracle import GaussianDenoiser, MixtureDenoiser, pixels

from cellbridge.diffusion.inversion import invert
from cellbridge.diffusion.samplers import network_calls, sample
from cellbridge.diffusion.schedule import make_schedule

KINDS = ["linear", "cosine"]
GRIDS = ["uniform", "quadratic", "log_snr"]
DARK = [0.01, 0.02, 0.05, 0.1, 0.2, 0.4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_inversion_converges_to_the_closed_form_noise_of_gaussian_data(kind, grid):
    """x_T = sqrt(a) mu + sqrt(a s^2 + 1 - a) (x_0 - mu) / s."""
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), mean=-0.4, std=0.5)
    x_0, labels = pixels(mean=-0.4, std=0.5)
    x_T = invert(denoiser, x_0, labels, steps=200, order=2, grid=grid)
    assert torch.allclose(x_T, denoiser.noise_of(x_0), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("inverting", [False, True])
def test_doubling_the_steps_divides_the_error_by_two_to_the_order(kind, order, inverting):
    """Against the exact ODE of a mixture, which keeps quantiles: F_T(x_T) = F_0(x_0)."""
    denoiser = MixtureDenoiser(make_schedule(kind, 1000))
    x = torch.linspace(-1, 1, 32, dtype=torch.float64).view(2, 1, 4, 4) * (1 if inverting else 2)
    start, end = (-1, 999) if inverting else (999, -1)
    errors = []
    for steps in (40, 80):
        solved = (invert if inverting else sample)(denoiser, x, torch.zeros(2).long(), steps=steps, order=order)
        errors.append((denoiser.quantile(solved, end) - denoiser.quantile(x, start)).square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)
    assert errors[1] < (2e-2 if order == 1 else 3e-5)


@pytest.mark.parametrize(("kind", "steps", "expected"), [("linear", 10, 3), ("cosine", 20, 3)])
def test_on_gaussian_data_the_second_order_solver_is_of_third_order(kind, steps, expected):
    """Its leading error cancels where the denoiser is linear, which is why 25 steps do for dark backgrounds."""
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), std=0.2)
    x_0, labels = pixels(std=0.2)
    errors = [
        (invert(denoiser, x_0, labels, steps=n) - denoiser.noise_of(x_0)).square().mean().sqrt().item()
        for n in (2 * steps, 4 * steps)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("std", DARK)
def test_dark_backgrounds_invert_to_noise_of_unit_variance_in_49_calls(kind, std):
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), mean=-0.95, std=std)
    labels = torch.zeros(1, dtype=torch.int64)
    one_deviation = torch.full((1, 1, 1, 1), -0.95 + std, dtype=torch.float64)
    x_T = invert(denoiser, one_deviation, labels, steps=25, order=2, grid="quadratic")
    mean = denoiser.schedule.alpha_bar[-1].sqrt() * -0.95
    assert 0.98 <= (x_T - mean).item() <= 1.0005
    assert denoiser.calls == 49


@pytest.mark.parametrize("kind", KINDS)
def test_first_order_inversion_leaves_dark_backgrounds_far_too_quiet(kind):
    """The reason for the default: diffusers' own inversion, 50 uniform steps."""
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), std=0.01)
    x_0 = torch.full((1, 1, 1, 1), 0.01, dtype=torch.float64)
    assert invert(denoiser, x_0, torch.zeros(1, dtype=torch.int64), steps=50, order=1, grid="uniform").item() < 0.4


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.4, 0.8])
def test_image_to_noise_to_image_returns_within_one_percent_of_its_spread(std):
    denoiser = GaussianDenoiser(make_schedule("cosine", 1000), mean=-0.5, std=std)
    x_0, labels = pixels(mean=-0.5, std=std)
    x_T = invert(denoiser, x_0, labels, steps=25)
    assert (sample(denoiser, x_T, labels, steps=25) - x_0).square().mean().sqrt().item() < 0.01 * std


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("inverting", [False, True])
def test_network_calls_are_as_counted(order, inverting):
    denoiser = GaussianDenoiser(make_schedule("cosine", 1000))
    x, labels = pixels()
    (invert if inverting else sample)(denoiser, x, labels, steps=7, order=order)
    assert denoiser.calls == network_calls(7, order, inverting=inverting)


def _epsilon(denoiser, x, t):
    alpha, sigma = denoiser.schedule.coefficients(torch.full((len(x),), float(t), dtype=torch.float64), x)
    x_0 = denoiser(x, torch.full((len(x),), float(t)), torch.zeros(len(x), dtype=torch.int64))
    return (x - alpha * x_0) / sigma


@pytest.mark.parametrize(("kind", "name"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_order_one_is_ddim_of_diffusers(kind, name):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule=name, timestep_spacing="trailing", clip_sample=False, beta_start=1e-4, beta_end=2e-2
    )
    scheduler.set_timesteps(20)
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), mean=-0.4, std=0.5)
    scheduler.alphas_cumprod = denoiser.schedule.alpha_bar  # theirs are float32 products
    x_T, labels = pixels()
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(_epsilon(denoiser, x, t), t, x).prev_sample
    assert torch.allclose(sample(denoiser, x_T, labels, steps=20, order=1, grid="uniform"), x, atol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_order_one_inversion_is_ddim_inverse_of_diffusers(kind, name):
    from diffusers import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler(
        beta_schedule=name, timestep_spacing="trailing", clip_sample=False, beta_start=1e-4, beta_end=2e-2
    )
    scheduler.set_timesteps(20)
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), mean=-0.4, std=0.5)
    scheduler.alphas_cumprod = denoiser.schedule.alpha_bar
    x_0, labels = pixels(mean=-0.4, std=0.5)
    x = x_0
    for t in scheduler.timesteps:
        x = scheduler.step(_epsilon(denoiser, x, t), t, x).prev_sample
    assert torch.allclose(invert(denoiser, x_0, labels, steps=20, order=1, grid="uniform"), x, atol=1e-4)
