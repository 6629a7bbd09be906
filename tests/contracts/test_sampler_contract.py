"""What every sampler keeps: it sees a denoiser alone, says how often it calls it, and an image depends on its own seed only."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from cellbridge import assembly
from cellbridge.config import SolverConfig
from cellbridge.diffusion.ancestral import Ddim, Ddpm
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm
from cellbridge.diffusion.samplers import Flow, Sampler
from cellbridge.diffusion.schedule import Schedule, make_schedule
from cellbridge.errors import ConfigError

STEPS = 7
SAMPLERS: dict[str, Sampler] = {
    "flow, order 1": Flow(STEPS, order=1),
    "flow, order 2": Flow(STEPS),
    "ddim": Ddim(STEPS),
    "ddim, eta 0.5": Ddim(STEPS, eta=0.5),
    "ddim, quadratic": Ddim(STEPS, grid="quadratic"),
    "ddpm, small": Ddpm(STEPS),
    "ddpm, large": Ddpm(STEPS, variance="large"),
    "ddpm, log_snr": Ddpm(STEPS, grid="log_snr"),
    "pndm": Pndm(STEPS),
    "pndm, runge-kutta": Pndm(STEPS, runge_kutta=True),
    "dpm++": DpmSolverPlusPlus(STEPS),
    "dpm++, quadratic": DpmSolverPlusPlus(STEPS, grid="quadratic"),
}
STOCHASTIC = {name for name in SAMPLERS if name.startswith("ddpm") or "eta" in name}


def test_every_sampler_of_the_registry_is_here():
    """As are all there are of the interface, and of their settings all that are an option of the solver."""
    grids = {"pndm": "uniform"}
    built = {
        name: assembly.build_sampler(SolverConfig(method=name, grid=grids.get(name, "quadratic")))
        for name in assembly.SAMPLERS
    }
    assert set(assembly.SAMPLERS) == set(get_args(SolverConfig.model_fields["method"].annotation))
    assert (
        {type(one) for one in built.values()}
        == {type(one) for one in SAMPLERS.values()}
        == set(Sampler.__subclasses__())
    )
    assert {one.grid for one in SAMPLERS.values() if hasattr(one, "grid")} == set(
        get_args(SolverConfig.model_fields["grid"].annotation)
    )


def test_samplers_say_whether_they_add_noise():
    assert {name for name, sampler in SAMPLERS.items() if sampler.stochastic} == STOCHASTIC


class Counting(Denoiser):
    """A non-linear estimate that follows image, time and label; counts its calls and keeps the times."""

    def __init__(self, schedule: Schedule | None = None):
        super().__init__()
        self.schedule = schedule or make_schedule("linear", 1000)
        self.times: list[float] = []

    def forward(self, x_t, t, labels):
        assert len(set(t.tolist())) <= 1
        self.times += t[:1].tolist()
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return torch.tanh(alpha * x_t + 0.3 * labels.view(-1, 1, 1, 1).to(x_t)) * (1 - 0.5 * sigma)


@pytest.fixture(params=SAMPLERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def sampler(name) -> Sampler:
    return SAMPLERS[name]


def noise(dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_T = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x_T, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6) + 10


def run(sampler: Sampler, x_T, labels, seeds, denoiser: Denoiser | None = None) -> torch.Tensor:
    return sampler.sample(denoiser or Counting(), x_T, labels, seeds=seeds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_finite_and_of_the_noise_s_shape_and_type(sampler, dtype):
    images = run(sampler, *noise(dtype))
    assert images.shape == (6, 2, 4, 4)
    assert images.dtype == dtype
    assert torch.isfinite(images).all()


def test_network_calls_are_as_counted(sampler):
    denoiser = Counting()
    run(sampler, *noise(), denoiser)
    assert len(denoiser.times) == sampler.network_calls


def test_the_network_is_first_asked_at_the_noisiest_time_and_never_of_the_clean_image(sampler):
    denoiser = Counting()
    run(sampler, *noise(), denoiser)
    assert denoiser.times[0] == 999
    assert min(denoiser.times) > -1
    if not isinstance(sampler, Flow) and not isinstance(sampler, Pndm):
        assert denoiser.times == sorted(denoiser.times, reverse=True)


@pytest.mark.parametrize("first", [0, 2, 5])
def test_an_image_does_not_depend_on_its_batch(sampler, first):
    x_T, labels, seeds = noise()
    together = run(sampler, x_T, labels, seeds)[first:]
    assert torch.allclose(run(sampler, x_T[first:], labels[first:], seeds[first:]), together, atol=1e-6)


def test_an_empty_batch_gives_no_image(sampler):
    x_T, labels, seeds = noise()
    assert run(sampler, x_T[:0], labels[:0], seeds[:0]).shape == (0, 2, 4, 4)


def test_the_same_seed_gives_the_same_image_and_another_only_matters_where_noise_is_added(name, sampler):
    x_T, labels, seeds = noise()
    first, again, other = (
        run(sampler, x_T, labels, seeds),
        run(sampler, x_T, labels, seeds),
        run(sampler, x_T, labels, seeds + 100),
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name not in STOCHASTIC)


def test_the_global_random_state_is_left_alone(sampler):
    state = torch.get_rng_state()
    run(sampler, *noise())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_graph_is_recorded(sampler):
    x_T, labels, seeds = noise()
    assert not run(sampler, x_T.requires_grad_(), labels, seeds).requires_grad


def test_the_image_follows_its_label(sampler):
    x_T, labels, seeds = noise()
    assert not torch.allclose(run(sampler, x_T, labels, seeds), run(sampler, x_T, labels.flip(0), seeds))


def test_a_denoiser_that_knows_the_image_gets_it_back(sampler):
    """Whatever the steps before, the last one ends at x_0 itself: there is no noise and no residue of x_T left."""

    class Knowing(Counting):
        def forward(self, x_t, t, labels):
            return torch.full_like(x_t, 0.25)

    images = run(sampler, *noise(torch.float64), Knowing())
    assert torch.allclose(images, torch.full_like(images, 0.25), atol=1e-9)


@pytest.mark.parametrize("steps", [6, 7, 13])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in STOCHASTIC])
def test_steps_that_do_not_divide_t_still_keep_data_of_unit_variance(name, steps):
    """For N(0, 1) the exact denoiser is alpha x_t, every x_t is N(0, 1), and the ODE is the identity; 6 steps come within 30 %."""

    class UnitGaussian(Counting):
        def forward(self, x_t, t, labels):
            return self.schedule.coefficients(t, x_t)[0] * x_t

    x_T, labels, seeds = noise(torch.float64)
    images = run(replace(SAMPLERS[name], steps=steps), x_T, labels, seeds, UnitGaussian())
    assert (images / x_T - 1).abs().max() < 0.3


def test_a_schedule_that_ends_without_signal_is_sampled_or_refused(name, sampler):
    denoiser = Counting(make_schedule("linear", 1000, zero_terminal_snr=True))
    if isinstance(sampler, Pndm) or "log_snr" in name:
        with pytest.raises(ConfigError, match=r"divides by the signal|log-SNR .* has no end"):
            run(sampler, *noise(), denoiser)
        return
    assert torch.isfinite(run(sampler, *noise(), denoiser)).all()
