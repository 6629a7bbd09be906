"""Estimates kept inside the range of images, per channel."""

import pytest
import torch
from gaussian_oracle import GaussianDenoiser, pixels

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.samplers import sample
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.thresholding import Clipping, DynamicThresholding, confines, quantile_per_channel
from cellbridge.errors import ConfigError


class Fixed(Denoiser):
    """The same estimate at any time."""

    def __init__(self, estimate: torch.Tensor):
        super().__init__()
        self.schedule = make_schedule("linear", 1000)
        self.estimate = estimate

    def forward(self, x_t, t, labels):
        return self.estimate

    def with_fraction(self, x_t, t, labels):
        return self.estimate, torch.full_like(self.estimate, 0.25)


def estimates(*scales: float) -> torch.Tensor:
    """Return normal values (3, channel, 16, 16), each channel of its own spread."""
    drawn = torch.randn(3, len(scales), 16, 16, generator=torch.Generator().manual_seed(0))
    return drawn * torch.tensor(scales).view(1, -1, 1, 1)


def confined(kind, x_0: torch.Tensor, **options) -> torch.Tensor:
    return kind(Fixed(x_0), **options)(x_0, torch.full((len(x_0),), 5.0), torch.zeros(len(x_0)).long())


def diffusers_threshold(x_0: torch.Tensor, **options) -> torch.Tensor:
    from diffusers import DDIMScheduler

    return DDIMScheduler(thresholding=True, **options)._threshold_sample(x_0)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("side", [1, 2, 5, 16])
def test_quantiles_are_those_of_torch(share, side):
    images = torch.randn(3, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.quantile(images.flatten(2), share, dim=2)[..., None, None]
    assert torch.allclose(quantile_per_channel(images, share), expected, atol=1e-12)


@pytest.mark.parametrize("largest", [1.5, 2.0, 10.0])
def test_one_channel_is_thresholded_as_diffusers_does(largest):
    x_0 = estimates(0.8)
    theirs = diffusers_threshold(x_0, sample_max_value=largest, dynamic_thresholding_ratio=0.9)
    assert torch.allclose(confined(DynamicThresholding, x_0, percentile=0.9, largest=largest), theirs, atol=1e-6)


def test_diffusers_threshold_is_plain_clipping_by_default_and_ours_refuses_to_be():
    x_0 = estimates(2.0)
    assert torch.equal(diffusers_threshold(x_0), x_0.clamp(-1, 1))
    with pytest.raises(ConfigError, match="does nothing but clip unless it is above 1"):
        DynamicThresholding(Fixed(x_0), largest=1.0)


def test_a_channel_does_not_feel_how_bright_the_others_are():
    """With one percentile for all of them, as in diffusers, the dim channel is scaled down with the bright one."""
    x_0 = estimates(0.2, 3.0)
    ours = confined(DynamicThresholding, x_0, largest=10.0)
    assert torch.equal(ours[:, 0], x_0[:, 0])
    assert ours.abs().max() <= 1.0
    theirs = diffusers_threshold(x_0, sample_max_value=10.0)
    assert theirs[:, 0].abs().max() < 0.3 * x_0[:, 0].abs().max()


def test_images_inside_the_range_are_left_as_they_are():
    x_0 = estimates(0.2)
    assert x_0.abs().max() < 1
    assert torch.equal(confined(DynamicThresholding, x_0), x_0)
    assert torch.equal(confined(Clipping, x_0), x_0)


def test_clipping_keeps_to_its_limit():
    assert torch.equal(confined(Clipping, estimates(2.0), limit=1.2), estimates(2.0).clamp(-1.2, 1.2))


@pytest.mark.parametrize("percentile", [0.0, 1.0])
def test_a_percentile_that_is_no_share_is_refused(percentile):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        DynamicThresholding(Fixed(estimates(1.0)), percentile=percentile)


@pytest.mark.parametrize("kind", [Clipping, DynamicThresholding])
def test_the_learned_fraction_of_the_variance_passes_through(kind):
    x_0 = estimates(2.0)
    images, fraction = kind(Fixed(x_0)).with_fraction(x_0, torch.full((3,), 5.0), torch.zeros(3).long())
    assert torch.equal(images, confined(kind, x_0))
    assert (fraction == 0.25).all()


@pytest.mark.parametrize("kind", [Clipping, DynamicThresholding])
def test_sampled_images_stay_in_range(kind):
    denoiser = GaussianDenoiser(make_schedule("cosine", 1000), mean=-0.95, std=0.3)
    x_T, labels = pixels()
    assert sample(denoiser, x_T, labels, steps=10).min() < -1.2
    assert sample(kind(denoiser), x_T, labels, steps=10).abs().max() < 1.0 + 1e-3


def test_confinement_is_found_at_any_depth():
    plain = Fixed(estimates(1.0))
    assert not confines(plain)
    assert confines(Clipping(plain))
    outer = DynamicThresholding(plain)
    assert confines(outer)
