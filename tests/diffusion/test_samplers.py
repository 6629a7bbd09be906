import math
from itertools import pairwise

import pytest
import torch
from gaussian_oracle import GaussianDenoiser, MixtureDenoiser, pixels

from cellbridge.diffusion.ancestral import Ddim, Ddpm
from cellbridge.diffusion.inversion import invert
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm
from cellbridge.diffusion.samplers import Flow, asked_times, network_calls, sample
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConfigError, ModelError

KINDS = ["linear", "cosine"]
GRIDS = ["uniform", "quadratic", "log_snr"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("inverting", [False, True])
def test_doubling_the_steps_divides_the_error_by_two_to_the_order(kind, order, inverting):
    """Against the exact ODE of a mixture, which keeps quantiles: F_T(x_T) = F_0(x_0)."""
    denoiser = MixtureDenoiser(make_schedule(kind, 1000))
    x = torch.linspace(-1, 1, 32, dtype=torch.float64).view(2, 1, 4, 4) * (1 if inverting else 2)
    start, end = (-1, 999) if inverting else (999, -1)
    errors = []
    for steps in (40, 80):
        solved = (invert if inverting else sample)(denoiser, x, torch.zeros(2).long(), steps=steps, order=order)
        errors.append((denoiser.quantile(solved, end) - denoiser.quantile(x, start)).square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)
    assert errors[1] < (2e-2 if order == 1 else 3e-5)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("inverting", [False, True])
def test_network_calls_are_as_counted(order, inverting):
    denoiser = GaussianDenoiser(make_schedule("cosine", 1000))
    x, labels = pixels()
    (invert if inverting else sample)(denoiser, x, labels, steps=7, order=order)
    assert denoiser.calls == network_calls(7, order, inverting=inverting)


METHODS = {
    "ddim": (lambda steps: Ddim(steps), 1),
    "pndm": (lambda steps: Pndm(steps), 3),
    "pndm, runge-kutta": (lambda steps: Pndm(steps, runge_kutta=True), 3),
    "dpm++": (lambda steps: DpmSolverPlusPlus(steps, grid="quadratic"), 2.4),
}


@pytest.mark.parametrize("name", METHODS)
def test_doubling_the_steps_divides_each_sampler_s_error_by_two_to_its_order(name):
    """Against the exact ODE of a mixture; the last steps to the clean image, which are of lower order, take over below 1e-3."""
    build, order = METHODS[name]
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_T = torch.linspace(-2, 2, 32, dtype=torch.float64).view(2, 1, 4, 4)
    labels = torch.zeros(2, dtype=torch.int64)
    errors = []
    for steps in (20, 40):
        solved = build(steps).sample(denoiser, x_T, labels, seeds=labels)
        errors.append((denoiser.quantile(solved, -1) - denoiser.quantile(x_T, 999)).square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_pndm_is_worse_than_ddim_where_the_schedule_starts_almost_without_signal():
    """On the cosine schedule; its start by Runge-Kutta does not converge there, and is refused."""
    denoiser = MixtureDenoiser(make_schedule("cosine", 1000))
    x_T = torch.linspace(-2, 2, 32, dtype=torch.float64).view(2, 1, 4, 4)
    labels = torch.zeros(2, dtype=torch.int64)
    errors = [
        (denoiser.quantile(sampler.sample(denoiser, x_T, labels, seeds=labels), -1) - denoiser.quantile(x_T, 999)).std()
        for sampler in (Pndm(10), Ddim(10))
    ]
    assert errors[0] > 3 * errors[1]
    with pytest.raises(ConfigError, match="signal at T - 1, of which this schedule has 5e-05"):
        Pndm(10, runge_kutta=True).sample(denoiser, x_T, labels, seeds=labels)


@pytest.mark.parametrize("kind", KINDS)
def test_ddim_without_noise_is_the_flow_s_first_order_bit_for_bit(kind):
    denoiser = MixtureDenoiser(make_schedule(kind, 1000))
    x_T, labels = pixels()
    flow = Flow(11, order=1, grid="uniform").sample(denoiser, x_T, labels, seeds=labels)
    assert torch.equal(Ddim(11).sample(denoiser, x_T, labels, seeds=labels), flow)


@pytest.mark.parametrize("grid", GRIDS)
def test_ddim_of_eta_one_is_ddpm_of_the_small_variance(grid):
    """Their means are one formula written twice, and they add the same noise."""
    denoiser = MixtureDenoiser(make_schedule("linear", 1000))
    x_T, labels = pixels()
    images = [
        sampler.sample(denoiser, x_T, labels, seeds=torch.arange(4))
        for sampler in (Ddim(11, 1.0, grid), Ddpm(11, grid=grid))
    ]
    assert torch.allclose(*images, atol=1e-9)


@pytest.mark.parametrize(("kind", "steps"), [("linear", 20), ("cosine", 200)])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_has_the_variance_of_its_linear_recursion(kind, steps, variance):
    """On Gaussian data x_s = g x_t + noise, so var_s = g^2 var_t + v; its limit for many steps is that of the data."""
    schedule, std = make_schedule(kind, 1000), 0.5
    denoiser = GaussianDenoiser(schedule, std=std)
    abar = [(schedule.alpha(t) ** 2).item() for t in torch.linspace(999, -1, steps + 1, dtype=torch.float64).split(1)]
    expected = 1.0
    for a, b in pairwise(abar):
        beta = 1 - a / b
        gain = a**0.5 * std**2 / (a * std**2 + 1 - a)
        mean = b**0.5 * beta / (1 - a) * gain + (a / b) ** 0.5 * (1 - b) / (1 - a)
        added = (beta if variance == "large" else (1 - b) / (1 - a) * beta) if b < 1 else 0.0
        expected = mean**2 * expected + added
    x_T = torch.randn(4, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = Ddpm(steps, variance=variance).sample(denoiser, x_T, torch.zeros(4).long(), seeds=torch.arange(4))
    assert images.var().item() == pytest.approx(expected, rel=4 * (2 / x_T.numel()) ** 0.5)
    if steps == 200:
        assert expected == pytest.approx(std**2, rel=0.05)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_that_no_step_has_room_for_is_refused(eta):
    with pytest.raises(ConfigError, match=r"expected 0 \(deterministic\) to 1"):
        Ddim(10, eta=eta)


@pytest.mark.parametrize(("steps", "runge_kutta"), [(1, False), (3, True)])
def test_too_few_steps_for_pndm_s_start_are_refused(steps, runge_kutta):
    with pytest.raises(ConfigError, match="needs at least"):
        Pndm(steps, runge_kutta=runge_kutta)


@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "small"), (1.0, "large")])
def test_the_ends_of_the_learned_range_are_the_fixed_variances(fraction, variance):
    class Fixed(GaussianDenoiser):
        def with_fraction(self, x_t, t, labels):
            return self(x_t, t, labels), torch.full_like(x_t, fraction)

    denoiser = Fixed(make_schedule("linear", 1000))
    x_T, labels = pixels()
    images = [Ddpm(9, kind).sample(denoiser, x_T, labels, seeds=torch.arange(4)) for kind in ("learned", variance)]
    assert torch.allclose(*images, atol=1e-12)


def test_a_learned_variance_of_a_model_that_has_none_is_refused():
    denoiser = GaussianDenoiser(make_schedule("linear", 1000))
    x_T, labels = pixels()
    with pytest.raises(ModelError, match="variance: learned_range"):
        Ddpm(9, "learned").sample(denoiser, x_T, labels, seeds=torch.arange(4))


def test_a_sampler_tells_the_times_it_asks_at_and_only_those_between_its_steps_are_of_order_two():
    schedule = make_schedule("cosine", 1000)
    assert asked_times(Ddim(steps=4), schedule) == [999.0, 749.0, 499.0, 249.0]
    asked = asked_times(Flow(steps=3, grid="quadratic"), schedule)
    assert asked[::2] == [999.0, 249.75, 0.0]
    assert all(
        late > between > early
        for late, between, early in zip(asked[::2], asked[1::2], [*asked[2::2], -1.0], strict=True)
    )
