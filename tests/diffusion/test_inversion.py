"""Images into noise: closed forms of Gaussian data, dark backgrounds above all, and what is refused."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian_oracle import GaussianDenoiser, MixtureDenoiser, pixels

from cellbridge.diffusion.ancestral import Ddim, Ddpm
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.inversion import Inversion, invert
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm
from cellbridge.diffusion.round_trip import round_trip
from cellbridge.diffusion.samplers import Flow, sample
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.thresholding import Clipping, DynamicThresholding
from cellbridge.errors import ConfigError
from cellbridge.runtime import noise_per_image

KINDS = ["linear", "cosine"]
GRIDS = ["uniform", "quadratic", "log_snr"]
DARK = [0.01, 0.02, 0.05, 0.1, 0.2, 0.4]
DDIM_50 = Inversion(50, order=1, grid="uniform")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_inversion_converges_to_the_closed_form_noise_of_gaussian_data(kind, grid):
    """x_T = sqrt(a) mu + sqrt(a s^2 + 1 - a) (x_0 - mu) / s."""
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), mean=-0.4, std=0.5)
    x_0, labels = pixels(mean=-0.4, std=0.5)
    x_T = invert(denoiser, x_0, labels, steps=200, order=2, grid=grid)
    assert torch.allclose(x_T, denoiser.noise_of(x_0), atol=1e-3)


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


@pytest.mark.parametrize(("steps", "expected"), [(10, 0.1677), (20, 0.0867), (50, 0.0365), (100, 0.0186)])
def test_first_order_inversion_of_gaussian_data_errs_by_the_known_amount(steps, expected):
    """Root mean square of x_T - exact over N(0.3, 0.4^2), which is affine in the image: |at the mean|^2 + |per deviation|^2."""
    denoiser = GaussianDenoiser(make_schedule("linear", 1000), mean=0.3, std=0.4)
    x_0 = torch.tensor([0.3, 0.7], dtype=torch.float64).view(1, 1, 1, 2)
    x_T = invert(denoiser, x_0, torch.zeros(1, dtype=torch.int64), steps=steps, order=1, grid="uniform")
    at_mean, at_deviation = (x_T - denoiser.noise_of(x_0)).flatten().tolist()
    assert math.hypot(at_mean, at_deviation - at_mean) == pytest.approx(expected, abs=6e-5)


def spread(inversion: Inversion, std: float, kind: str = "linear") -> float:
    """Return the standard deviation of x_T for N(0, std^2) pixels: the solvers are linear there, so one pixel tells."""
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), std=std)
    one = torch.full((1, 1, 1, 1), std, dtype=torch.float64)
    return inversion.invert(denoiser, one, torch.zeros(1, dtype=torch.int64), seeds=torch.zeros(1).long()).item()


def product_of_gains(std: float, *, exact: bool) -> float:
    """Return what 50 DDIM steps make of one deviation: each step's own gain, or the inverse of the sampling step's gain."""
    alpha_bar = make_schedule("linear", 1000).alpha_bar
    levels = [1.0, *(alpha_bar[t].item() for t in range(19, 1000, 20))]
    total = std
    for a, b in pairwise(levels):
        noise = (1 - b) ** 0.5 / (b * std**2 + 1 - b)
        there = (b / a) ** 0.5 * (1 - (1 - a) ** 0.5 * noise) + (1 - b) ** 0.5 * noise
        back = (a / b) ** 0.5 * (1 - (1 - b) ** 0.5 * noise) + (1 - a) ** 0.5 * noise
        total *= 1 / back if exact else there
    return total


@pytest.mark.parametrize(
    ("std", "expected", "thousand_steps"),
    [
        (0.0023, 0.034, 0.32),
        (0.01, 0.148, 0.88),
        (0.05, 0.59, 0.99),
        (0.1, 0.81, 0.99),
        (0.2, 0.93, 1.0),
        (0.4, 0.99, 1.0),
        (0.8, 1.03, 1.0),
    ],
)
def test_fifty_ddim_steps_cannot_turn_a_dark_background_into_noise(std, expected, thousand_steps):
    """With the exact score: the standard deviation of x_T is a product of one gain a step."""
    found = spread(DDIM_50, std)
    assert found == pytest.approx(expected, abs=0.006)
    assert found == pytest.approx(product_of_gains(std, exact=False), rel=1e-6)
    if std in (0.0023, 0.01, 0.05):
        assert spread(Inversion(1000, order=1, grid="uniform"), std) == pytest.approx(thousand_steps, abs=0.006)


@pytest.mark.parametrize(("std", "iterations"), [(0.1, 16), (0.2, 9)])
def test_fixed_point_iterations_converge_to_the_exact_inverse_of_ddim(std, iterations):
    found = spread(Inversion(50, order=1, grid="uniform", fixed_point=iterations), std)
    assert found == pytest.approx(product_of_gains(std, exact=True), rel=1e-4)


def test_the_exact_inverse_of_coarse_ddim_is_too_loud():
    assert product_of_gains(0.05, exact=True) == pytest.approx(1.89, abs=0.006)
    assert product_of_gains(0.01, exact=True) == pytest.approx(7.7, abs=0.06)


def test_the_round_trip_of_exactly_inverted_ddim_is_the_image():
    """Each iteration divides the error, as long as signal is left at T - 1; the sampler must take the same steps."""
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_0, labels = pixels(mean=-0.3, std=0.3)
    errors = [
        round_trip(
            denoiser, x_0, labels, inversion=Inversion(50, 1, "uniform", k), sampler=Ddim(50), seeds=torch.arange(4)
        ).rmse
        for k in (0, 2, 8)
    ]
    assert all(later < 0.5 * earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("std", [0.0, 0.0023, *DARK])
def test_after_the_noise_of_the_first_step_every_background_inverts_to_unit_variance_in_48_calls(kind, std):
    """The data are then N(0, alpha^2 s^2 + sigma^2) at t = 0, even where s is 0."""
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), std=std)
    x_0 = std * torch.randn(1, 1, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inversion = Inversion(start_noise=True)
    x_T = inversion.invert(denoiser, x_0, torch.zeros(1).long(), seeds=torch.arange(1))
    assert x_T.std().item() == pytest.approx(1.0, abs=0.015 + 4 / (2 * x_0.numel()) ** 0.5)
    assert denoiser.calls == inversion.network_calls == 48


class First(Denoiser):
    """Keeps the first x_t that it sees."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.seen = schedule, None

    def forward(self, x_t, t, labels):
        self.seen = (x_t, t) if self.seen is None else self.seen
        return x_t


