"""What every prior of x_T keeps to."""

import pytest
import torch
from safetensors.torch import save_file

from cellbridge.diffusion.noise_bank import NoiseBank, fit_bank
from cellbridge.diffusion.noise_field import NoiseField, fit_field
from cellbridge.diffusion.noise_flow import FlowPrior, fit_flow
from cellbridge.diffusion.prior import load_prior, save_prior
from cellbridge.errors import ModelError

SHAPE = (3, 16, 12)
KINDS = {"field": NoiseField, "bank": NoiseBank, "flow": FlowPrior}
FITS = {"field": fit_field, "bank": fit_bank, "flow": lambda x: fit_flow(x, seed=0)}


def coloured(n: int = 80) -> torch.Tensor:
    """Return noise that is not white: louder at low frequencies, with a mean and channels that go together."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, *SHAPE, generator=draw)
    return (
        0.1 + 0.9 * x + 0.3 * torch.randn(n, 3, 1, 1, generator=draw) + 0.3 * torch.randn(n, 1, 16, 12, generator=draw)
    )


@pytest.fixture(params=sorted(KINDS), scope="module")
def prior(request):
    return FITS[request.param](coloured())


def test_a_draw_depends_on_its_own_seed_alone(prior):
    seeds = torch.tensor([3, 9, 3, 2**62])
    together = prior.sample(seeds, SHAPE)
    alone = torch.cat([prior.sample(seeds[i : i + 1], SHAPE) for i in range(4)])
    assert (together - alone).abs().max().item() < 1e-6
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_a_saved_prior_gives_the_same_draws_bit_for_bit(prior, tmp_path):
    save_prior(prior, tmp_path / "prior.safetensors")
    loaded = load_prior(tmp_path / "prior.safetensors", KINDS)
    assert loaded.kind == prior.kind
    assert torch.equal(loaded.sample(torch.arange(3), SHAPE), prior.sample(torch.arange(3), SHAPE))


def test_one_fit_is_the_other_and_the_global_random_state_is_left_alone(prior):
    state = torch.get_rng_state()
    again = FITS[prior.kind](coloured())
    assert torch.equal(again.sample(torch.arange(3), SHAPE), prior.sample(torch.arange(3), SHAPE))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_are_finite_images_in_single_precision_and_no_seeds_give_none(prior):
    drawn = prior.sample(torch.arange(4), SHAPE)
    assert drawn.shape == (4, *SHAPE)
    assert drawn.dtype == torch.float32
    assert bool(torch.isfinite(drawn).all())
    assert prior.sample(torch.arange(0), SHAPE).shape == (0, *SHAPE)


def test_draws_have_the_mean_and_the_variance_of_what_was_fitted(prior):
    drawn, fitted = prior.sample(torch.arange(300), SHAPE), coloured()
    assert drawn.mean().item() == pytest.approx(fitted.mean().item(), abs=0.06)
    if prior.kind != "flow":  # which leaves high frequencies white
        assert drawn.var().item() == pytest.approx(fitted.var().item(), rel=0.05)


def test_another_shape_is_refused(prior):
    with pytest.raises(ModelError, match=r"x_T of shape \(3, 16, 12\).*asked for \(3, 16, 16\)"):
        prior.sample(torch.arange(2), (3, 16, 16))


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_noise_that_is_not_finite_or_too_little_is_refused(fit):
    with pytest.raises(ValueError, match="finite: False"):
        fit(torch.full((20, *SHAPE), float("nan")))
    with pytest.raises(ValueError, match="or more finite images"):
        fit(torch.zeros(1, *SHAPE))


def test_a_file_that_holds_no_prior_is_refused(prior, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_prior(prior, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-40])
    for name in ("other", "cut", "absent"):
        with pytest.raises(ModelError, match="holds no prior of x_T"):
            load_prior(tmp_path / f"{name}.safetensors", KINDS)
    save_prior(prior, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match="holds no prior of x_T"):
        load_prior(tmp_path / "one.safetensors", {})
