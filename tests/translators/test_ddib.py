import pytest
import torch

from cellbridge.conditions import Condition
from cellbridge.diffusion.ancestral import Ddpm
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.inversion import Inversion
from cellbridge.diffusion.multistep import DpmSolverPlusPlus
from cellbridge.diffusion.samplers import Flow
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConditionError, ConfigError
from cellbridge.translators.ddib import Ddib
from cellbridge.typing import CellBatch

CONTROL, TAXOL = Condition("DMSO"), Condition("taxol", 1.0)


class ByLabel(Denoiser):
    """The exact denoiser of N(mean, std^2) pixels, with a mean and a spread for each label; counts its calls."""

    means, stds = torch.tensor([0.0, -0.6, 0.2]), torch.tensor([0.5, 0.2, 0.4])

    def __init__(self):
        super().__init__()
        self.schedule = make_schedule("cosine", 1000)
        self.calls = 0

    def forward(self, x_t, t, labels):
        self.calls += 1
        alpha, sigma = self.schedule.coefficients(t, x_t)
        mean, std = (values[labels].view(-1, 1, 1, 1).to(x_t) for values in (self.means, self.stds))
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)


def cells(count: int = 6) -> CellBatch:
    images = -0.6 + 0.2 * torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return CellBatch(
        images=images,
        cell_ids=tuple(f"cell{i}" for i in range(count)),
        plates=("P1",) * count,
        conditions=("DMSO",) * count,
        seeds=torch.arange(count),
    )


def part(batch: CellBatch, rows: slice) -> CellBatch:
    return CellBatch(
        batch.images[rows], batch.cell_ids[rows], batch.plates[rows], batch.conditions[rows], batch.seeds[rows]
    )


def bridge(**options) -> Ddib:
    denoiser = ByLabel()
    return Ddib(denoiser, 1, {CONTROL: (denoiser, 1), TAXOL: (denoiser, 2)}, **options)


def test_between_gaussians_it_is_the_optimal_map():
    """x → mean_B + std_B / std_A (x - mean_A), the composition of the two exact ODE maps."""
    batch = cells()
    result = bridge().translate(batch, target=TAXOL)
    expected = 0.2 + 0.4 / 0.2 * (batch.images + 0.6)
    assert (result.images - expected).abs().max().item() < 5e-3


def test_translation_to_its_own_condition_returns_the_cell():
    batch = cells()
    result = bridge().translate(batch, target=CONTROL)
    assert (result.images - batch.images).abs().max().item() < 5e-3


def test_everything_but_image_and_condition_is_kept():
    batch = cells()
    result = bridge(inversion=Inversion(3), sampler=Flow(3)).translate(batch, target=TAXOL)
    assert result.conditions == ("taxol@1",) * 6
    assert (result.cell_ids, result.plates) == (batch.cell_ids, batch.plates)
    assert torch.equal(result.seeds, batch.seeds)
    assert result.images.dtype == torch.float32


@pytest.mark.parametrize("x_T", ["inverted", "fresh"])
def test_an_image_does_not_depend_on_its_batch(x_T):
    batch = cells()
    together = bridge(x_T=x_T).translate(batch, target=TAXOL).images
    alone = torch.cat([bridge(x_T=x_T).translate(part(batch, slice(i, i + 1)), target=TAXOL).images for i in range(6)])
    assert (together - alone).abs().max().item() < 1e-5


def test_fresh_noise_follows_the_seed_and_not_the_cell():
    batch = cells()
    other = CellBatch(-batch.images, batch.cell_ids, batch.plates, batch.conditions, batch.seeds)
    assert torch.equal(bridge(x_T="fresh").encode(batch), bridge(x_T="fresh").encode(other))
    noise = bridge(x_T="fresh").encode(batch)
    assert not torch.equal(noise[0], noise[1])


def test_targets_of_one_batch_share_one_inversion():
    translator, batch = bridge(), cells()
    denoiser = translator.source
    translator.translate(batch, target=TAXOL)
    assert denoiser.calls == 49 + 50
    translator.translate(batch, target=CONTROL)
    assert denoiser.calls == 49 + 50 + 50
    translator.translate(part(batch, slice(0, 6)), target=TAXOL)
    assert denoiser.calls == 49 + 50 + 50 + 49 + 50


def test_the_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    bridge(x_T="fresh").translate(cells(), target=TAXOL)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_target_without_a_model_is_refused_before_any_work():
    translator = bridge()
    with pytest.raises(ConditionError, match='no model translates to "taxol@3"'):
        translator.translate(cells(), target=Condition("taxol", 3.0))
    assert translator.source.calls == 0


def test_the_map_does_not_depend_on_the_sampler_of_the_ode():
    batch = cells()
    result = bridge(sampler=DpmSolverPlusPlus(50, "quadratic")).translate(batch, target=TAXOL)
    assert (result.images - (0.2 + 0.4 / 0.2 * (batch.images + 0.6))).abs().max().item() < 0.02


def test_a_sampler_that_adds_noise_takes_fresh_noise_and_not_a_cell_s():
    with pytest.raises(ConfigError, match="or draw x_T fresh"):
        bridge(sampler=Ddpm(10))
    batch = cells()
    together = bridge(sampler=Ddpm(10), x_T="fresh").translate(batch, target=TAXOL).images
    alone = bridge(sampler=Ddpm(10), x_T="fresh").translate(part(batch, slice(2, 3)), target=TAXOL).images
    assert torch.allclose(together[2:3], alone, atol=1e-5)


def test_a_trajectory_goes_to_noise_and_back_over_what_the_models_take_the_cell_for():
    batch = cells()
    shown = bridge().trace(batch, target=TAXOL, frames=9)
    assert torch.equal(shown.frames[0], batch.images)
    assert torch.equal(shown.frames[-1], bridge().translate(batch, target=TAXOL).images)
    assert list(shown.times) == sorted(set(shown.times))
    assert len(shown.times) == 9
    middle = shown.frames[min(range(9), key=lambda i: abs(shown.times[i] - 0.5))]
    assert (middle - 0.2).abs().max().item() < 0.1, "in noise alone the target's model sees the target's mean"


def test_fresh_noise_has_no_trajectory_from_the_cell():
    with pytest.raises(ConfigError, match="no way leads from them"):
        bridge(x_T="fresh").trace(cells(), target=TAXOL, frames=4)