def test_it_starts_from_a_draw_of_x_t_at_the_first_step():
    """Few steps make the first one loud: its share of the image is not 1 to any tolerance."""
    denoiser, (x_0, labels), seeds = First(make_schedule("linear", 25)), pixels(), torch.arange(4)
    Inversion(steps=4, start_noise=True).invert(denoiser, x_0, labels, seeds=seeds)
    noise, signal = (
        noise_per_image(seeds, tuple(x_0.shape[1:]), purpose="noise of t = 0"),
        denoiser.schedule.alpha_bar[0],
    )
    assert torch.allclose(denoiser.seen[0], signal.sqrt() * x_0 + (1 - signal).sqrt() * noise, atol=1e-6)
    assert (denoiser.seen[1] == 0).all()


def test_the_noise_of_the_first_step_is_each_image_s_own():
    denoiser = GaussianDenoiser(make_schedule("linear", 1000))
    x_0, labels = pixels()
    inversion, seeds = Inversion(steps=4, start_noise=True), torch.arange(4)
    together = inversion.invert(denoiser, x_0, labels, seeds=seeds)
    assert torch.equal(inversion.invert(denoiser, x_0[2:], labels[2:], seeds=seeds[2:]), together[2:])
    assert not torch.equal(inversion.invert(denoiser, x_0, labels, seeds=seeds + 9), together)


