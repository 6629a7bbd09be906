import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import nn

from cellbridge.diffusion.denoiser import NetworkDenoiser
from cellbridge.diffusion.objective import diffusion_loss
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.variance import learned_log_variance, log_variance_range, posterior, split_range
from cellbridge.diffusion.vlb import bound_terms, decoder_bits, evenly_spaced_bins, prior_bits, variational_loss
from cellbridge.errors import ModelError


def images(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, 2, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1) * 0.9


def term(kind: str, t: float, v: float) -> float:
    """The bound's term where the network knows the image and says `v` of its variance."""
    x_0, schedule = images(), make_schedule(kind, 1000)
    times = torch.full((3,), t, dtype=torch.float64)
    alpha, sigma = schedule.coefficients(times, x_0)
    x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=x_0.dtype)
    fraction = torch.full_like(x_0, (v + 1) / 2)
    bins = evenly_spaced_bins(x_0, full_scale=255)
    found = bound_terms(x_0, x_t, times, estimate=x_0, fraction=fraction, schedule=schedule, bins=bins)
    assert found.shape == (3,)
    return found.mean().item()


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("t", [1.0, 10.0, 500.0, 999.0])
def test_the_smallest_variance_with_the_exact_mean_costs_nothing(kind, t):
    assert term(kind, t, -1.0) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("kind", "t", "bits"),
    [
        ("linear", 1.0, 0.1751248046),
        ("linear", 10.0, 0.0073620220),
        ("cosine", 1.0, 0.1605140332),
        ("cosine", 10.0, 0.0061081199),
    ],
)
def test_the_largest_variance_costs_the_published_bits(kind, t, bits):
    assert term(kind, t, 1.0) == pytest.approx(bits, abs=2e-10)


@pytest.mark.parametrize(("kind", "bits"), [("linear", 2.9112945e-5), ("cosine", 1.752e-9)])
def test_the_prior_of_an_image_of_ones_costs_the_published_bits(kind, bits):
    found = prior_bits(make_schedule(kind, 1000), torch.ones(1, 1, 2, 2, dtype=torch.float64)).item()
    assert found == pytest.approx(bits, rel=3e-4)


def test_without_signal_at_the_end_the_prior_costs_nothing():
    assert prior_bits(make_schedule("linear", 1000, zero_terminal_snr=True), images()).abs().max() == 0


def gaussian_bits(deviation: float, *, mean: float = 0.0, value: float = 0.0) -> float:
    x, centre = (torch.full((1, 1, 1, 1), number, dtype=torch.float64) for number in (value, mean))
    bins = (x - 1 / 255, x + 1 / 255)
    return decoder_bits(centre, torch.full_like(x, 2 * math.log(deviation)), bins).item()


@pytest.mark.parametrize(("deviation", "bits"), [(0.01, 1.71285), (0.1, 4.99854), (1.0, 8.32011)])
def test_the_decoder_costs_the_published_bits(deviation, bits):
    assert gaussian_bits(deviation) == pytest.approx(bits, abs=5e-6)


@pytest.mark.parametrize("value", [-0.9, -0.3, 0.02, 0.4])
def test_the_decoder_agrees_with_scipy_far_into_both_tails(value):
    law = stats.norm(loc=0.0, scale=0.02)
    mirrored = -abs(value)
    expected = -(
        law.logcdf(mirrored + 1 / 255)
        + math.log1p(-math.exp(law.logcdf(mirrored - 1 / 255) - law.logcdf(mirrored + 1 / 255)))
    )
    assert gaussian_bits(0.02, value=value) == pytest.approx(expected / math.log(2), rel=1e-9)


@pytest.mark.parametrize("full_scale", [255, 4095, 65535])
def test_the_probabilities_of_all_counts_add_up_to_one_at_every_bit_depth(full_scale):
    centres = torch.linspace(-1, 1, full_scale + 1, dtype=torch.float64).view(1, 1, 1, -1)
    bins = evenly_spaced_bins(centres, full_scale=full_scale)
    mean, log_variance = torch.full_like(centres, 0.97), torch.full_like(centres, 2 * math.log(0.05))
    assert torch.exp2(-decoder_bits(mean, log_variance, bins)).sum().item() == pytest.approx(1.0, abs=1e-9)
    inner = (bins[1] - bins[0])[..., 1:-1]
    assert torch.allclose(inner, torch.full_like(inner, 2 / full_scale), atol=1e-12)
    assert bins[0][..., 0] == -math.inf
    assert bins[1][..., -1] == math.inf


