"""Flows against what is known of them: between Gaussians the velocity is linear, and towards one point every line ends there."""

import pytest
import torch
from torch import nn

from cellbridge.baselines.flow import ControlFlow, GuidedVelocity, NetworkVelocity, NoiseFlow, Velocity, integrate
from cellbridge.bridge.integrate import times
from cellbridge.conditions import Condition
from cellbridge.diffusion.denoiser import NetworkDenoiser
from cellbridge.diffusion.samplers import Flow
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConditionError
from cellbridge.networks.condition_table import ConditionTable
from cellbridge.typing import CellBatch

CONTROL, TAXOL = Condition("DMSO"), Condition("taxol", 1.0)
TABLE = ConditionTable.of(("", "DMSO", "taxol@1"), plates=("P1", "P2"))


class BetweenGaussians(Velocity):
    """E[target - source | x_s] for independent N(mean, std²) pixels of both ends, the target's mean by label."""

    def __init__(self, source: tuple[float, float], targets: list[tuple[float, float]]):
        super().__init__()
        self.source, self.targets = source, torch.tensor(targets)
        self.calls = 0

    def forward(self, x, s, labels):
        self.calls += 1
        at = s.view(-1, 1, 1, 1)
        (m_0, d_0), (m_1, d_1) = self.source, (part.view(-1, 1, 1, 1) for part in self.targets[labels].unbind(1))
        variance = (1 - at) ** 2 * d_0**2 + at**2 * d_1**2
        gain = (at * d_1**2 - (1 - at) * d_0**2) / variance
        return (m_1 - m_0) + gain * (x - (1 - at) * m_0 - at * m_1)


