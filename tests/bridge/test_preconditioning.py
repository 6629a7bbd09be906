"""What holds for every preconditioning, and that each is its closed form where the network says nothing."""

import pytest
import torch
from torch import Tensor

from cellbridge.bridge.field_preconditioning import FieldPreconditioning
from cellbridge.bridge.fields import field_bridge, power_law, sample_field
from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.path import bridge_sample
from cellbridge.bridge.potential import PotentialPreconditioning
from cellbridge.bridge.preconditioning import AxisPreconditioning, GaussianPreconditioning, Preconditioning

SCALES = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
MEANS = torch.tensor([[5.0, 0.0, -1.0], [0.0, 2.0, 100.0]], dtype=torch.float64)


def coupled(reg: float, count: int = 20_000) -> tuple[Preconditioning, Tensor, Tensor]:
    """Return the preconditioning of a Gaussian bridge between axes of very different scales, and pairs of its plan."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    A, B = torch.diag(SCALES.square()), turn @ torch.diag(SCALES) @ turn.T
    bridge = gaussian_bridge(MEANS[0], A, MEANS[1], B, reg=reg)
    chance = torch.Generator().manual_seed(1)
    noise = torch.randn(2, count, 3, generator=chance, dtype=torch.float64)
    source = MEANS[0] + noise[0] * SCALES
    mean, covariance = bridge.conditional(source)
    return GaussianPreconditioning(bridge).double(), source, mean + noise[1] @ torch.linalg.cholesky(covariance).T


@pytest.mark.parametrize("reg", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("elapsed", [0.0, 0.02, 0.5, 0.98])
def test_inputs_and_targets_have_unit_variance_at_all_times_volatilities_and_scales(reg, direction, elapsed) -> None:
    preconditioning, source, target = coupled(reg)
    s = torch.full((len(source),), elapsed if direction == "forward" else 1 - elapsed, dtype=torch.float64)
    x = bridge_sample(source, target, s, reg=reg, generator=torch.Generator().manual_seed(2))
    end = target if direction == "forward" else source
    for seen in (preconditioning.inputs(x, s, direction), preconditioning.target(end, x, s, direction)):
        assert torch.allclose(seen.var(0), torch.ones(3, dtype=seen.dtype), atol=0.06)
        assert torch.allclose(seen.mean(0), torch.zeros(3, dtype=seen.dtype), atol=0.06)


def test_axes_of_independent_pairs_have_unit_variance_too() -> None:
    chance = torch.Generator().manual_seed(0)
    source, target = 3 * torch.randn(2000, 2, 8, 8, generator=chance) + 1, torch.randn(2000, 2, 8, 8, generator=chance)
    found = AxisPreconditioning(
        torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[9.0, 9.0], [1.0, 1.0]]), torch.zeros(2), reg=0.3
    )
    for elapsed in (0.0, 0.4, 0.95):
        s = torch.full((2000,), elapsed)
        x = bridge_sample(source, target, s, reg=0.3, generator=chance)
        for seen in (found.inputs(x, s, "forward"), found.target(target, x, s, "forward")):
            assert abs(float(seen.var()) - 1) < 0.02


def every_preconditioning() -> list[tuple[Preconditioning, Tensor]]:
    chance = torch.Generator().manual_seed(3)
    eye = torch.eye(3, dtype=torch.float64)
    mixtures = [
        MixtureBridge(torch.zeros(2), torch.randn(2, 3, generator=chance), eye.expand(2, -1, -1), reg=1.0)
        for _ in range(2)
    ]
    gaussian = coupled(1.0, count=10)[0].float()
    axis = AxisPreconditioning(MEANS, SCALES.square().expand(2, -1), torch.zeros(3), reg=1.0)
    spectra = [power_law(2, 8, slope=slope, mixing=torch.eye(2)) for slope in (2.0, 3.0)]
    field = FieldPreconditioning(*spectra, reg=1.0)
    vectors, images = torch.randn(6, 3, generator=chance), torch.randn(6, 2, 8, 8, generator=chance)
    plain = GaussianPreconditioning(gaussian_bridge(eye[0], eye, eye[1], 2 * eye, reg=1.0))
    potential = PotentialPreconditioning(*mixtures, plain)
    return [(gaussian, vectors), (axis, vectors), (potential, vectors), (field, images)]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_target_is_the_inverse_of_endpoint(which: int, direction) -> None:
    preconditioning, x = every_preconditioning()[which]
    s, output = torch.linspace(0.1, 0.9, 6), torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    end = preconditioning.endpoint(output, x, s, direction)
    assert torch.allclose(preconditioning.target(end, x, s, direction), output, atol=2e-3)


def test_a_silent_network_on_fields_is_the_bridge_between_them() -> None:
    spectra = [power_law(2, 8, slope=slope, mixing=torch.eye(2) + 0.3) for slope in (2.0, 3.0)]
    x = sample_field(spectra[0], 4, generator=torch.Generator().manual_seed(0)).float()
    found = FieldPreconditioning(*spectra, reg=0.5).endpoint(torch.zeros_like(x), x, torch.zeros(4), "forward")
    assert torch.allclose(found, field_bridge(*spectra, reg=0.5).mean(x), atol=1e-4)
