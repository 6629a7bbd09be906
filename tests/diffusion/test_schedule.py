import math

import pytest
import torch

from cellbridge.diffusion.schedule import CLEAN, Schedule, make_schedule
from cellbridge.errors import ConfigError


def at(schedule: Schedule, *times: float) -> torch.Tensor:
    return torch.tensor(times, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "steps", "index", "expected"),
    [
        ("linear", 1000, 0, 0.9999),
        ("linear", 1000, 499, 0.0785872429),
        ("linear", 1000, 999, 4.03582977e-5),
        ("cosine", 1000, 0, 1 - 4.128422482e-5),
        ("cosine", 1000, 499, 0.4938435904),
        ("cosine", 1000, 998, 2.42876691e-6),
        ("cosine", 1000, 999, 2.42876691e-9),
        ("cosine", 4000, 0, 1 - 9.86581881e-6),
        ("cosine", 4000, 1999, 0.4938435904),
    ],
)
def test_alpha_bar_has_the_published_values(kind, steps, index, expected):
    schedule = make_schedule(kind, steps)
    assert schedule.alpha_bar[index].item() == pytest.approx(expected, rel=5e-9)
    assert schedule.alpha(at(schedule, index)).item() ** 2 == pytest.approx(expected, rel=5e-9)


@pytest.mark.parametrize("steps", [100, 4000])
def test_betas_of_another_number_of_steps_are_scaled_by_a_thousand_over_it(steps):
    betas = make_schedule("linear", steps).betas
    assert betas[[0, -1]].tolist() == pytest.approx([0.1 / steps, 20 / steps], rel=1e-9)
    assert betas.diff().std() < 1e-12


def test_the_cosine_schedule_caps_exactly_one_beta():
    alpha_bar = make_schedule("cosine", 1000).alpha_bar
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    assert betas[-2].item() == pytest.approx(0.7499993929, rel=1e-9)
    assert (betas > 0.999 - 1e-12).sum() == 1


def test_the_linear_schedule_ends_at_the_published_signal_to_noise_ratio():
    schedule = make_schedule("linear", 1000)
    assert schedule.log_snr(at(schedule, 999.0)).exp().item() == pytest.approx(4.03599265e-5, rel=5e-9)


@pytest.mark.parametrize(("kind", "name"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_schedules_agree_with_diffusers(kind, name):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule=name, beta_start=1e-4, beta_end=2e-2).alphas_cumprod.double()
    assert torch.allclose(
        make_schedule(kind, 1000).alpha_bar, theirs, rtol=2e-4, atol=1e-7
    )  # theirs are float32 products


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_signal_and_noise_keep_unit_variance_and_fall_and_rise_at_every_fractional_time(kind):
    schedule = make_schedule(kind, 1000)
    t = torch.linspace(-1, 999, 4001, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-14)
    assert (alpha.diff() < 0).all()
    assert (schedule.angle(t).diff() > 0).all()


def test_the_clean_image_has_no_noise_and_log_snr_is_infinite():
    schedule = make_schedule("cosine", 1000)
    assert schedule.sigma(at(schedule, CLEAN)).item() == 0.0
    assert schedule.alpha(at(schedule, CLEAN)).item() == 1.0
    assert schedule.log_snr(at(schedule, CLEAN)).item() == math.inf


def test_time_of_angle_is_the_inverse_of_angle():
    schedule = make_schedule("linear", 1000)
    t = torch.tensor([-1.0, -0.75, 0.0, 0.3, 17.9, 500.5, 998.25, 999.0], dtype=torch.float64)
    assert torch.allclose(schedule.time_of_angle(schedule.angle(t)), t, atol=1e-7)


def test_a_schedule_may_end_without_any_signal():
    schedule = Schedule(torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64))
    assert schedule.alpha(at(schedule, 2.0)).item() == pytest.approx(0.0, abs=1e-15)
    assert torch.isfinite(schedule.angle(at(schedule, 1.5))).all()


def test_a_linear_schedule_of_too_few_steps_is_refused():
    with pytest.raises(ConfigError, match="more than 20 steps"):
        make_schedule("linear", 20)


def test_scaled_linear_ends_at_the_published_signal():
    latent = make_schedule("scaled_linear", 1000)
    assert latent.alpha_bar[-1].sqrt().item() == pytest.approx(0.0682649, rel=1e-6)
    assert latent.log_snr(at(latent, 999.0)).exp().item() == pytest.approx(0.00468192, rel=1e-6)
    wide = make_schedule("scaled_linear", 1000, beta_start=1e-4, beta_end=2e-2)
    assert wide.alpha_bar[-1].sqrt().item() == pytest.approx(0.0270816, rel=2e-6)


KINDS = ["linear", "scaled_linear", "cosine"]


@pytest.mark.parametrize(
    ("kind", "middle"), [("linear", 0.0760287505), ("scaled_linear", 0.2423591666), ("cosine", 0.4938230008)]
)
def test_zero_terminal_snr_keeps_the_first_step_and_takes_the_last_of_the_image(kind, middle):
    plain, blank = make_schedule(kind, 1000), make_schedule(kind, 1000, zero_terminal_snr=True)
    assert blank.alpha_bar[0].item() == pytest.approx(plain.alpha_bar[0].item(), rel=1e-14)
    assert blank.alpha_bar[499].item() == pytest.approx(middle, rel=5e-9)
    assert blank.alpha_bar[-1].item() == 0.0
    assert blank.betas[-1].item() == 1.0
    assert blank.alpha(at(blank, 999.0)).item() == 0.0
    assert blank.sigma(at(blank, 999.0)).item() == 1.0
    assert (blank.zero_terminal_snr, plain.zero_terminal_snr) == (True, False)


@pytest.mark.parametrize("kind", KINDS)
def test_rescaled_schedules_agree_with_diffusers(kind):
    from diffusers import DDIMScheduler

    betas = {"beta_start": 1e-4, "beta_end": 2e-2}
    name = "squaredcos_cap_v2" if kind == "cosine" else kind
    theirs = DDIMScheduler(beta_schedule=name, rescale_betas_zero_snr=True, **betas).alphas_cumprod.double()
    ours = make_schedule(kind, 1000, zero_terminal_snr=True, **({} if kind == "cosine" else betas)).alpha_bar
    assert torch.allclose(ours, theirs, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_betas_multiply_up_to_the_signal(kind):
    schedule = make_schedule(kind, 1000)
    assert torch.allclose(torch.cumprod(1 - schedule.betas, 0), schedule.alpha_bar, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "steps", "betas", "message"),
    [
        ("scaled_linear", 12, {}, "more than 12 steps"),
        ("linear", 1000, {"beta_start": 0.1, "beta_end": 0.02}, "beta_start <= beta_end"),
        ("linear", 1000, {"beta_end": 1.0}, "beta_end < 1"),
        ("cosine", 1000, {"beta_end": 0.02}, "the cosine schedule has none"),
    ],
)
def test_schedules_that_cannot_be_are_refused(kind, steps, betas, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(kind, steps, **betas)


def test_a_configuration_of_epsilon_at_zero_terminal_snr_is_refused_before_anything_is_read():
    from cellbridge.config import ScheduleConfig
    from cellbridge.settings import validate

    with pytest.raises(ConfigError, match="use prediction v or x_0"):
        validate(ScheduleConfig, {"prediction": "epsilon", "zero_terminal_snr": True}, source="pretrain.yaml")
