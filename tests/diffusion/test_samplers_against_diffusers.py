"""Trajectories of diffusers' schedulers as oracle where they are right, and where they are not."""

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
)
from diffusers.schedulers import scheduling_ddpm
from gaussian_oracle import GaussianDenoiser, MixtureDenoiser, pixels
from torch import Tensor

from cellbridge.diffusion.ancestral import Ddim, Ddpm, ddim, ddpm
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.inversion import invert
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm, dpm_solver_plus_plus
from cellbridge.diffusion.samplers import sample, signal_and_noise
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.runtime import noise_per_image

KINDS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
SEEDS = torch.arange(4)


def scheduler_of(kind: type, denoiser: Denoiser, steps: int, *, schedule: str = "linear", **options):
    """Return a scheduler with the table of the denoiser's schedule in double precision; theirs are float32 products."""
    options = {
        "timestep_spacing": "trailing",
        "beta_schedule": KINDS[schedule],
        "beta_start": 1e-4,
        "beta_end": 2e-2,
    } | options
    scheduler = kind(**options)
    scheduler.alphas_cumprod = denoiser.schedule.alpha_bar.clone()
    scheduler.set_timesteps(steps)
    return scheduler


def output(scheduler, denoiser: Denoiser, x: Tensor, t: float) -> Tensor:
    """Return what a network of the scheduler's prediction type would."""
    x_0 = denoiser(x, torch.full((len(x),), float(t)), torch.zeros(len(x), dtype=torch.int64))
    if scheduler.config.prediction_type == "sample":
        return x_0
    alpha, sigma = signal_and_noise(denoiser, float(t))
    return (x - alpha * x_0) / sigma


def follow(scheduler, denoiser: Denoiser, x: Tensor, **options) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(output(scheduler, denoiser, x, t), t, x, **options).prev_sample
    return x


def noise_of_step(number: int, like: Tensor) -> Tensor:
    return noise_per_image(SEEDS, tuple(like.shape[1:]), purpose=f"sampler step {number}").to(like)


def times_of(scheduler) -> Tensor:
    """Return the scheduler's times, and the clean image's."""
    return torch.cat([scheduler.timesteps.double(), torch.tensor([-1.0], dtype=torch.float64)])


def with_noise_of_ours(monkeypatch) -> None:
    """Let DDPM draw the noise that our steps draw."""
    numbers = iter(range(10_000))
    monkeypatch.setattr(
        scheduling_ddpm, "randn_tensor", lambda shape, **_: noise_of_step(next(numbers), torch.empty(shape).double())
    )


