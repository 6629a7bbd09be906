import pytest
import torch

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.guidance import ClassifierFreeGuidance
from cellbridge.diffusion.schedule import make_schedule


class ByLabel(Denoiser):
    """An estimate that is its label everywhere; counts calls and images."""

    def __init__(self):
        super().__init__()
        self.schedule = make_schedule("cosine", 1000)
        self.seen: list[int] = []

    def forward(self, x_t, t, labels):
        self.seen.append(len(x_t))
        return labels.view(-1, 1, 1, 1).to(x_t.dtype).expand_as(x_t) / 3


def guide(scale: float) -> tuple[torch.Tensor, list[int]]:
    denoiser = ByLabel()
    x_t = torch.zeros(2, 1, 2, 2)
    return ClassifierFreeGuidance(denoiser, scale)(x_t, torch.full((2,), 5.0), torch.tensor([1, 2])), denoiser.seen


def test_scale_one_is_the_conditional_model_bit_for_bit_in_one_call():
    x_0, seen = guide(1.0)
    assert torch.equal(x_0[:, 0, 0, 0], torch.tensor([1, 2]).float() / 3)
    assert seen == [2]


def test_scale_zero_is_the_unconditional_model_in_one_call():
    x_0, seen = guide(0.0)
    assert (x_0 == 0).all()
    assert seen == [2]


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_other_scales_extrapolate_from_the_unconditional_estimate(scale):
    x_0, seen = guide(scale)
    assert torch.allclose(x_0[:, 0, 0, 0], scale * torch.tensor([1, 2]).float() / 3)
    assert seen == [4]