def test_a_bit_deeper_data_cost_a_bit_more_where_the_decoder_is_wide():
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    wide = torch.full_like(x, 2 * math.log(0.3))
    costs = [decoder_bits(x, wide, (x - 2.0**-n, x + 2.0**-n)).item() for n in (8, 12, 16)]
    assert [b - a for a, b in pairwise(costs)] == pytest.approx([4.0, 4.0], abs=1e-4)


def test_the_first_time_costs_the_decoder_and_no_divergence():
    x_0, schedule = images(), make_schedule("linear", 1000)
    log_variance = learned_log_variance(schedule, torch.zeros(3, dtype=torch.float64), torch.ones_like(x_0))
    assert log_variance.exp().max().item() == pytest.approx(1e-4, rel=1e-9)
    bins = evenly_spaced_bins(x_0, full_scale=255)
    expected = decoder_bits(x_0, log_variance, bins).mean().item()
    assert term("linear", 0.0, 1.0) == pytest.approx(expected, rel=1e-9)
    assert math.isfinite(term("linear", -0.7, 1.0))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_posterior_has_the_published_coefficients_at_whole_times(kind):
    schedule = make_schedule(kind, 1000)
    t = torch.arange(1, 1000, dtype=torch.float64)
    found = posterior(schedule, t, t - 1, torch.zeros(1, 1, dtype=torch.float64))
    bar, before, beta = schedule.alpha_bar[1:], schedule.alpha_bar[:-1], schedule.betas[1:]
    assert torch.allclose(found.image.flatten(), before.sqrt() * beta / (1 - bar), rtol=1e-9)
    assert torch.allclose(found.noisy.flatten(), (1 - beta).sqrt() * (1 - before) / (1 - bar), rtol=1e-9)
    assert torch.allclose(found.log_variance.flatten().exp(), (1 - before) / (1 - bar) * beta, rtol=1e-9)
    assert torch.allclose(found.log_beta.flatten().exp(), beta, rtol=1e-9)


def test_the_weight_of_a_noise_error_explodes_at_the_end_of_the_cosine_schedule():
    """beta^2 / (2 beta (1 - beta) (1 - alpha_bar)) of an error in epsilon is 499.5 at T - 1, where the last beta is capped."""
    schedule = make_schedule("cosine", 1000)
    beta, bar = schedule.betas[-1].item(), schedule.alpha_bar[-1].item()
    t = torch.tensor([999.0], dtype=torch.float64)
    q = posterior(schedule, t, t - 1, torch.zeros(1, 1, dtype=torch.float64))
    per_image_error = (q.image**2 / (2 * beta)).item()
    assert per_image_error * (1 - bar) / bar == pytest.approx(499.5, rel=1e-4)


def test_learned_log_variances_agree_with_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="linear", variance_type="learned_range")
    schedule, v = make_schedule("linear", 1000), images(1)
    for t in (1, 10, 500, 999):
        ours = learned_log_variance(schedule, torch.tensor([float(t)], dtype=torch.float64), (v + 1) / 2)
        assert torch.allclose(theirs._get_variance(t, predicted_variance=v).double(), ours, atol=2e-3)


class Affine(nn.Module):
    """A network of twice the channels, each a scaled copy of its input."""

    def __init__(self, channels: int = 2):
        super().__init__()
        self.scale = nn.Parameter(torch.full((2 * channels, 1, 1), 0.3, dtype=torch.float64))

    def forward(self, x_t, t, *, class_labels, return_dict):
        return (self.scale * torch.cat([x_t, x_t], dim=1),)


def loss_of(network: nn.Module, objective: str, *, prediction: str = "v", **options):
    x_0 = images(8)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=x_0.dtype)
    t = torch.tensor([-0.4, 0.0, 0.3, 1.0, 30.5, 400.0, 800.0, 999.0], dtype=torch.float64)
    return variational_loss(
        network,
        x_0,
        torch.zeros(8, dtype=torch.int64),
        objective=objective,
        schedule=make_schedule("cosine", 1000),
        prediction=prediction,
        t=t,
        epsilon=noise,
        bins=evenly_spaced_bins(x_0, full_scale=255),
        **options,
    )


def test_the_bound_in_the_hybrid_does_not_reach_the_mean():
    network = Affine()
    found = loss_of(network, "hybrid", weights=torch.zeros(8, dtype=torch.float64), vlb_weight=1.0)
    found.loss.backward()
    assert network.scale.grad is not None
    assert network.scale.grad[:2].abs().max() == 0
    assert network.scale.grad[2:].abs().min() > 0


