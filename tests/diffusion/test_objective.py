import pytest
import torch
from torch import nn

from cellbridge.diffusion.monitors import BANDS
from cellbridge.diffusion.objective import diffusion_loss
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.timesteps import training_draw


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
