import numpy as np
import pytest
import torch

from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.config import BridgeConfig
from cellbridge.errors import CouplingError, ModelError, NumericalError
from cellbridge.runs import RunDir
from cellbridge.vector_files import load_vector_bridge, save_vector_bridge
from cellbridge.vectors import VectorBridge, fit_vectors

QUICK = {solver: BridgeConfig(solver=solver, budget_seconds=1.0, components=(1, 2)) for solver in ("mixture", "neural")}


def samples(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    source = rng.normal(size=(count, 3)).astype(np.float32)
    return source, (rng.normal(size=(count + 50, 3)) * [0.5, 1.0, 2.0] + 1).astype(np.float32)


@pytest.fixture(scope="module")
def bridges() -> dict[str, VectorBridge]:
    return {solver: fit_vectors(*samples(), reg=1.0, config=config) for solver, config in QUICK.items()}


def test_the_plan_of_gaussians_is_found_however_they_are_shifted_and_scaled() -> None:
    rng = np.random.default_rng(1)
    for shift, scale in ((0.0, 1.0), (1000.0, 0.01), (-50.0, 300.0)):
        source, target = shift + scale * rng.normal(size=(4000, 2)), scale * (0.5 * rng.normal(size=(4000, 2)) + 2)
        config = BridgeConfig(solver="mixture", budget_seconds=5.0, components=(1,))
        bridge = fit_vectors(source, target, reg=scale**2, config=config)
        moved = bridge.translate(source.astype(np.float64), seed=0)
        eye = torch.eye(2, dtype=torch.float64)
        truth = gaussian_bridge(eye[0] * 0, eye, eye[0] * 0, 0.25 * eye, reg=1.0)
        joint = np.cov(((source - shift) / scale).T, (moved.T / scale))[:2, 2:]
        assert np.allclose(joint, truth.cross.numpy(), atol=0.04)


@pytest.mark.parametrize("solver", ["mixture", "neural"])
def test_a_saved_bridge_gives_the_same_rows_at_any_batch_size(bridges, solver, tmp_path) -> None:
    source, _ = samples()
    save_vector_bridge(RunDir(tmp_path / "run"), bridges[solver])
    loaded = load_vector_bridge(tmp_path / "run")
    whole = bridges[solver].translate(source, seed=3)
    assert whole.dtype == np.float32
    assert np.allclose(loaded.translate(source, seed=3, batch_size=7), whole, atol=1e-4)
    assert not np.allclose(loaded.translate(source, seed=4), whole, atol=1e-2)
    assert loaded.solver == solver


def test_the_neural_bridge_goes_back_and_along_the_flow_and_the_mixture_says_that_it_does_not(bridges) -> None:
    source, target = samples()
    back = bridges["neural"].translate(target, seed=0, direction="backward")
    assert np.allclose(back.mean(0), source.mean(0), atol=0.25)
    along = bridges["neural"].translate(source, seed=0, method="ode")
    assert np.allclose(along.std(0), target.std(0), rtol=0.2)
    with pytest.raises(ModelError, match="solver neural"):
        bridges["mixture"].translate(source, seed=0, direction="backward")


def test_the_automatic_choice_says_what_it_chose_and_by_what() -> None:
    config = BridgeConfig(budget_seconds=1.5, components=(1, 2))
    found = fit_vectors(*samples(), reg=1.0, config=config)
    scores = found.facts["held_out_scores"]
    best = min(scores, key=lambda solver: sum(scores[solver].values()))
    assert found.solver == (best if found.facts["network_kept_at_step"] else "mixture")
    assert set(scores["neural"]) == {"energy_distance", "plan_off"}


def test_a_constant_column_stays_what_it_is(bridges) -> None:
    source, target = samples()
    source[:, 1], target[:, 2] = 7.0, -3.0
    config = BridgeConfig(solver="mixture", budget_seconds=1.0, components=(1, 2))
    moved = fit_vectors(source, target, reg=1.0, config=config).translate(source, seed=0)
    assert (moved[:, 2] == -3.0).all()
    assert np.allclose(moved.std(0)[:2], target.std(0)[:2], rtol=0.2)


def test_pairs_of_mini_batch_plans_can_be_learnt_from_first() -> None:
    config = BridgeConfig(solver="neural", pairs="coupled", budget_seconds=2.0, components=(1,))
    assert fit_vectors(*samples(), reg=1.0, config=config).facts["network_steps"] > 0


def test_the_global_random_states_are_untouched() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit_vectors(*samples(60), reg=1.0, config=BridgeConfig(solver="neural", budget_seconds=0.5, components=(1,)))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_input_that_cannot_be_bridged_is_named(bridges) -> None:
    source, target = samples()
    spoilt = source.copy()
    spoilt[5, 1] = np.nan
    for given, reg, text in (
        ((source, target), 0.0, "reg = 0.0"),
        ((source, target), float("nan"), "reg = nan"),
        ((spoilt, target), 1.0, "row 5, column 1"),
        ((source, target[:, :2]), 1.0, "3 columns and target 2"),
        ((source[:5], target), 1.0, "5 rows are too few"),
        ((source[:, 0], target), 1.0, r"expected numbers of shape \(n, d\)"),
    ):
        with pytest.raises(CouplingError, match=text):
            fit_vectors(*given, reg=reg, config=QUICK["mixture"])
    with pytest.raises(CouplingError, match="2 columns, but the bridge was fitted to 3"):
        bridges["mixture"].translate(source[:, :2], seed=0)
    with pytest.raises(NumericalError, match="nothing to bridge"):
        fit_vectors(np.ones((50, 2)), source[:, :2], reg=1.0, config=QUICK["mixture"])
