"""Claims about what is watched in a denoiser's training: ranges have closed forms for Gaussian data."""

import math

import pytest
import torch
from gaussian_oracle import GaussianDenoiser
from torch import nn

from cellbridge.diffusion.monitors import (
    BANDS,
    band_monitors,
    loss_figures,
    range_figures,
    range_monitors,
    range_warning,
)
from cellbridge.diffusion.objective import diffusion_loss
from cellbridge.diffusion.prediction import target
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.timesteps import training_draw
from cellbridge.training.monitors import Window

MEAN, STD = 0.2, 0.6
SCHEDULE = make_schedule("cosine", 1000)


class Exact(nn.Module):
    """A network that predicts v, epsilon or x_0 of the exact posterior mean of N(MEAN, STD^2) pixels."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction
        self.denoiser = GaussianDenoiser(SCHEDULE, mean=MEAN, std=STD)

    def forward(self, x_t, t, *, class_labels, return_dict):
        alpha, sigma = SCHEDULE.coefficients(t, x_t)
        x_0 = self.denoiser(x_t, t, class_labels)
        return (target(self.prediction, x_0, (x_t - alpha * x_0) / sigma, alpha=alpha, sigma=sigma),)


def exact_loss(prediction, count=768):
    generator = torch.Generator().manual_seed(0)
    images = MEAN + STD * torch.randn(count, 1, 64, 64, generator=generator, dtype=torch.float64)
    labels = torch.zeros(count, dtype=torch.int64)
    draw = training_draw(images, labels, steps=1000, generator=generator)
    t = draw.t.double()
    found = diffusion_loss(
        Exact(prediction), images, labels, schedule=SCHEDULE, prediction=prediction, t=t, epsilon=draw.epsilon
    )
    return found, t


def ratios(monitors, name):
    return [(total / count).item() for total, count in (monitors[f"{name}/t{i}"] for i in range(BANDS))]


def means(figure, t):
    return ratios(band_monitors({"figure": figure}, t, steps=1000), "figure")


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x_0"])
def test_the_noise_and_image_of_the_posterior_mean_spread_as_in_closed_form(prediction):
    found, t = exact_loss(prediction)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    noise_std = sigma / (alpha**2 * STD**2 + sigma**2).sqrt()
    image_std = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2).sqrt()
    outside = torch.special.ndtr((-1 - MEAN) / image_std) + torch.special.ndtr((MEAN - 1) / image_std)
    assert ratios(found.monitors, "epsilon/std") == pytest.approx(means(noise_std, t), rel=5e-3)
    assert ratios(found.monitors, "x_0/outside") == pytest.approx(means(outside, t), abs=3e-3)


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x_0"])
def test_extrema_are_those_of_the_image_by_channel(prediction):
    generator = torch.Generator().manual_seed(1)
    x_0, epsilon = torch.randn(2, 6, 3, 4, 4, generator=generator, dtype=torch.float64)
    alpha, sigma = SCHEDULE.coefficients(torch.linspace(-0.5, 900, 6, dtype=torch.float64), x_0)
    output = target(prediction, x_0, epsilon, alpha=alpha, sigma=sigma)
    found = range_figures(prediction, output, alpha * x_0 + sigma * epsilon, alpha=alpha, sigma=sigma)
    assert torch.allclose(found.minima, x_0.amin((2, 3)))
    assert torch.allclose(found.maxima, x_0.amax((2, 3)))
    assert torch.allclose(found.outside, (x_0.abs() > 1).double().mean((2, 3)))
    assert torch.allclose(found.epsilon_std, epsilon.square().mean((2, 3)).sqrt())


def test_range_is_watched_by_decile_by_channel_and_by_both():
    generator = torch.Generator().manual_seed(2)
    x_0, epsilon = torch.randn(2, 40, 3, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.linspace(-0.5, 880, 40, dtype=torch.float64)  # nothing in the last decile
    alpha, sigma = SCHEDULE.coefficients(t, x_0)
    output = target("v", x_0, epsilon, alpha=alpha, sigma=sigma)
    ranges = range_figures("v", output, alpha * x_0 + sigma * epsilon, alpha=alpha, sigma=sigma)
    watched = range_monitors(ranges, t, steps=SCHEDULE.steps)
    window = Window(1, torch.device("cpu"))
    for _ in range(2):
        window.add_monitors(watched.means, minima=watched.minima, maxima=watched.maxima)
    window.close_step(torch.tensor(0.0), torch.tensor(0.0))
    values = window.values(lambda same: same, lambda same: same)
    for band in range(BANDS):
        rows = torch.ceil((t + 1) / 100).sub(1).clamp(0, BANDS - 1) == band
        for channel in range(3):
            own, noise = x_0[rows, channel], epsilon[rows, channel]
            names = [f"{name}/t{band}/c{channel}" for name in ("x_0/outside", "epsilon/std", "x_0/min", "x_0/max")]
            if not rows.any():
                assert not set(names) & set(values)
                continue
            wanted = (own.abs() > 1).double().mean(), noise.square().mean((1, 2)).sqrt().mean(), own.min(), own.max()
            assert [values[name] for name in names] == pytest.approx([float(value) for value in wanted], rel=1e-5)
    assert [values[f"x_0/max/c{i}"] for i in range(3)] == pytest.approx(x_0.amax((0, 2, 3)).tolist())
    assert values["x_0/outside/t4"] == pytest.approx(sum(values[f"x_0/outside/t4/c{i}"] for i in range(3)) / 3)


def test_a_small_error_of_epsilon_at_the_noisiest_step_is_seen_as_a_blow_up():
    schedule = make_schedule("linear", 1000)
    t = torch.tensor([999.0], dtype=torch.float64)
    x_0 = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    epsilon = torch.ones_like(x_0)
    alpha, sigma = schedule.coefficients(t, x_0)
    found = range_figures("epsilon", epsilon - 0.2, alpha * x_0 + sigma * epsilon, alpha=alpha, sigma=sigma)
    assert found.maxima.item() == pytest.approx(0.2 * 157, rel=5e-3)
    assert found.outside.item() == 1.0


def test_a_band_holds_its_own_tenth_of_the_times():
    t = torch.tensor([-0.99, 99.0, 99.5, 500.0, 999.0])
    monitors = band_monitors(loss_figures(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])), t, steps=1000)
    assert [monitors[f"loss/t{i}"][0].item() for i in (0, 1, 5, 9)] == [3.0, 3.0, 4.0, 5.0]
    assert monitors["log_loss/t9"][0].item() == pytest.approx(math.log(5))


def test_one_image_in_twenty_out_of_range_at_small_t_is_one_too_many():
    assert range_warning({"x_0/outside/t0": 0.05, "x_0/outside/t1": 0.05, "x_0/outside/t8": 1.0}) is None
    text = range_warning({"x_0/outside/t0": 0.02, "x_0/outside/t1": 0.1})
    assert "6.0 %" in text
    assert "training.learning_rate" in text


def shares_of_an_error(prediction, kind, *, size):
    """Return `x_0/outside` by band for a network that errs by N(0, size^2) in what it predicts, of images of N(0, 0.3^2) pixels."""
    generator = torch.Generator().manual_seed(0)
    schedule, count = make_schedule(kind, 1000), 400
    t = torch.linspace(-0.5, 999, count, dtype=torch.float64)
    x_0, epsilon, error = torch.randn(3, count, 1, 8, 8, generator=generator, dtype=torch.float64).unbind()
    alpha, sigma = schedule.coefficients(t, x_0)
    x_0, x_t = 0.3 * x_0, alpha * 0.3 * x_0 + sigma * epsilon
    output = target(prediction, x_0, epsilon, alpha=alpha, sigma=sigma) + size * error
    outside = range_figures(prediction, output, x_t, alpha=alpha, sigma=sigma).outside.mean(1)
    names = band_monitors({"x_0/outside": outside}, t, steps=1000)
    return {name: (total / number).item() for name, (total, number) in names.items()}


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_growth_of_an_error_of_epsilon_at_the_noisy_end_is_told_and_the_same_error_of_v_is_not(kind):
    """sigma / alpha is 61 to 157 in the last tenth of the linear schedule and 6 to 20,291 in that of the cosine."""
    text = range_warning(shares_of_an_error("epsilon", kind, size=0.1))
    assert "at t > 0.9 T" in text
    assert "schedule.prediction=v, or sample this network with solver.threshold=clip" in text
    assert range_warning(shares_of_an_error("v", kind, size=0.1)) is None
    assert range_warning(shares_of_an_error("x_0", kind, size=0.1)) is None


def test_what_networks_were_measured_to_do_at_the_noisy_end_is_told_for_epsilon_and_not_for_v():
    """The shares in t9 of the logged trainings: v after 20 steps at most 0.017, epsilon after 2000 at least 0.487."""
    assert range_warning({"x_0/outside/t0": 0.02, "x_0/outside/t9": 0.017}) is None
    assert range_warning({"x_0/outside/t0": 0.001, "x_0/outside/t9": 0.487}) is not None