def root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("kind", KINDS)
def test_order_one_is_ddim(kind):
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), mean=-0.4, std=0.5)
    x_T, labels = pixels()
    theirs = follow(scheduler_of(DDIMScheduler, denoiser, 20, schedule=kind, clip_sample=False), denoiser, x_T)
    assert torch.allclose(sample(denoiser, x_T, labels, steps=20, order=1, grid="uniform"), theirs, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_order_one_inversion_is_ddim_inverse(kind):
    denoiser = GaussianDenoiser(make_schedule(kind, 1000), mean=-0.4, std=0.5)
    x_0, labels = pixels(mean=-0.4, std=0.5)
    theirs = follow(scheduler_of(DDIMInverseScheduler, denoiser, 20, schedule=kind, clip_sample=False), denoiser, x_0)
    assert torch.allclose(invert(denoiser, x_0, labels, steps=20, order=1, grid="uniform"), theirs, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_at_any_eta(kind, eta):
    denoiser = MixtureDenoiser(make_schedule(kind, 1000))
    x_T, labels = pixels()
    scheduler = scheduler_of(DDIMScheduler, denoiser, 20, schedule=kind, clip_sample=False, prediction_type="sample")
    x = x_T
    for number, t in enumerate(scheduler.timesteps):
        noise = noise_of_step(number, x) if eta else None
        x = scheduler.step(output(scheduler, denoiser, x, t), t, x, eta=eta, variance_noise=noise).prev_sample
    assert torch.allclose(Ddim(20, eta).sample(denoiser, x_T, labels, seeds=SEEDS), x, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_ddpm_of_the_small_variance(kind, monkeypatch):
    denoiser = MixtureDenoiser(make_schedule(kind, 1000))
    x_T, labels = pixels()
    with_noise_of_ours(monkeypatch)
    scheduler = scheduler_of(DDPMScheduler, denoiser, 20, schedule=kind, clip_sample=False, prediction_type="sample")
    theirs = follow(scheduler, denoiser, x_T)
    assert torch.allclose(Ddpm(20).sample(denoiser, x_T, labels, seeds=SEEDS), theirs, atol=1e-8)


def test_ddpm_s_steps_that_do_not_divide_t(monkeypatch):
    """Unlike DDIM's, this scheduler steps to the true next time."""
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_T, labels = pixels()
    with_noise_of_ours(monkeypatch)
    scheduler = scheduler_of(DDPMScheduler, denoiser, 30, clip_sample=False)
    theirs = follow(scheduler, denoiser, x_T)
    ours = ddpm(denoiser, x_T, labels, times=times_of(scheduler), variance="small", seeds=SEEDS)
    assert torch.allclose(ours, theirs, atol=1e-8)


def test_ddpm_of_the_large_variance_over_all_steps(monkeypatch):
    denoiser = MixtureDenoiser(make_schedule("linear", 100))
    x_T, labels = pixels()
    with_noise_of_ours(monkeypatch)
    scheduler = scheduler_of(
        DDPMScheduler, denoiser, 100, clip_sample=False, variance_type="fixed_large", num_train_timesteps=100
    )
    theirs = follow(scheduler, denoiser, x_T)
    assert torch.allclose(Ddpm(100, "large").sample(denoiser, x_T, labels, seeds=SEEDS), theirs, atol=1e-8)


def test_ddpm_of_the_large_variance_leaves_noise_in_their_image_where_the_last_time_is_not_zero(monkeypatch):
    """They leave the last noise out at t = 0 only, but 20 trailing steps end at t = 49: beta there is 0.034."""
    denoiser = GaussianDenoiser(make_schedule("linear", 1000), mean=0.25, std=0.0)
    x_T, labels = pixels()
    with_noise_of_ours(monkeypatch)
    scheduler = scheduler_of(DDPMScheduler, denoiser, 20, clip_sample=False, variance_type="fixed_large")
    theirs = follow(scheduler, denoiser, x_T)
    assert root_mean_square(theirs - 0.25) > 0.1
    assert root_mean_square(Ddpm(20, "large").sample(denoiser, x_T, labels, seeds=SEEDS) - 0.25) < 1e-12


class LearnedRange(GaussianDenoiser):
    """The exact mean, and a fraction that differs from pixel to pixel."""

    def with_fraction(self, x_t, t, labels):
        return self(x_t, t, labels), 0.5 + 0.5 * torch.sin(3 * x_t)


def test_ddpm_of_the_learned_range(monkeypatch):
    """Their network gives v = 2 fraction - 1 in a second half of the channels, and DDIM's scheduler does not take that half off."""
    denoiser = LearnedRange(make_schedule("linear", 100), mean=-0.4, std=0.5)
    x_T, labels = pixels()
    with_noise_of_ours(monkeypatch)
    scheduler = scheduler_of(
        DDPMScheduler, denoiser, 100, clip_sample=False, variance_type="learned_range", num_train_timesteps=100
    )
    x = x_T
    for t in scheduler.timesteps:
        _, fraction = denoiser.with_fraction(x, torch.full((4,), float(t)), labels)
        both = torch.cat([output(scheduler, denoiser, x, t), 2 * fraction - 1], dim=1)
        x = scheduler.step(both, t, x).prev_sample
    assert torch.allclose(Ddpm(100, "learned").sample(denoiser, x_T, labels, seeds=SEEDS), x, atol=1e-8)
    scheduler = scheduler_of(DDIMScheduler, denoiser, 10, num_train_timesteps=100)
    assert scheduler.step(both, scheduler.timesteps[0], x).prev_sample.shape[1] == 2


@pytest.mark.parametrize("runge_kutta", [False, True])
def test_pndm(runge_kutta):
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_T, labels = pixels()
    scheduler = scheduler_of(PNDMScheduler, denoiser, 50, skip_prk_steps=not runge_kutta, set_alpha_to_one=True)
    sampler = Pndm(50, runge_kutta=runge_kutta)
    theirs = follow(scheduler, denoiser, x_T)
    assert torch.allclose(sampler.sample(denoiser, x_T, labels, seeds=SEEDS), theirs, atol=1e-4)
    assert sampler.network_calls == len(scheduler.timesteps) == (59 if runge_kutta else 51)


def test_pndm_s_default_stops_short_of_the_clean_image():
    """set_alpha_to_one=False, by default, ends at the noise of t = 0."""
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_T, labels = pixels()
    theirs = follow(scheduler_of(PNDMScheduler, denoiser, 50, skip_prk_steps=True), denoiser, x_T)
    assert 1e-3 < root_mean_square(Pndm(50).sample(denoiser, x_T, labels, seeds=SEEDS) - theirs) < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_dpm_solver_plus_plus_2m(kind, steps):
    denoiser = MixtureDenoiser(make_schedule(kind, 1000))
    x_T, labels = pixels()
    scheduler = scheduler_of(
        DPMSolverMultistepScheduler, denoiser, steps, schedule=kind, prediction_type="sample", solver_order=2
    )
    theirs = follow(scheduler, denoiser, x_T.float()).double()
    assert torch.allclose(DpmSolverPlusPlus(steps).sample(denoiser, x_T, labels, seeds=SEEDS), theirs, atol=1e-4)


def test_dpm_solver_plus_plus_at_steps_that_do_not_divide_t():
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_T, labels = pixels()
    scheduler = scheduler_of(DPMSolverMultistepScheduler, denoiser, 30, prediction_type="sample")
    ours = dpm_solver_plus_plus(denoiser, x_T, labels, times=times_of(scheduler))
    assert torch.allclose(ours, follow(scheduler, denoiser, x_T.float()).double(), atol=1e-4)


def test_ddim_steps_by_the_wrong_length_where_trailing_steps_do_not_divide_t():
    """It goes to t - T // N and not to the next time, so that 300 steps are worse than 100."""
    denoiser = GaussianDenoiser(make_schedule("linear", 1000), std=0.2)
    x_T, labels = pixels()
    exact = x_T * 0.2 / denoiser.noise_of(torch.full_like(x_T, 0.2))
    theirs, ours = {}, {}
    for steps in (100, 300):
        scheduler = scheduler_of(DDIMScheduler, denoiser, steps, clip_sample=False)
        theirs[steps] = root_mean_square(follow(scheduler, denoiser, x_T) - exact)
        images = ddim(denoiser, x_T, labels, times=times_of(scheduler), eta=0.0, seeds=SEEDS)
        ours[steps] = root_mean_square(images - exact)
    assert theirs[100] == pytest.approx(ours[100], rel=1e-3)
    assert theirs[300] > theirs[100]
    assert ours[300] < 0.5 * ours[100]


@pytest.mark.parametrize(("steps", "theirs"), [(60, 0.952), (150, 0.907), (300, 0.909)])
def test_ddim_inverse_steps_by_the_wrong_length_where_trailing_steps_do_not_divide_t(steps, theirs):
    """Its x_T is too quiet by a tenth, where the true steps of the same number give unit variance to within two per cent."""
    denoiser = GaussianDenoiser(make_schedule("linear", 1000), std=0.4)
    one = torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64)
    scheduler = scheduler_of(DDIMInverseScheduler, denoiser, steps, clip_sample=False)
    assert follow(scheduler, denoiser, one).item() == pytest.approx(theirs, abs=0.05)
    ours = invert(denoiser, one, torch.zeros(1, dtype=torch.int64), steps=steps, order=1, grid="uniform")
    assert ours.item() == pytest.approx(1.0, abs=0.02)


def test_ddim_and_its_inverse_clip_by_default():
    """Images that reach beyond [-1, 1], as noise in a dark background does, come back cut off."""
    denoiser = GaussianDenoiser(make_schedule("linear", 1000), mean=-0.95, std=0.2)
    x_T, labels = pixels()
    ours = Ddim(20).sample(denoiser, x_T, labels, seeds=SEEDS)
    theirs = follow(scheduler_of(DDIMScheduler, denoiser, 20), denoiser, x_T)
    assert ours.min() < -1.1
    assert theirs.min() == -1.0
    x_0, _ = pixels(mean=-0.95, std=0.2)
    clipped, plain = (
        follow(scheduler_of(DDIMInverseScheduler, denoiser, 20, clip_sample=clip), denoiser, x_0)
        for clip in (True, False)
    )
    assert clipped.std() < 0.95 * plain.std()
    assert torch.allclose(invert(denoiser, x_0, labels, steps=20, order=1, grid="uniform"), plain, atol=1e-4)


def test_epsilon_without_signal_is_not_finite_and_x_0_is():
    """Their first step divides by alpha(T - 1) = 0; our denoisers give x_0, and such a schedule with epsilon is refused."""
    schedule = make_schedule("linear", 1000, zero_terminal_snr=True)
    denoiser = GaussianDenoiser(schedule, mean=-0.4, std=0.5)
    x_T, labels = pixels()
    scheduler = scheduler_of(DDIMScheduler, denoiser, 20, clip_sample=False)
    scheduler.alphas_cumprod[-1] = 0.0
    t = scheduler.timesteps[0]
    assert not torch.isfinite(scheduler.step(x_T.clone(), t, x_T + 0.1).prev_sample).all()
    assert torch.isfinite(Ddim(20).sample(denoiser, x_T, labels, seeds=SEEDS)).all()
