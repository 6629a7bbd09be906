"""Power-function averages: closed forms of their decay and profile, and any profile from snapshots of two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from small_training import digest, events

from cellbridge.config import PowerEmaConfig, TrainingConfig
from cellbridge.errors import ConfigError, NumericalError, ResourceError, RunError
from cellbridge.runs import RunDir
from cellbridge.settings import load
from cellbridge.training import power_ema
from cellbridge.training.events import Finished
from cellbridge.training.power_ema import Stored, coefficients, gamma_of, power_decay, reconstruct

PUBLISHED = [(0.05, 16.972199, 0.8347470), (0.10, 6.937204, 0.9233272), (0.15, 3.557869, 0.9552252)]


@pytest.mark.parametrize(("sigma_rel", "gamma", "decay"), PUBLISHED)
def test_power_and_decay_have_the_published_values(sigma_rel, gamma, decay):
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=5e-7)
    assert power_decay(99, gamma_of(sigma_rel)) == pytest.approx(decay, abs=5e-8)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25])
def test_the_profile_of_a_power_has_the_relative_standard_deviation_it_was_asked_for(sigma_rel):
    tau = (np.arange(200_000) + 0.5) / 200_000
    weights = tau ** gamma_of(sigma_rel) / (tau ** gamma_of(sigma_rel)).sum()
    mean = (weights * tau).sum()
    assert np.sqrt((weights * (tau - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-4)


def averages_of(path: torch.Tensor, *sigmas: float, every: int) -> tuple[power_ema.Averages, list[Stored]]:
    """Track (step, weight) weights, with a snapshot of each average at every `every` steps."""
    tracked = {sigma: {"w": torch.zeros(path.shape[1], dtype=torch.float64)} for sigma in sigmas}
    stored = []
    for k, weights in enumerate(path):
        power_ema.update(tracked, [weights], updates=k)
        if (k + 1) % every == 0:
            stored += [Stored(k + 1, sigma, {"w": average["w"].clone()}) for sigma, average in tracked.items()]
    return tracked, stored


def test_the_first_average_is_the_weights_and_the_average_of_a_constant_is_that_constant():
    path = torch.full((20, 3), 1.7, dtype=torch.float64)
    tracked, stored = averages_of(path, 0.05, 0.2, every=1)
    assert torch.equal(stored[0].tensors["w"], path[0])
    for average in tracked.values():
        assert torch.allclose(average["w"], path[0], atol=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.2])
def test_the_average_of_a_rising_weight_lags_by_the_mean_of_the_profile(sigma_rel):
    path = torch.arange(1, 2001, dtype=torch.float64)[:, None]
    tracked, _ = averages_of(path, sigma_rel, every=2000)
    gamma = gamma_of(sigma_rel)
    assert tracked[sigma_rel]["w"].item() / 2000 == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


def test_a_stored_profile_is_made_of_itself_alone():
    stored = [(step, sigma) for step in (100, 200, 300, 400) for sigma in (0.05, 0.10)]
    for index, (step, sigma) in enumerate(stored):
        shares = coefficients(stored, step=step, sigma_rel=sigma)
        assert shares == pytest.approx(np.eye(len(stored))[index], abs=1e-6)


def test_the_shares_of_any_profile_add_up_to_one():
    stored = [(step, sigma) for step in range(50, 401, 50) for sigma in (0.05, 0.10)]
    assert coefficients(stored, step=400, sigma_rel=0.17).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15, 0.2])
def test_a_profile_made_of_snapshots_is_the_one_that_would_have_been_tracked(sigma_rel):
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(800, 64, generator=generator, dtype=torch.float64).cumsum(0) / 800**0.5
    direct, _ = averages_of(path, sigma_rel, every=800)
    _, stored = averages_of(path, 0.05, 0.10, every=50)
    made = reconstruct(stored, step=800, sigma_rel=sigma_rel)["w"]
    missed, moved = (made - direct[sigma_rel]["w"]).norm(), (path[-1] - direct[sigma_rel]["w"]).norm()
    assert missed / moved < 0.03


TRACKED = {"power_ema": {"sigma_rel": [0.05, 0.1], "snapshot_every": 4}}


def finished(run: Path, **settings) -> Finished:
    *_, last = events(run, **settings)
    assert isinstance(last, Finished)
    return last


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    finished(run, **TRACKED)
    return run


def test_averages_are_in_the_checkpoint_and_bit_equal_after_a_resume(tmp_path):
    finished(tmp_path / "resumed", **TRACKED, steps=12, decay="constant")
    finished(tmp_path / "resumed", **TRACKED, steps=24, decay="constant")
    finished(tmp_path / "through", **TRACKED, steps=24, decay="constant")
    runs = [RunDir(tmp_path / name).checkpoint(24) / "averages.safetensors" for name in ("resumed", "through")]
    resumed, through = (load_file(path) for path in runs)
    assert digest(resumed) == digest(through)
    assert {name.split("/")[0] for name in resumed} == {"0.05", "0.1"}


def test_tracking_changes_no_other_number(whole, tmp_path):
    finished(tmp_path)
    for name in ("weights", "ema", "optimizer"):
        files = [load_file(RunDir(run).checkpoint(24) / f"{name}.safetensors") for run in (whole, tmp_path)]
        assert digest(files[0]) == digest(files[1]), name
    assert not (RunDir(tmp_path).checkpoint(24) / "averages.safetensors").exists()
    state = json.loads((RunDir(tmp_path).checkpoint(24) / "state.json").read_text())
    assert not any("power_ema" in key for key in state["settings"])


def test_a_tracked_average_is_published_as_it_is(whole, tmp_path):
    published = finished(tmp_path, power_ema={"sigma_rel": [0.05, 0.1], "publish": 0.1}).ema
    saved = load_file(RunDir(whole).checkpoint(24) / "averages.safetensors")
    for name, tensor in published.items():
        assert torch.equal(tensor, saved[f"0.1/{name}"])


def test_another_average_is_made_of_the_snapshots_of_the_run(whole, tmp_path):
    snapshots = RunDir(whole).averages
    assert sorted(path.stem for path in snapshots.iterdir()) == [f"step-{step:08d}" for step in range(4, 25, 4)]
    made = finished(tmp_path / "made", power_ema=TRACKED["power_ema"] | {"publish": 0.15}).ema
    direct = finished(tmp_path / "direct", power_ema={"sigma_rel": [0.15], "publish": 0.15}).ema
    standard = finished(tmp_path / "standard").ema
    missed = sum((made[name] - direct[name]).square().sum() for name in made) ** 0.5
    apart = sum((standard[name] - direct[name]).square().sum() for name in made) ** 0.5
    assert missed < 0.1 * apart


def test_a_checkpoint_of_other_profiles_is_refused_by_name(tmp_path):
    finished(tmp_path, **TRACKED, steps=12, decay="constant")
    with pytest.raises(RunError, match=r"power_ema.sigma_rel: \[0.05, 0.1\] there, nothing now"):
        finished(tmp_path, steps=24, decay="constant")


def test_other_profiles_are_tracked_from_then_on_where_that_is_asked_for(tmp_path):
    finished(tmp_path, **TRACKED, steps=12, decay="constant")
    settings = {"power_ema": {"sigma_rel": [0.1, 0.2]}, "decay": "constant", "accept_changes": True}
    assert finished(tmp_path, **settings, steps=12).step == 12
    finished(tmp_path, **settings, steps=24, checkpoint_every=24)
    finished(tmp_path / "through", power_ema={"sigma_rel": [0.1]}, decay="constant")
    both = [load_file(RunDir(run).checkpoint(24) / "averages.safetensors") for run in (tmp_path, tmp_path / "through")]
    assert {name.split("/")[0] for name in both[0]} == {"0.1", "0.2"}
    for name, tensor in both[1].items():
        assert torch.equal(both[0][name], tensor)


def test_a_diverging_training_keeps_no_average_that_is_not_finite(tmp_path):
    with pytest.raises(NumericalError, match="not finite"):
        finished(tmp_path, power_ema={"sigma_rel": [0.1], "snapshot_every": 1}, learning_rate=1e20, warmup_steps=0)
    for path in RunDir(tmp_path).averages.glob("*"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path


def test_a_full_disk_is_named_with_the_snapshot_that_did_not_fit(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(power_ema, "save_file", full)
    with pytest.raises(ResourceError, match=r"averages/step-00000004.safetensors: cannot be written \(No space left"):
        finished(tmp_path, **TRACKED)
    assert list(RunDir(tmp_path).averages.iterdir()) == []


def test_what_a_killed_process_left_of_a_snapshot_is_cleared_away(tmp_path):
    left = RunDir(tmp_path).averages / ".step-00000004.safetensors.123.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    finished(tmp_path, **TRACKED)
    assert not left.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("power_ema.snapshot_every=5", "set power_ema.sigma_rel"),
        ("power_ema={sigma_rel: [0.1], publish: 0.2}", "set snapshot_every"),
        ("power_ema.sigma_rel=[0.4]", "less than 0.28"),
    ],
)
def test_averages_that_cannot_be_made_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load(TrainingConfig, overrides=[settings])
    assert PowerEmaConfig() == TrainingConfig().power_ema
