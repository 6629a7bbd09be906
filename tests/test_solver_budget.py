"""What a solver costs in calls of the network, counted, and the most steps that a budget allows."""

import pytest
import torch

from cellbridge.assembly import build_inversion, build_sampler, guided, most_steps, solver_within
from cellbridge.assembly.cards import ModelCard
from cellbridge.config import NetworkConfig, ScheduleConfig, SolverConfig
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.part_way import PartWay
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConfigError

CARD = ModelCard(
    kind="base",
    channels=("DNA",),
    size_px=4,
    conditions=("", "DMSO", "taxol@1"),
    network=NetworkConfig(widths=(8, 8), attention_levels=()),
    schedule=ScheduleConfig(kind="linear"),
    plates=("P1",),
    store_sha256="0",
)


class Counting(Denoiser):
    """Halves what it sees; counts the images that it is asked for."""

    def __init__(self):
        super().__init__()
        self.schedule = make_schedule("linear", 1000)
        self.calls = 0

    def forward(self, x_t, t, labels):
        self.calls += len(x_t)
        return x_t / 2


def counted(solver: SolverConfig, *, inverting: bool, share: float | None) -> int:
    """Take one image through a solver, and return how often the network was asked."""
    denoiser, labels, seeds = Counting(), torch.tensor([2]), torch.tensor([7])
    x = torch.ones(1, 1, 4, 4)
    if inverting:
        x = build_inversion(solver).invert(denoiser, x, labels, seeds=seeds)
    sampled = guided(denoiser, solver, CARD)
    build_sampler(solver).sample(sampled if share is None else PartWay(sampled, share), x, labels, seeds=seeds)
    return denoiser.calls


SETTINGS = {
    "flow": {},
    "first order": {"order": 1},
    "ddim": {"method": "ddim"},
    "ancestral": {"method": "ddpm"},
    "pndm": {"method": "pndm", "grid": "uniform"},
    "pndm, runge-kutta": {"method": "pndm", "grid": "uniform", "runge_kutta": True},
    "dpm++": {"method": "dpm++", "grid": "log_snr"},
    "exact inverse": {"method": "ddim", "fixed_point": 2},
    "started in noise": {"start_noise": True},
    "guided": {"guidance_scale": 2.0},
    "control alone": {"guidance_scale": 0.0},
    "guided in part": {"guidance_scale": 1.5, "guidance_interval": (20.0, 300.0)},
    "guided and clipped": {"guidance_scale": 1.5, "threshold": "clip", "order": 1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("way", ["there and back", "back", "part of the way"])
def test_the_calls_are_those_that_are_made_and_one_more_step_would_cost_too_many(name: str, way: str) -> None:
    solver, schedule = SolverConfig(**SETTINGS[name]), make_schedule("linear", 1000)
    inverting, share = way == "there and back", 0.4 if way == "part of the way" else None
    settings = {"inverting": inverting, "share": share}
    assert solver_within(solver, None, schedule, **settings) == (solver, counted(solver, **settings))
    for nfe in (37, 60):
        found, calls = solver_within(solver, nfe, schedule, **settings)
        more = solver.model_copy(update={"steps": found.steps + 1})
        assert counted(found, **settings) == calls <= nfe < counted(more, **settings)


def test_fewer_calls_than_the_fewest_steps_cost_are_refused() -> None:
    with pytest.raises(ConfigError, match="the fewest steps, 2, cost 7 calls"):
        solver_within(SolverConfig(), 6, make_schedule("linear", 1000), inverting=True, share=None)


def test_cells_that_are_left_as_they_are_cost_nothing() -> None:
    solver = SolverConfig()
    assert solver_within(solver, None, make_schedule("linear", 1000), inverting=False, share=0) == (solver, 0)


def test_an_interval_of_guidance_beyond_the_strength_is_refused() -> None:
    solver = SolverConfig(guidance_scale=2.0, guidance_interval=(600, 900))
    with pytest.raises(ConfigError, match="guides nothing"):
        solver_within(solver, None, make_schedule("linear", 1000), inverting=False, share=0.5)


def test_the_most_steps_are_found_for_any_rising_cost() -> None:
    for slope, start in ((1, 0), (3, 5), (4, -1)):
        for nfe in range(start + 2 * slope, 200, 7):
            steps = most_steps(nfe, lambda n, a=slope, b=start: a * n + b, fewest=2)
            assert slope * steps + start <= nfe < slope * (steps + 1) + start
