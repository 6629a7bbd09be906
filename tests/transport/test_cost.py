"""Claims about transport costs, projections and whitened embeddings."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from cellbridge.errors import CouplingError
from cellbridge.transport.cost import project, random_projection, spread, transport_cost
from cellbridge.transport.whitening import shrunk_covariance, whiten_by_plate


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_subtraction(x, y):
    x, y = x.double().flatten(1), y.double().flatten(1)
    return (x[:, None] - y).square().sum(-1) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cost_is_half_the_squared_distance_of_all_pixels(dtype):
    x, y = normal(6, 5, 8, 8), normal(7, 5, 8, 8, seed=1)
    cost = transport_cost(x, y, dtype=dtype)
    assert cost.dtype == dtype
    torch.testing.assert_close(cost.double(), by_subtraction(x, y), rtol=2e-6, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("distance", [1e-1, 1e-4])
def test_cancellation_leaves_three_digits_of_near_duplicates(offset, distance):
    x = normal(20, 300) + offset
    y = x + distance * normal(20, 300, seed=1)
    cost = transport_cost(x, y)
    torch.testing.assert_close(cost.double(), by_subtraction(x, y), rtol=2e-3, atol=0)


def test_many_near_duplicates_keep_their_digits_too():
    centres = 100 * normal(2, 50)
    x = centres.repeat(40, 1) + 1e-3 * normal(80, 50, seed=1)
    y = centres.repeat(40, 1) + 1e-3 * normal(80, 50, seed=2)
    torch.testing.assert_close(transport_cost(x, y).double(), by_subtraction(x, y), rtol=2e-3, atol=0)


def test_a_cost_to_itself_is_exactly_zero_and_none_is_negative():
    x = normal(30, 1000) + 5
    cost = transport_cost(x, x)
    assert torch.equal(cost.diagonal(), torch.zeros(30))
    assert float(cost.min()) >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_are_left_as_they_are(dtype):
    x, y = normal(5, 9, dtype=dtype), normal(4, 9, seed=1, dtype=dtype)
    before = x.clone(), y.clone()
    transport_cost(x, y, dtype=dtype)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_autocast_does_not_round_the_cost():
    x, y = normal(6, 400), normal(6, 400, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = transport_cost(x, y)
    assert torch.equal(rounded, transport_cost(x, y))


def test_cost_stays_on_the_device_of_its_inputs():
    x, y = torch.empty(3, 5, 8, 8, device="meta"), torch.empty(4, 5, 8, 8, device="meta")
    assert transport_cost(x, y).device.type == "meta"
    assert transport_cost(x, y).shape == (3, 4)


def test_spread_is_the_standard_deviation_of_the_entries():
    cost = transport_cost(normal(6, 4), normal(5, 4, seed=1))
    assert spread(cost) == pytest.approx(float(np.std(cost.double().numpy())))


def test_projected_costs_are_right_in_the_mean_and_spread_as_a_chi_square():
    x, y = normal(8, 500), 1 + normal(8, 500, seed=1)
    whole = transport_cost(x, y, dtype=torch.float64)
    ratios = []
    for seed in range(40):
        matrix = random_projection(500, 64, generator=torch.Generator().manual_seed(seed))
        ratios.append(transport_cost(project(x, matrix), project(y, matrix), dtype=torch.float64) / whole)
    ratios = torch.stack(ratios)
    assert float(ratios.mean()) == pytest.approx(1, abs=0.02)
    assert float(ratios.std(0).mean()) == pytest.approx((2 / 64) ** 0.5, rel=0.1)


def test_projection_is_a_function_of_its_seed():
    first, again, other = (
        random_projection(30, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 4), "rows of the source have 5 numbers"),
        (torch.zeros(0, 5), torch.zeros(3, 5), "source: found shape"),
        (torch.zeros(5), torch.zeros(3, 5), "source: found shape"),
        (torch.zeros(3, 5), torch.tensor([[0.0] * 5, [float("nan")] * 5]), "target: 1 of 2 rows are not finite"),
        (torch.tensor([[float("inf")] * 5]), torch.zeros(3, 5), "source: 1 of 1 rows are not finite"),
    ],
)
def test_what_has_no_cost_is_refused(x, y, said):
    with pytest.raises(CouplingError, match=said) as refused:
        transport_cost(x, y)
    assert refused.value.exit_code == 2


def test_a_projection_for_other_rows_is_refused():
    with pytest.raises(CouplingError, match="drawn for 6"):
        project(torch.zeros(2, 5), random_projection(6, 2, generator=torch.Generator().manual_seed(0)))


def plates_with_effects(*, per_plate=300, d=12, seed=0):
    """Cells of three plates that differ in scale, rotation and offset; half of each plate are controls, the others are shifted."""
    rng = np.random.default_rng(seed)
    rows, plates, control = [], [], []
    for plate in range(3):
        mixing = np.eye(d) * (1 + plate) + 0.3 * rng.standard_normal((d, d))
        is_control = np.arange(per_plate) < per_plate // 2
        z = rng.standard_normal((per_plate, d)) + 2.0 * (~is_control)[:, None] * np.eye(d)[0]
        rows.append(z @ mixing + 5 * rng.standard_normal(d))
        plates += [f"P{plate}"] * per_plate
        control.append(is_control)
    return torch.as_tensor(np.concatenate(rows)), plates, torch.as_tensor(np.concatenate(control))


def test_controls_of_each_plate_have_zero_mean_and_unit_covariance():
    x, plates, control = plates_with_effects()
    white = whiten_by_plate(x, plates=plates, control=control, shrinkage=0.0).double()
    for plate in ("P0", "P1", "P2"):
        own = white[torch.tensor([p == plate for p in plates]) & control]
        torch.testing.assert_close(own.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-5, rtol=0)
        covariance = own.T @ own / len(own)
        torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64), atol=1e-5, rtol=0)


def test_whitening_measures_a_cell_by_mahalanobis_distance_to_its_controls():
    x, plates, control = plates_with_effects()
    white = whiten_by_plate(x, plates=plates, control=control, shrinkage=0.0).double()
    rows = torch.tensor([p == "P1" for p in plates])
    own = x[rows & control].numpy()
    precision = np.linalg.inv(np.cov(own.T, bias=True))
    away = x[rows].numpy() - own.mean(0)
    expected = np.einsum("ni,ij,nj->n", away, precision, away)
    np.testing.assert_allclose(white[rows].square().sum(1).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("n", [8, 40, 400])
def test_shrinkage_is_that_of_scikit_learn(n):
    x = normal(n, 10, dtype=torch.float64) * torch.arange(1.0, 11)
    x = x - x.mean(0)
    covariance, shrinkage = shrunk_covariance(x)
    expected, theirs = ledoit_wolf(x.numpy(), assume_centered=True)
    assert shrinkage == pytest.approx(theirs, rel=1e-9)
    np.testing.assert_allclose(covariance.numpy(), expected, rtol=1e-9)


def test_an_offset_and_a_scale_of_a_plate_leave_no_trace():
    x, plates, control = plates_with_effects()
    moved = x.clone()
    on_plate = torch.tensor([p == "P2" for p in plates])
    moved[on_plate] += 30.0
    first, second = (whiten_by_plate(v, plates=plates, control=control) for v in (x, moved))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_components_are_the_strongest_directions_and_256_at_most():
    x, plates, control = plates_with_effects()
    assert whiten_by_plate(x, plates=plates, control=control, components=3).shape == (900, 3)
    wide = normal(700, 300)
    all_control = torch.ones(700, dtype=torch.bool)
    assert whiten_by_plate(wide, plates=["P"] * 700, control=all_control).shape == (700, 256)
    strong = torch.cat([10 * normal(100, 2), normal(100, 5, seed=1)], dim=1)
    white = whiten_by_plate(strong, plates=["P"] * 100, control=torch.ones(100, dtype=torch.bool), components=2)
    explained = np.linalg.lstsq(strong[:, :2].numpy() - strong[:, :2].numpy().mean(0), white.numpy(), rcond=None)[1]
    assert float(explained.sum()) < 0.1 * float(white.square().sum())


def test_a_feature_that_never_varies_is_left_out():
    x, plates, control = plates_with_effects()
    with_constant = torch.cat([x, torch.full((900, 1), 3.0, dtype=x.dtype)], dim=1)
    first, second = (whiten_by_plate(v, plates=plates, control=control) for v in (x, with_constant))
    assert second.shape == (900, 12)
    torch.testing.assert_close(first.square().sum(1), second.square().sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"components": 13}, "expected 1 to 12"),
        ({"components": 0}, "0 components"),
        ({"plates": ["P0"]}, "900"),
        ({"control": torch.zeros(900, dtype=torch.bool)}, "plate P0: 0 control"),
    ],
)
def test_what_cannot_be_whitened_is_refused(change, said):
    x, plates, control = plates_with_effects()
    with pytest.raises(CouplingError, match=said):
        whiten_by_plate(x, **({"plates": plates, "control": control} | change))


def test_embeddings_that_are_not_finite_are_refused():
    x, plates, control = plates_with_effects()
    x[4, 2] = float("nan")
    with pytest.raises(CouplingError, match="1 of 900 embeddings are not finite"):
        whiten_by_plate(x, plates=plates, control=control)
