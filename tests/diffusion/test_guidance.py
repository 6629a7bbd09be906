import pytest
import torch

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    DistanceGuidance,
    GuidanceInterval,
    rescaled,
    scales_by_distance,
)
from cellbridge.diffusion.samplers import sample
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConfigError, ModelError


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


def contrasts(*scales: float, mean: float) -> torch.Tensor:
    drawn = torch.randn(3, len(scales), 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return mean + drawn * torch.tensor(scales).view(1, -1, 1, 1)


def test_rescaling_gives_each_channel_the_conditional_contrast_about_its_own_mean():
    guided, conditional = contrasts(0.9, 0.3, mean=-0.8), contrasts(0.4, 0.2, mean=-0.9).flip(0)
    result = rescaled(guided, conditional, share=1.0)
    assert torch.allclose(result.std((2, 3)), conditional.std((2, 3)), atol=1e-12)
    assert torch.allclose(result.mean((2, 3)), guided.mean((2, 3)), atol=1e-12)
    half = rescaled(guided, conditional, share=0.5)
    assert torch.allclose(half, (result + guided) / 2, atol=1e-12)


def test_rescaling_images_of_mean_zero_is_the_published_rule():
    """share x std_c / std_g + (1 - share) x."""
    guided, conditional = contrasts(0.9, mean=0.0), contrasts(0.4, mean=0.0).flip(0)
    guided = guided - guided.mean((2, 3), keepdim=True)
    ratio = (conditional.std((2, 3)) / guided.std((2, 3)))[..., None, None]
    published = 0.7 * guided * ratio + 0.3 * guided
    assert torch.allclose(rescaled(guided, conditional, share=0.7), published, atol=1e-12)


def test_a_flat_channel_is_rescaled_to_itself():
    flat = torch.full((1, 1, 4, 4), -1.0)
    assert torch.equal(rescaled(flat, flat, share=0.7), flat)


def test_outside_the_interval_the_plain_model_is_called_bit_for_bit_and_at_its_cost():
    denoiser = ByLabel()
    interval = GuidanceInterval(ClassifierFreeGuidance(denoiser, 3.0), denoiser, low=100, high=600)
    x_t, labels = torch.zeros(4, 1, 2, 2), torch.ones(4, dtype=torch.int64)
    x_0 = interval(x_t, torch.tensor([99.5, 100.0, 600.0, 600.5]), labels)
    assert torch.equal(x_0[:, 0, 0, 0], torch.tensor([1.0, 3.0, 3.0, 1.0]) / 3)
    assert sorted(denoiser.seen) == [2, 4]
    for t, cost in ((50.0, 4), (300.0, 8), (999.0, 4)):
        denoiser.seen.clear()
        interval(x_t, torch.full((4,), t), labels)
        assert denoiser.seen == [cost]


def test_an_interval_over_all_times_is_guidance_everywhere():
    x_T, labels = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    guided = ClassifierFreeGuidance(ByLabel(), 2.0)
    always = GuidanceInterval(guided, ByLabel(), low=-1, high=999)
    assert torch.equal(sample(always, x_T, labels, steps=4), sample(guided, x_T, labels, steps=4))


def test_an_empty_interval_is_refused():
    with pytest.raises(ConfigError, match="first time is after the last"):
        GuidanceInterval(ByLabel(), ByLabel(), low=500, high=100)


class Erring(Denoiser):
    """The true image 0.25, and an error of the given size."""

    def __init__(self, error: float, kind: str = "cosine"):
        super().__init__()
        self.schedule = make_schedule(kind, 1000)
        self.error = error
        self.calls = 0

    def forward(self, x_t, t, labels):
        self.calls += 1
        return torch.full_like(x_t, 0.25 + self.error)


def autoguided(scale: float, strong: Erring, weak: Erring) -> torch.Tensor:
    return Autoguidance(strong, weak, scale)(torch.zeros(2, 1, 2, 2), torch.full((2,), 5.0), torch.tensor([1, 2]))


def test_an_error_that_a_weaker_self_makes_twice_is_taken_out_by_scale_two():
    x_0 = autoguided(2.0, Erring(0.1), Erring(0.2))
    assert torch.allclose(x_0, torch.full_like(x_0, 0.25))


def test_autoguidance_of_scale_one_is_the_model_bit_for_bit_and_does_not_ask_the_weaker():
    weak = Erring(0.2)
    assert torch.equal(autoguided(1.0, Erring(0.1), weak), torch.full((2, 1, 2, 2), 0.25 + 0.1))
    assert weak.calls == 0


def test_a_weaker_self_whose_rows_are_others_is_asked_for_its_own():
    guided = Autoguidance(ByLabel(), ByLabel(), 2.0, weaker_label=7)
    x_t, t, labels = torch.zeros(3, 1, 2, 2), torch.full((3,), 500.0), torch.tensor([1, 2, 3])
    expected = (2.0 * labels - 7.0).view(-1, 1, 1, 1).expand_as(x_t) / 3
    assert torch.allclose(guided(x_t, t, labels), expected, atol=1e-6)


def test_a_weaker_self_of_another_schedule_is_refused():
    with pytest.raises(ModelError, match="another noise schedule"):
        Autoguidance(Erring(0.1), Erring(0.1, "linear"), 2.0)


def test_scales_grow_with_the_distance_from_the_reference_and_are_the_given_one_on_average():
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 15.0]])
    assert scales_by_distance(embeddings, 3.0, reference=0).tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_conditions_that_are_all_the_reference_have_no_distance():
    with pytest.raises(ModelError, match="every condition has the reference's embedding"):
        scales_by_distance(torch.ones(3, 2), 2.0, reference=1)


def test_distance_guidance_leaves_the_reference_alone_and_is_classifier_free_guidance_of_each_row_s_scale():
    scales = torch.tensor([1.0, 2.0, 4.0])
    x_t, t, labels = torch.zeros(3, 1, 2, 2), torch.full((3,), 5.0), torch.tensor([0, 1, 2])
    x_0 = DistanceGuidance(ByLabel(), scales, 0)(x_t, t, labels)
    assert torch.equal(x_0[0], ByLabel()(x_t, t, labels)[0])
    for row in (1, 2):
        alone = ClassifierFreeGuidance(ByLabel(), scales[row].item())(x_t, t, labels)
        assert torch.allclose(x_0[row], alone[row])
