import math
from itertools import pairwise

import pytest
import torch
from gaussian_oracle import GaussianDenoiser, MixtureDenoiser, pixels

from cellbridge.diffusion.ancestral import Ddim, Ddpm
from cellbridge.diffusion.inversion import invert
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm
from cellbridge.diffusion.samplers import Flow, network_calls, sample
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConfigError

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


METHODS = {
    "ddim": (lambda steps: Ddim(steps), 1),
    "pndm": (lambda steps: Pndm(steps), 3),
    "pndm, runge-kutta": (lambda steps: Pndm(steps, runge_kutta=True), 3),
    "dpm++": (lambda steps: DpmSolverPlusPlus(steps, grid="quadratic"), 2.4),
}


@pytest.mark.parametrize("name", METHODS)
def test_doubling_the_steps_divides_each_sampler_s_error_by_two_to_its_order(name):
    """Against the exact ODE of a mixture; the last steps to the clean image, which are of lower order, take over below 1e-3."""
    build, order = METHODS[name]
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_T = torch.linspace(-2, 2, 32, dtype=torch.float64).view(2, 1, 4, 4)
    labels = torch.zeros(2, dtype=torch.int64)
    errors = []
    for steps in (20, 40):
        solved = build(steps).sample(denoiser, x_T, labels, seeds=labels)
        errors.append((denoiser.quantile(solved, -1) - denoiser.quantile(x_T, 999)).square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_pndm_is_worse_than_ddim_where_the_schedule_starts_almost_without_signal():
    """On the cosine schedule; its start by Runge-Kutta does not converge there, and is refused."""
    denoiser = MixtureDenoiser(make_schedule("cosine", 1000))
    x_T = torch.linspace(-2, 2, 32, dtype=torch.float64).view(2, 1, 4, 4)
    labels = torch.zeros(2, dtype=torch.int64)
    errors = [
        (denoiser.quantile(sampler.sample(denoiser, x_T, labels, seeds=labels), -1) - denoiser.quantile(x_T, 999)).std()
        for sampler in (Pndm(10), Ddim(10))
    ]
    assert errors[0] > 3 * errors[1]
    with pytest.raises(ConfigError, match="signal at T - 1, of which this schedule has 5e-05"):
        Pndm(10, runge_kutta=True).sample(denoiser, x_T, labels, seeds=labels)


@pytest.mark.parametrize(("steps", "expected"), [(10, 0.1677), (20, 0.0867), (50, 0.0365), (100, 0.0186)])
def test_first_order_inversion_of_gaussian_data_errs_by_the_known_amount(steps, expected):
    """Root mean square of x_T - exact over N(0.3, 0.4^2), which is affine in the image: |at the mean|^2 + |per deviation|^2."""
    denoiser = GaussianDenoiser(make_schedule("linear", 1000), mean=0.3, std=0.4)
    x_0 = torch.tensor([0.3, 0.7], dtype=torch.float64).view(1, 1, 1, 2)
    x_T = invert(denoiser, x_0, torch.zeros(1, dtype=torch.int64), steps=steps, order=1, grid="uniform")
    at_mean, at_deviation = (x_T - denoiser.noise_of(x_0)).flatten().tolist()
    assert math.hypot(at_mean, at_deviation - at_mean) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ddim_without_noise_is_the_flow_s_first_order_bit_for_bit(kind):
    denoiser = MixtureDenoiser(make_schedule(kind, 1000))
    x_T, labels = pixels()
    flow = Flow(11, order=1, grid="uniform").sample(denoiser, x_T, labels, seeds=labels)
    assert torch.equal(Ddim(11).sample(denoiser, x_T, labels, seeds=labels), flow)


@pytest.mark.parametrize("grid", GRIDS)
def test_ddim_of_eta_one_is_ddpm_of_the_small_variance(grid):
    """Their means are one formula written twice, and they add the same noise."""
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_T, labels = pixels()
    images = [
        sampler.sample(denoiser, x_T, labels, seeds=torch.arange(4))
        for sampler in (Ddim(11, 1.0, grid), Ddpm(11, grid=grid))
    ]
    assert torch.allclose(*images, atol=1e-9)


@pytest.mark.parametrize(("kind", "steps"), [("linear", 20), ("cosine", 200)])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_has_the_variance_of_its_linear_recursion(kind, steps, variance):
    """On Gaussian data x_s = g x_t + noise, so var_s = g^2 var_t + v; its limit for many steps is that of the data."""
    schedule, std = make_schedule(kind, 1000), 0.5
    denoiser = GaussianDenoiser(schedule, std=std)
    abar = [(schedule.alpha(t) ** 2).item() for t in torch.linspace(999, -1, steps + 1, dtype=torch.float64).split(1)]
    expected = 1.0
    for a, b in pairwise(abar):
        beta = 1 - a / b
        gain = a**0.5 * std**2 / (a * std**2 + 1 - a)
        mean = b**0.5 * beta / (1 - a) * gain + (a / b) ** 0.5 * (1 - b) / (1 - a)
        added = (beta if variance == "large" else (1 - b) / (1 - a) * beta) if b < 1 else 0.0
        expected = mean**2 * expected + added
    x_T = torch.randn(4, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = Ddpm(steps, variance=variance).sample(denoiser, x_T, torch.zeros(4).long(), seeds=torch.arange(4))
    assert images.var().item() == pytest.approx(expected, rel=4 * (2 / x_T.numel()) ** 0.5)
    if steps == 200:
        assert expected == pytest.approx(std**2, rel=0.05)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_that_no_step_has_room_for_is_refused(eta):
    with pytest.raises(ConfigError, match=r"expected 0 \(deterministic\) to 1"):
        Ddim(10, eta=eta)


@pytest.mark.parametrize(("steps", "runge_kutta"), [(1, False), (3, True)])
def test_too_few_steps_for_pndm_s_start_are_refused(steps, runge_kutta):
    with pytest.raises(ConfigError, match="needs at least"):
        Pndm(steps, runge_kutta=runge_kutta)
