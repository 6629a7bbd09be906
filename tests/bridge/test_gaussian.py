import pytest
import torch

from cellbridge.bridge.gaussian import GaussianBridge, gaussian_bridge
from cellbridge.errors import NumericalError

EYE = torch.eye(3, dtype=torch.float64)


def bridge(reg: float, seed: int = 0) -> GaussianBridge:
    chance = torch.Generator().manual_seed(seed)
    factors = torch.randn(2, 3, 3, generator=chance, dtype=torch.float64)
    A, B = factors @ factors.mT + 0.3 * EYE
    means = torch.randn(2, 3, generator=chance, dtype=torch.float64)
    return gaussian_bridge(means[0], A, means[1], B, reg=reg)


@pytest.mark.parametrize("reg", [0.1, 1.0, 10.0])
def test_the_off_diagonal_block_of_the_joint_precision_is_minus_identity_over_reg(reg: float) -> None:
    found = bridge(reg)
    top = torch.cat([found.source_covariance, found.cross], dim=1)
    joint = torch.cat([top, torch.cat([found.cross.T, found.target_covariance], dim=1)])
    assert torch.allclose(torch.linalg.inv(joint)[:3, 3:], -EYE / reg, atol=1e-9)


@pytest.mark.parametrize("reg", [0.1, 1.0, 10.0])
def test_the_cross_covariance_is_that_of_the_published_formula(reg: float) -> None:
    found = bridge(reg)
    values, basis = torch.linalg.eigh(found.source_covariance)
    root, inverse = ((basis * power) @ basis.T for power in (values.sqrt(), values.rsqrt()))
    inner, turn = torch.linalg.eigh(4 * root @ found.target_covariance @ root + reg**2 * EYE)
    D = (turn * inner.sqrt()) @ turn.T
    assert torch.allclose(found.cross, (root @ D @ inverse - reg * EYE) / 2, atol=1e-9)


def test_in_one_dimension_the_plan_is_that_of_sinkhorn_on_a_grid() -> None:
    ot = pytest.importorskip("ot")
    reg, x = 0.5, torch.linspace(-5, 5, 80, dtype=torch.float64)
    weights = [torch.exp(-((x - m) ** 2) / (2 * v)) for m, v in ((-0.5, 1.0), (1.0, 0.4))]
    a, b = (w / w.sum() for w in weights)
    cost = (x[:, None] - x).square() / 2
    plan = torch.from_numpy(ot.bregman.sinkhorn_log(a.numpy(), b.numpy(), cost.numpy(), reg, stopThr=1e-9))
    one = torch.ones(1, 1, dtype=torch.float64)
    found = gaussian_bridge(-0.5 * one[0], one, one[0], 0.4 * one, reg=reg)
    covariance = float((plan * (x[:, None] + 0.5) * (x - 1.0)).sum())
    assert covariance == pytest.approx(float(found.cross), rel=1e-4)


def test_marginals_begin_and_end_as_given_and_follow_the_drift() -> None:
    found = bridge(0.7)
    for s, mean, covariance in (
        (0.0, found.source_mean, found.source_covariance),
        (1.0, found.target_mean, found.target_covariance),
    ):
        assert torch.allclose(found.marginal(s)[0], mean)
        assert torch.allclose(found.marginal(s)[1], covariance)
    s, h = 0.4, 1e-5
    origin = torch.zeros(1, 3, dtype=torch.float64)
    slope = (found.drift(torch.eye(3).double(), s) - found.drift(origin, s)).T
    mean, covariance = found.marginal(s)
    moved = [found.marginal(s + side * h) for side in (1, -1)]
    assert torch.allclose((moved[0][0] - moved[1][0]) / (2 * h), found.drift(mean[None], s)[0], atol=1e-6)
    change = slope @ covariance + covariance @ slope.T + 0.7 * EYE
    assert torch.allclose((moved[0][1] - moved[1][1]) / (2 * h), change, atol=1e-6)


def test_the_drift_is_that_of_the_expected_endpoint() -> None:
    found, s = bridge(0.7), 0.3
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, covariance = found.marginal(s)
    with_end = s * found.target_covariance + (1 - s) * found.cross.T
    expected = found.target_mean + (x - mean) @ torch.linalg.inv(covariance) @ with_end.T
    assert torch.allclose(found.drift(x, s), (expected - x) / (1 - s))


def test_the_bridge_run_back_is_the_bridge_of_the_ends_exchanged() -> None:
    found, x = bridge(0.7), torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(found.backward_drift(x, 0.3), found.reversed().drift(x, 0.7))
    flow = (found.drift(x, 0.3) - found.backward_drift(x, 0.3)) / 2
    assert torch.allclose(found.probability_flow(x, 0.3), flow)


def test_a_singular_covariance_is_an_error() -> None:
    with pytest.raises(NumericalError, match="eigenvalue"):
        gaussian_bridge(torch.zeros(3), torch.zeros(3, 3), torch.zeros(3), torch.eye(3), reg=1.0)
