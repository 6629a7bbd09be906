import pytest
import torch

from cellbridge.diffusion.prediction import CONVERSIONS, require_defined, target, to_epsilon, to_x_0
from cellbridge.errors import ConfigError

KINDS = ["v", "epsilon", "x_0"]


def draw(angle: float) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x_0, epsilon = torch.randn(2, 3, 2, 5, 5, dtype=torch.float64, generator=generator).unbind()
    angle_t = torch.tensor(angle, dtype=torch.float64)
    return x_0, epsilon, {"alpha": angle_t.cos(), "sigma": angle_t.sin()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("angle", [0.01, 0.7, 1.56])
def test_the_exact_prediction_gives_back_image_and_noise(kind, angle):
    x_0, epsilon, at = draw(angle)
    x_t = at["alpha"] * x_0 + at["sigma"] * epsilon
    output = target(kind, x_0, epsilon, **at)
    assert torch.allclose(to_x_0(kind, output, x_t, **at), x_0, atol=1e-12)
    assert torch.allclose(to_epsilon(kind, output, x_t, **at), epsilon, atol=1e-12)


def test_losses_of_one_wrong_image_differ_by_the_signal_to_noise_ratio():
    """|d epsilon|^2 = SNR |d x_0|^2 and |d v|^2 = (SNR + 1) |d x_0|^2."""
    x_0, epsilon, at = draw(0.4)
    snr = (at["alpha"] / at["sigma"]) ** 2
    x_t = at["alpha"] * x_0 + at["sigma"] * epsilon
    wrong = x_0 + 0.1
    errors = {}
    for kind in KINDS:
        noise = (x_t - at["alpha"] * wrong) / at["sigma"]
        errors[kind] = (target(kind, wrong, noise, **at) - target(kind, x_0, epsilon, **at)).square().mean()
    assert errors["epsilon"].item() == pytest.approx((snr * errors["x_0"]).item(), rel=1e-9)
    assert errors["v"].item() == pytest.approx(((snr + 1) * errors["x_0"]).item(), rel=1e-9)


def test_v_of_pure_noise_is_minus_the_image():
    x_0, epsilon, _ = draw(0.0)
    at = {"alpha": torch.tensor(0.0, dtype=torch.float64), "sigma": torch.tensor(1.0, dtype=torch.float64)}
    output = target("v", x_0, epsilon, **at)
    assert torch.equal(to_x_0("v", output, epsilon, **at), -output)


def test_v_target_agrees_with_diffusers():
    from diffusers import DDPMScheduler

    from cellbridge.diffusion.schedule import make_schedule

    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    x_0, epsilon, _ = draw(0.0)
    t = torch.tensor([0, 500, 990])
    alpha, sigma = make_schedule("cosine", 1000).coefficients(t.double(), x_0)
    theirs = scheduler.get_velocity(x_0, epsilon, t)
    assert torch.allclose(target("v", x_0, epsilon, alpha=alpha, sigma=sigma), theirs, atol=1e-5)


ENDS = {"clean": (1.0, 0.0), "blank": (0.0, 1.0)}
UNDEFINED = {("clean", "x_0", "epsilon"), ("clean", "x_0", "v"), ("blank", "epsilon", "x_0"), ("blank", "epsilon", "v")}


@pytest.mark.parametrize("end", ["clean", "blank", 0.01, 0.7, 1.56])
@pytest.mark.parametrize("given", KINDS)
@pytest.mark.parametrize("wanted", KINDS)
def test_every_conversion_is_exact_wherever_it_is_defined(end, given, wanted):
    x_0, epsilon, at = draw(end if isinstance(end, float) else 0.0)
    if end in ENDS:
        at = {name: torch.tensor(value, dtype=torch.float64) for name, value in zip(at, ENDS[end], strict=True)}
    x_t = at["alpha"] * x_0 + at["sigma"] * epsilon
    converted = CONVERSIONS[wanted](given, target(given, x_0, epsilon, **at), x_t, **at)
    if (end, given, wanted) in UNDEFINED:
        assert not torch.isfinite(converted).any()
    else:
        assert torch.allclose(converted, target(wanted, x_0, epsilon, **at), atol=1e-12)


def test_the_first_step_from_pure_noise_at_zero_terminal_snr_shows_minus_v():
    from cellbridge.diffusion.denoiser import NetworkDenoiser
    from cellbridge.diffusion.schedule import make_schedule

    output, noise, _ = draw(0.0)
    schedule = make_schedule("linear", 1000, zero_terminal_snr=True)
    denoiser = NetworkDenoiser(lambda *_, **__: (output,), schedule, "v")
    assert torch.equal(denoiser(noise, torch.full((3,), 999.0), torch.zeros(3, dtype=torch.int64)), -output)


def test_epsilon_at_zero_terminal_snr_is_refused_and_diffusers_gives_an_image_that_is_not_finite():
    from diffusers import DDIMScheduler

    from cellbridge.diffusion.schedule import make_schedule

    schedule = make_schedule("linear", 1000, zero_terminal_snr=True)
    with pytest.raises(ConfigError, match=r"Use prediction: v or x_0"):
        require_defined("epsilon", schedule)
    require_defined("v", schedule)
    require_defined("x_0", schedule)
    theirs = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    theirs.set_timesteps(50)
    epsilon, noise, _ = draw(0.0)
    assert not torch.isfinite(theirs.step(epsilon, 999, noise).prev_sample).all()


@pytest.mark.parametrize(
    ("kind", "betas", "t", "published"),
    [
        ("scaled_linear", {"beta_start": 1e-4, "beta_end": 2e-2}, 999, 36.9),
        ("scaled_linear", {}, 999, 14.6),
        ("cosine", {}, 980, 33.8),
        ("cosine", {}, 900, 6.4),
    ],
)
def test_an_error_of_epsilon_grows_in_the_image_by_the_published_factor(kind, betas, t, published):
    from cellbridge.diffusion.schedule import make_schedule

    x_t, error, _ = draw(0.0)
    at = torch.full((3,), float(t), dtype=torch.float64)
    alpha, sigma = make_schedule(kind, 1000, **betas).coefficients(at, x_t)
    images = [to_x_0("epsilon", output, x_t, alpha=alpha, sigma=sigma) for output in (error, 0 * error)]
    assert ((images[0] - images[1]).norm() / error.norm()).item() == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_prediction_grows_in_the_image_by_the_published_factor(kind):
    """|d x_0| / |d output| at T - 1: 157 for epsilon on the linear schedule, 20,291 on the cosine; at most 1 for v and x_0."""
    from cellbridge.diffusion.schedule import make_schedule

    for name, published in (("linear", 157), ("cosine", 20_291)):
        x_t, error, _ = draw(0.0)
        alpha, sigma = make_schedule(name, 1000).coefficients(torch.full((3,), 999.0, dtype=torch.float64), x_t)
        grown = to_x_0(kind, error, x_t, alpha=alpha, sigma=sigma) - to_x_0(
            kind, 0 * error, x_t, alpha=alpha, sigma=sigma
        )
        factor = (grown.norm() / error.norm()).item()
        assert factor == pytest.approx(published, rel=3e-3) if kind == "epsilon" else factor <= 1 + 1e-12