class ExactDenoiser(nn.Module):
    """v for N(0.1, 0.3²) pixels, called as a backbone is."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t, t, class_labels, return_dict):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        x_0 = 0.1 + alpha * 0.3**2 / (alpha**2 * 0.3**2 + sigma**2) * (x_t - alpha * 0.1)
        return ((alpha * x_t - x_0) / sigma.clamp_min(1e-6),)


class Recording(Velocity):
    """A velocity that notes the labels it was asked with."""

    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x, s, labels):
        self.seen += labels.tolist()
        return 0.01 * (1 + labels.view(-1, 1, 1, 1).to(x)) * torch.ones_like(x)


def cells(count: int = 6, *, plates: tuple[str, ...] = ("P1", "P2", "new")) -> CellBatch:
    images = -0.4 + 0.2 * torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return CellBatch(
        images=images,
        cell_ids=tuple(f"cell{i}" for i in range(count)),
        plates=tuple(plates[i % len(plates)] for i in range(count)),
        conditions=("DMSO",) * count,
        seeds=torch.arange(count) + 5,
    )


def part(batch: CellBatch, rows: slice) -> CellBatch:
    return CellBatch(*(getattr(batch, name)[rows] for name in ("images", "cell_ids", "plates", "conditions", "seeds")))


def control_flow(velocity: Velocity | None = None, *, steps: int = 40, noise_level: float = 0.0) -> ControlFlow:
    exact = BetweenGaussians((-0.4, 0.2), [(0.0, 1.0), (-0.4, 0.2), (0.1, 0.3)])
    return ControlFlow(
        velocity or exact, {TAXOL: 2}, control=CONTROL, noise_level=noise_level, grid=times(steps, grid="uniform")
    )


def noise_flow(velocity: Velocity | None = None) -> NoiseFlow:
    exact = BetweenGaussians((0.0, 1.0), [(0.0, 1.0), (-0.4, 0.2), (0.1, 0.05)] * 3)
    return NoiseFlow(velocity or exact, {CONTROL: 1, TAXOL: 2}, table=TABLE, grid=times(20))


def test_between_gaussians_the_flow_is_the_monotone_map():
    """x → m_1 + (d_1 / d_0) (x - m_0): the ODE through independent pairs of Gaussians, which no pair of them follows."""
    batch = cells()
    result = control_flow().translate(batch, target=TAXOL)
    expected = (0.1 + 1.5 * (batch.images + 0.4)).clamp(-1, 1)
    assert torch.allclose(result.images, expected, atol=2e-3)


def test_noise_flows_to_a_point_mass_along_straight_lines_in_one_euler_step():
    point = BetweenGaussians((0.0, 1.0), [(0.3, 0.0)])
    noise = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    reached = integrate(point, noise, torch.zeros(4, dtype=torch.int64), grid=torch.tensor([0.0, 1.0]), order=1)
    assert torch.allclose(reached, torch.full_like(noise, 0.3), atol=1e-6)


@pytest.mark.parametrize(("order", "rate"), [(1, 2.0), (2, 4.0)])
def test_twice_the_steps_leave_a_half_or_at_most_a_quarter_of_the_error(order, rate):
    exact = BetweenGaussians((0.0, 1.0), [(0.1, 0.3)])
    noise = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.zeros(8, dtype=torch.int64)
    errors = []
    for steps in (20, 40):
        grid = times(steps, grid="uniform")
        reached = integrate(exact, noise, labels, grid=grid, order=order)
        errors.append(float((reached - (0.1 + 0.3 * noise)).abs().max()))
    assert errors[0] / errors[1] > 0.9 * rate


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_base_that_predicts_v_is_its_own_probability_flow(kind):
    """The same noise ends at the same image as by diffusion's own solver, up to the noise that the schedule's last step still has of the image."""
    schedule = make_schedule(kind, 1000)
    network = ExactDenoiser(schedule)
    noise = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.zeros(4, dtype=torch.int64)
    velocity = NetworkVelocity(network, schedule, source="noise")
    flowed = integrate(velocity, noise, labels, grid=times(60))
    solved = Flow(60).sample(NetworkDenoiser(network, schedule, "v"), noise, labels, seeds=labels)
    assert torch.allclose(flowed, solved, atol=0.02)
    assert torch.allclose(flowed, 0.1 + 0.3 * noise, atol=0.02)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_networks_time_has_the_snr_of_the_target(kind):
    schedule = make_schedule(kind, 1000)
    velocity = NetworkVelocity(nn.Identity(), schedule, source="noise")
    s = torch.linspace(0.02, 0.98, 25)
    t = velocity.times(s)
    assert torch.allclose(t.double(), schedule.time_of_angle(torch.atan2(1 - s, s).double()), atol=1e-2)
    assert torch.allclose(schedule.alpha(t) / schedule.sigma(t), s / (1 - s), rtol=1e-3)
    assert velocity.times(torch.tensor([1.0, 0.0])).tolist() == [-1.0, 999.0]


def test_an_output_of_zero_is_no_change_of_a_cell_and_the_linear_guess_from_noise():
    class Zero(nn.Module):
        def forward(self, x, t, class_labels, return_dict):
            return (torch.zeros_like(x),)

    schedule, x = make_schedule("cosine", 1000), torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    labels, s = torch.zeros(3, dtype=torch.int64), torch.tensor([0.1, 0.5, 0.9])
    assert not NetworkVelocity(Zero(), schedule, source="control")(x, s, labels).any()
    unit = BetweenGaussians((0.0, 1.0), [(0.0, 1.0)])
    assert torch.allclose(
        NetworkVelocity(Zero(), schedule, source="noise")(x, s, labels), unit(x, s, labels), atol=1e-6
    )


def test_guidance_scale_1_is_no_guidance_in_one_call_and_others_extrapolate():
    exact = BetweenGaussians((0.0, 1.0), [(0.0, 1.0), (-0.4, 0.2), (0.1, 0.3)])
    x, s = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5)), torch.tensor([0.2, 0.5, 0.8])
    labels = torch.tensor([2, 1, 2])
    plain, none = exact(x, s, labels), exact(x, s, torch.zeros_like(labels))
    exact.calls = 0
    assert torch.equal(GuidedVelocity(exact, 1.0, rows=3)(x, s, labels), plain)
    assert exact.calls == 1
    assert torch.allclose(GuidedVelocity(exact, 1.5, rows=3)(x, s, labels), none + 1.5 * (plain - none), atol=1e-6)
    assert exact.calls == 2


def test_guidance_hides_the_condition_and_not_the_plate():
    seen = Recording()
    noise_flow(GuidedVelocity(seen, 2.0, rows=len(TABLE))).translate(cells(3), target=TAXOL)
    assert set(seen.seen) == {3, 6, 0} | {5, 8, 2}


def test_an_unknown_plate_takes_the_row_of_no_plate():
    seen = Recording()
    noise_flow(seen).translate(cells(3), target=TAXOL)
    assert seen.seen[:3] == [TABLE.label(2, plate="P1"), TABLE.label(2, plate="P2"), TABLE.label(2)]


def test_a_flow_from_noise_depends_on_the_seed_alone_and_one_from_control_on_the_cell():
    batch = cells()
    other = CellBatch(-batch.images, batch.cell_ids, batch.plates, batch.conditions, batch.seeds)
    reseeded = CellBatch(batch.images, batch.cell_ids, batch.plates, batch.conditions, batch.seeds + 100)
    made = {
        name: noise_flow().translate(of, target=TAXOL).images
        for name, of in (("a", batch), ("b", other), ("c", reseeded))
    }
    assert torch.equal(made["a"], made["b"])
    assert not torch.allclose(made["a"], made["c"], atol=0.01)
    moved = [control_flow(noise_level=0.5).translate(of, target=TAXOL).images for of in (batch, other, reseeded)]
    assert not torch.allclose(moved[0], moved[1], atol=0.01)
    assert not torch.allclose(moved[0], moved[2], atol=0.01)


@pytest.mark.parametrize("made", [control_flow, noise_flow])
def test_images_leave_in_range_whatever_the_velocity_says(made):
    class Away(Velocity):
        def forward(self, x, s, labels):
            return torch.full_like(x, 9.0)

    assert torch.equal(made(Away()).translate(cells(), target=TAXOL).images, torch.ones(6, 2, 4, 4))


@pytest.mark.parametrize("made", [lambda: control_flow(noise_level=1.0), noise_flow])
def test_an_image_does_not_depend_on_its_batch_and_keeps_all_else(made):
    batch, before = cells(), torch.get_rng_state()
    whole = made().translate(batch, target=TAXOL)
    parts = [made().translate(part(batch, slice(i, i + 2)), target=TAXOL).images for i in range(0, 6, 2)]
    assert torch.allclose(torch.cat(parts), whole.images, atol=1e-5)
    assert (whole.cell_ids, whole.plates, whole.conditions) == (batch.cell_ids, batch.plates, ("taxol@1",) * 6)
    assert torch.equal(whole.seeds, batch.seeds)
    assert torch.equal(before, torch.get_rng_state())


def test_what_a_flow_was_not_trained_for_is_refused():
    with pytest.raises(ConditionError, match=r'control-flow: the flow was not trained on "DMSO"'):
        control_flow().translate(cells(), target=CONTROL)
    with pytest.raises(ConditionError, match=r'noise-flow: the flow was not trained on "taxo@1".*taxol@1'):
        noise_flow().translate(cells(), target=Condition("taxo", 1.0))
    batch = cells()
    treated = CellBatch(batch.images, batch.cell_ids, batch.plates, ("taxol@1",) * 6, batch.seeds)
    with pytest.raises(ConditionError, match='starts from DMSO alone, found a cell of "taxol@1"'):
        control_flow().translate(treated, target=TAXOL)