@pytest.mark.parametrize(
    "inversion",
    [
        Inversion(),
        Inversion(6, order=1),
        Inversion(6, order=1, fixed_point=2),
        Inversion(6, order=1, fixed_point=1, start_noise=True),
        Inversion(6, grid="log_snr", start_noise=True),
        Inversion(6, grid="uniform"),
    ],
)
def test_calls_of_an_inversion_are_as_counted(inversion):
    denoiser = GaussianDenoiser(make_schedule("linear", 1000))
    x_0, labels = pixels()
    inversion.invert(denoiser, x_0, labels, seeds=torch.arange(4))
    assert denoiser.calls == inversion.network_calls


def test_a_round_trip_reports_background_and_cells_apart():
    """Two kinds of pixels with the exact score of each: the quiet half is background."""
    stds = torch.tensor([0.01, 0.5], dtype=torch.float64).view(1, 1, 2, 1).expand(1, 1, 2, 4096)
    denoiser = GaussianDenoiser(make_schedule("linear", 1000), std=stds)
    x_0 = stds * torch.randn(3, 2, 2, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([False, True]).view(1, 2, 1).expand(3, 2, 4096)
    result = round_trip(
        denoiser, x_0, torch.zeros(3).long(), inversion=DDIM_50, sampler=Ddim(50), seeds=torch.arange(3), masks=masks
    )
    assert result.std_background == pytest.approx(product_of_gains(0.01, exact=False), rel=0.02)
    assert result.std_cells == pytest.approx(product_of_gains(0.5, exact=False), rel=0.02)
    assert result.std == pytest.approx(math.sqrt((result.std_background**2 + result.std_cells**2) / 2), rel=1e-3)
    assert abs(result.mean) < 0.02
    assert result.calls == 50
    assert result.rmse == pytest.approx((result.decoded - x_0).square().mean().sqrt().item())


def test_without_masks_background_and_cells_are_not_guessed():
    denoiser = GaussianDenoiser(make_schedule("linear", 1000))
    x_0, labels = pixels()
    result = round_trip(denoiser, x_0, labels, inversion=Inversion(4), sampler=Flow(4), seeds=torch.arange(4))
    assert math.isnan(result.std_background)
    assert math.isnan(result.std_cells)


@pytest.mark.parametrize("sampler", [Pndm(50), DpmSolverPlusPlus(25, "quadratic"), Flow()])
def test_images_return_through_any_sampler_of_the_ode(sampler):
    denoiser = GaussianDenoiser(make_schedule("linear", 1000), mean=-0.5, std=0.3)
    x_0, labels = pixels(mean=-0.5, std=0.3)
    result = round_trip(denoiser, x_0, labels, inversion=Inversion(), sampler=sampler, seeds=torch.arange(4))
    assert result.rmse < 0.03 * 0.3


@pytest.mark.parametrize("sampler", [Ddpm(5), Ddim(5, eta=0.1)])
def test_samplers_that_add_noise_have_no_inversion(sampler):
    x_0, labels = pixels()
    denoiser = GaussianDenoiser(make_schedule("linear", 1000))
    with pytest.raises(ConfigError, match="not defined for a sampler that adds noise"):
        round_trip(denoiser, x_0, labels, inversion=Inversion(5), sampler=sampler, seeds=torch.arange(4))
    assert denoiser.calls == 0


@pytest.mark.parametrize("confine", [Clipping, DynamicThresholding])
def test_a_denoiser_that_confines_x_0_is_not_inverted(confine):
    x_0, labels = pixels()
    denoiser = confine(GaussianDenoiser(make_schedule("linear", 1000)))
    with pytest.raises(ConfigError, match="in sampling only"):
        invert(denoiser, x_0, labels, steps=5)


def test_iterations_of_the_second_order_and_a_start_that_the_grid_lacks_are_refused():
    with pytest.raises(ConfigError, match="Set order: 1"):
        Inversion(fixed_point=1)
    with pytest.raises(ConfigError, match="starts at t = 0"):
        Inversion(grid="uniform", start_noise=True)
