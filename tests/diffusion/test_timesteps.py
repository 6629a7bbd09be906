import pytest
import torch

from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.timesteps import solver_times, training_draw
from cellbridge.errors import ConfigError
from cellbridge.runtime import generator


def draw(seed: int, count: int, dropout: float = 0.0):
    images, labels = torch.zeros(count, 1, 2, 2), torch.ones(count, dtype=torch.int64)
    return training_draw(
        images, labels, steps=1000, generator=generator("cpu", "draw", seed), condition_dropout=dropout
    )


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "log_snr"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_every_grid_rises_from_the_clean_image_to_the_noisiest_time(grid, kind):
    times = solver_times(make_schedule(kind, 1000), steps=25, grid=grid)
    assert times.shape == (26,)
    assert times[0] == -1
    assert times[-1] == 999
    assert (times.diff() > 0).all()


def test_the_uniform_grid_is_the_trailing_spacing_of_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    times = solver_times(make_schedule("linear", 1000), steps=50, grid="uniform")
    assert torch.allclose(times[1:].flip(0), scheduler.timesteps.double(), atol=1e-9)


@pytest.mark.parametrize(("steps", "last"), [(50, 980), (150, 894)])
def test_diffusers_default_spacing_never_reaches_the_noisiest_time_and_every_grid_of_ours_does(steps, last):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    schedule = make_schedule("linear", 1000)
    assert scheduler.timesteps[0] == last
    assert schedule.alpha_bar[980].sqrt().item() == pytest.approx(0.0077, abs=5e-5)
    for grid in ("uniform", "quadratic", "log_snr"):
        assert solver_times(schedule, steps=steps, grid=grid)[-1] == 999


def test_the_log_snr_grid_has_equal_steps_above_its_first():
    schedule = make_schedule("cosine", 1000)
    times = solver_times(schedule, steps=20, grid="log_snr")
    steps = schedule.log_snr(times[1:]).diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-6)


def test_too_few_steps_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        solver_times(make_schedule("cosine", 1000), steps=1, grid="quadratic")


def test_training_times_are_uniform_and_cover_every_stratum_of_the_batch():
    t = draw(0, 64).t
    assert (t > -1).all()
    assert (t <= 999).all()
    occupied = ((t + 1) / 1000 * 64).ceil().long().sort().values
    assert torch.equal(occupied, torch.arange(1, 65))


def test_training_times_begin_below_the_first_step_where_the_solver_asks_too():
    """Of two steps, half of the times lie in (-1, 0]."""
    images, generator = torch.zeros(64, 1, 2, 2), torch.Generator().manual_seed(0)
    t = training_draw(images, torch.zeros(64, dtype=torch.int64), steps=2, generator=generator).t
    assert torch.equal(((t + 1) * 32).ceil().long().sort().values, torch.arange(1, 65))


def test_a_draw_is_a_function_of_its_seed_alone():
    state = torch.get_rng_state()
    first, again, other = draw(3, 16, 0.5), draw(3, 16, 0.5), draw(4, 16, 0.5)
    assert torch.equal(first.t, again.t)
    assert torch.equal(first.epsilon, again.epsilon)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.t, other.t)
    assert torch.equal(torch.get_rng_state(), state)


def test_conditions_are_hidden_per_image_at_the_given_rate():
    labels = draw(0, 20_000, 0.1).labels
    assert set(labels.tolist()) == {0, 1}
    assert (labels == 0).double().mean().item() == pytest.approx(0.1, abs=0.0085)  # four standard errors


def test_no_condition_is_hidden_by_default():
    assert (draw(0, 256).labels == 1).all()


def test_a_log_snr_grid_is_refused_where_the_log_snr_has_no_end():
    with pytest.raises(ConfigError, match="has no end"):
        solver_times(make_schedule("cosine", 1000, zero_terminal_snr=True), steps=10, grid="log_snr")
