import pytest
import torch
from gaussian_cells import CONTROL, TAXOL, batch_of, cells

from cellbridge.diffusion.ancestral import Ddim, Ddpm
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.guidance import ClassifierFreeGuidance
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm
from cellbridge.diffusion.samplers import Flow
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConditionError, ConfigError
from cellbridge.translators.ddib import Ddib
from cellbridge.translators.sdedit import Sdedit


class Exact(Denoiser):
    """The exact denoiser of N(mean, std^2) pixels, with a mean and a spread for each label; keeps the times that it is asked for."""

    means, stds = torch.tensor([0.0, -0.6, 0.2]), torch.tensor([0.5, 0.2, 0.4])

    def __init__(self, kind: str = "cosine"):
        super().__init__()
        self.schedule = make_schedule(kind, 1000)
        self.times: list[float] = []

    def forward(self, x_t, t, labels):
        self.times.append(float(t[0]))
        alpha, sigma = self.schedule.coefficients(t, x_t)
        mean, std = (values[labels].view(-1, 1, 1, 1).to(x_t) for values in (self.means, self.stds))
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)


def sdedit(strength: float, denoiser: Denoiser | None = None, **options) -> Sdedit:
    return Sdedit({TAXOL: (denoiser or Exact(), 2)}, strength=strength, **options)


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_between_gaussians_it_is_the_flow_of_the_target_s_law_from_the_noised_cell(strength: float) -> None:
    """x_t = alpha x_0 + sigma epsilon → mean + std (x_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2), of known mean and variance."""
    one, denoiser = cells(1).images, Exact()
    found = sdedit(strength, denoiser).translate(batch_of(one.expand(3000, -1, -1, -1)), target=TAXOL).images
    t = torch.tensor([round(strength * 1000) - 1.0], dtype=torch.float64)
    alpha, sigma = denoiser.schedule.alpha(t).item(), denoiser.schedule.sigma(t).item()
    gain = 0.4 / (alpha**2 * 0.4**2 + sigma**2) ** 0.5
    assert (found.mean(0) - (0.2 + gain * alpha * (one[0] - 0.2))).abs().max().item() < 0.03
    assert found.std(0).mean().item() == pytest.approx(gain * sigma, rel=0.02)


def test_strength_0_returns_the_cells_and_asks_no_network() -> None:
    denoiser, batch = Exact(), cells()
    result = sdedit(0, denoiser).translate(batch, target=TAXOL)
    assert torch.equal(result.images, batch.images)
    assert result.conditions == ("taxol@1",) * 6
    assert denoiser.times == []


@pytest.mark.parametrize("sampler", [Flow(7), Ddpm(9), Pndm(9)], ids=lambda s: type(s).__name__)
def test_strength_1_is_ddib_with_fresh_noise_bit_for_bit(sampler) -> None:
    """Also on the linear schedule, which ends with 0.6 % of the image in x_T, and under guidance."""
    for kind in ("linear", "cosine") if not isinstance(sampler, Pndm) else ("linear",):
        guided, batch = ClassifierFreeGuidance(Exact(kind), 2.0, 1), cells()
        fresh = Ddib(Exact(kind), 1, {TAXOL: (guided, 2)}, sampler=sampler, x_T="fresh")
        found = sdedit(1, guided, sampler=sampler).translate(batch, target=TAXOL)
        assert torch.equal(found.images, fresh.translate(batch, target=TAXOL).images)


def test_the_more_noise_the_less_of_the_cell() -> None:
    batch = cells(200)
    results = [sdedit(strength).translate(batch, target=TAXOL).images for strength in (0, 0.25, 0.5, 0.75, 1)]
    kept = [torch.corrcoef(torch.stack([batch.images.flatten(), r.flatten()]))[0, 1].item() for r in results]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == pytest.approx(1.0)
    assert abs(kept[-1]) < 0.05


@pytest.mark.parametrize("sampler", [Flow(6), Flow(6, grid="log_snr"), Ddim(6), Ddim(6, eta=1.0), DpmSolverPlusPlus(6)])
def test_all_steps_of_a_sampler_are_taken_below_the_strength(sampler) -> None:
    denoiser = Exact()
    sdedit(0.3, denoiser, sampler=sampler).translate(cells(), target=TAXOL)
    assert max(denoiser.times) == 299.0
    assert len(denoiser.times) == sampler.network_calls


def test_a_trajectory_goes_from_the_cell_over_what_the_model_takes_it_for_to_the_translation() -> None:
    batch = cells()
    for strength in (0.4, 1):
        translator = sdedit(strength)
        shown = translator.trace(batch, target=TAXOL, frames=6)
        assert torch.equal(shown.frames[0], batch.images)
        assert torch.equal(shown.frames[-1], translator.translate(batch, target=TAXOL).images)
        assert list(shown.times) == sorted(set(shown.times))
        assert len(shown.times) == 6


def test_a_trajectory_at_strength_0_and_a_model_that_was_not_given_are_refused() -> None:
    with pytest.raises(ConfigError, match="no trajectory"):
        sdedit(0).trace(cells(), target=TAXOL, frames=4)
    with pytest.raises(ConditionError, match='no model translates to "DMSO"'):
        sdedit(0.5).translate(cells(), target=CONTROL)


@pytest.mark.parametrize(("strength", "message"), [(1.2, "expected 0"), (-0.1, "expected 0"), (0.001, "0.002 to 1")])
def test_a_strength_that_leaves_no_way_is_refused(strength: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sdedit(strength)
