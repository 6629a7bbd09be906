from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cellbridge.diffusion.fitting import Noised, noised_batches, squared_error, variational
from cellbridge.diffusion.monitors import BANDS
from cellbridge.diffusion.objective import diffusion_loss
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.timesteps import training_draw
from cellbridge.diffusion.weighting import min_snr_weights
from cellbridge.errors import ConfigError


class Constant(nn.Module):
    """A network that predicts one number."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x_t, t, *, class_labels, return_dict):
        return (self.value.expand_as(x_t),)


def loss_of(prediction: str, weights=None, count: int = 4096):
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(count, 1, 4, 4, generator=generator)
    labels = torch.zeros(count, dtype=torch.int64)
    draw = training_draw(images, labels, steps=1000, generator=generator)
    return diffusion_loss(
        Constant(),
        images,
        draw.labels,
        schedule=make_schedule("cosine", 1000),
        prediction=prediction,
        t=draw.t,
        epsilon=draw.epsilon,
        weights=weights,
    )


def test_predicting_zero_costs_the_variance_of_the_target():
    assert loss_of("epsilon").loss.item() == pytest.approx(1.0, rel=0.02)
    assert loss_of("x_0").loss.item() == pytest.approx(0.09, rel=0.02)
    assert loss_of("v").loss.item() == pytest.approx((1 + 0.09) / 2, rel=0.02)  # half of the angles are past 45 degrees


def test_weights_of_one_change_nothing_and_a_weight_of_zero_removes_an_image():
    plain = loss_of("v", count=8)
    assert loss_of("v", torch.ones(8), count=8).loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    only = loss_of("v", torch.tensor([8.0, 0, 0, 0, 0, 0, 0, 0]), count=8)
    assert only.loss.item() == pytest.approx(plain.per_image[0].item(), rel=1e-6)


def test_bands_add_up_to_the_whole_batch():
    result = loss_of("v")
    losses = [result.monitors[f"loss/t{i}"] for i in range(BANDS)]
    assert sum(count.item() for _, count in losses) == 4096
    assert sum(total.item() for total, _ in losses) == pytest.approx(result.per_image.sum().item(), rel=1e-5)
    assert all(not total.requires_grad for total, _ in losses)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
def test_min_snr_weights_of_a_noised_batch_change_the_loss_and_not_what_is_watched(prediction):
    schedule, batch = make_schedule("cosine", 1000), noised("any")
    plain = squared_error(schedule, prediction)(Constant(0.1), batch)
    weighted = squared_error(schedule, prediction, min_snr_gamma=5.0)(Constant(0.1), batch)
    weights = min_snr_weights(schedule, batch.draw.t, prediction=prediction, gamma=5.0)
    assert weighted.loss.item() == pytest.approx((weights * plain.per_image).mean().item(), rel=1e-6)
    assert torch.equal(weighted.per_image, plain.per_image)


def noised(times) -> Noised:
    images = torch.zeros(16, 1, 2, 2)
    batch = SimpleNamespace(
        images=images, labels=torch.ones(16, dtype=torch.int64), weights=None, rows=torch.arange(16)
    )
    batches = noised_batches(
        lambda step, micro: batch, steps=1000, seed=0, condition_dropout=0.0, device=images.device, times=times
    )
    return batches(3, 0)


def test_whole_times_are_the_steps_that_the_real_ones_end_in():
    real, whole = noised("any"), noised("whole")
    assert torch.equal(whole.draw.t, real.draw.t.ceil())
    assert torch.equal(whole.draw.epsilon, real.draw.epsilon)
    assert ((whole.draw.t >= 0) & (whole.draw.t <= 999)).all()


def test_epsilon_without_signal_at_the_end_is_refused_by_every_objective():
    blank = make_schedule("cosine", 1000, zero_terminal_snr=True)
    with pytest.raises(ConfigError, match="Use prediction: v or x_0"):
        squared_error(blank, "epsilon")
    with pytest.raises(ConfigError, match="Use prediction: v or x_0"):
        variational(blank, "epsilon", objective="vlb", bins=lambda images, rows: (images, images), learned_range=False)