def test_the_hybrid_is_l_simple_and_a_thousandth_of_the_bound():
    network = Affine()
    hybrid, bound = loss_of(network, "hybrid"), loss_of(network, "vlb")
    simple = hybrid.per_image.mean()
    assert hybrid.loss.item() == pytest.approx((simple + 1e-3 * bound.loss).item(), rel=1e-12)
    assert hybrid.monitors["vlb"][0].item() == pytest.approx(bound.per_image.sum().item(), rel=1e-12)


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x_0"])
def test_the_bound_trains_mean_and_variance_without_a_number_that_is_not_finite(prediction):
    network = Affine()
    loss_of(network, "vlb", prediction=prediction).loss.backward()
    assert network.scale.grad is not None
    assert torch.isfinite(network.scale.grad).all()
    assert network.scale.grad.abs().min() > 0


def test_l_simple_of_the_hybrid_is_that_of_the_plain_objective():
    class Half(nn.Module):
        def forward(self, x_t, t, *, class_labels, return_dict):
            return (0.3 * x_t,)

    x_0 = images(8)
    arguments = {"schedule": make_schedule("cosine", 1000), "prediction": "v"}
    t = torch.linspace(-0.5, 999, 8, dtype=torch.float64)
    plain = diffusion_loss(Half(), x_0, torch.zeros(8, dtype=torch.int64), t=t, epsilon=x_0.flip(0), **arguments)
    hybrid = variational_loss(
        Affine(),
        x_0,
        torch.zeros(8, dtype=torch.int64),
        objective="hybrid",
        t=t,
        epsilon=x_0.flip(0),
        bins=evenly_spaced_bins(x_0, full_scale=255),
        **arguments,
    )
    assert torch.allclose(plain.per_image, hybrid.per_image, rtol=1e-12)


def test_the_bound_of_gaussian_data_with_the_exact_denoiser_lies_just_above_its_entropy():
    """A value of N(0, 0.5^2) in bins of 0.004 has 9.01 bits; steps of the best mean and variance are Gaussian, so the bound is almost tight."""
    schedule, deviation, half = make_schedule("linear", 1000), 0.5, 0.002
    generator = torch.Generator().manual_seed(0)
    count = 500_000
    x_0 = deviation * torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64)
    t = torch.arange(count, dtype=torch.float64) % 1000
    alpha, sigma = schedule.coefficients(t, x_0)
    x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    spread = deviation**2 / (alpha**2 * deviation**2 + sigma**2)
    estimate = alpha * spread * x_t
    q = posterior(schedule, t, t - 1, x_0)
    best = torch.where(
        t.view(-1, 1, 1, 1) > 0, q.log_variance.exp() + q.image**2 * spread * sigma**2, spread * sigma**2
    )
    lower, upper = log_variance_range(schedule, t, x_0)
    fraction = (best.log() - lower) / (upper - lower)
    cell = (x_0 / (2 * half)).round() * (2 * half)
    bins = (cell - half, cell + half)
    terms = bound_terms(x_0, x_t, t, estimate=estimate, fraction=fraction, schedule=schedule, bins=bins)
    bound = (1000 * terms).mean().item() + prior_bits(schedule, x_0).mean().item()
    entropy = (0.5 * math.log(2 * math.pi * math.e * deviation**2) - math.log(2 * half)) / math.log(2)
    assert bound == pytest.approx(entropy, abs=0.1)


def test_a_network_of_learned_range_is_split_and_any_other_is_refused():
    x_t, t, labels = images(), torch.full((3,), 400.0, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    denoiser = NetworkDenoiser(Affine(), make_schedule("cosine", 1000), "x_0", learned_range=True)
    x_0, fraction = denoiser.with_fraction(x_t, t, labels)
    assert torch.allclose(x_0, 0.3 * x_t)
    assert torch.allclose(fraction, (0.3 * x_t + 1) / 2)
    assert torch.equal(denoiser(x_t, t, labels), x_0)
    with pytest.raises(ModelError, match=r"gives 2 channels for images of 2; a learned range needs 4"):
        split_range(x_t, channels=2)


def test_the_ddim_scheduler_of_diffusers_does_not_split_a_learned_range():
    from diffusers import DDIMScheduler, DDPMScheduler

    output, x_t = torch.zeros(1, 4, 4, 4), torch.zeros(1, 2, 4, 4)
    ddpm = DDPMScheduler(variance_type="learned_range")
    assert ddpm.step(output, 500, x_t).prev_sample.shape == x_t.shape
    ddim = DDIMScheduler()
    ddim.set_timesteps(50)
    with pytest.raises(RuntimeError, match="must match the size"):
        ddim.step(output, 500, x_t)
