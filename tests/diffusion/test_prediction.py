import pytest
import torch

from cellbridge.diffusion.prediction import target, to_epsilon, to_x_0

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
