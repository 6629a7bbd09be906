"""`fit-bridge --condition` on a small study: what it publishes, resumes, decides and refuses, and that a bridge knows where it leads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from known_world import CHANNELS, HEAD, write_study

from cellbridge.assembly.bridges import load_bridge
from cellbridge.bridge.integrate import row_chances, simulate, times
from cellbridge.bridging import fitting, replay, rounds
from cellbridge.bridging.approach import Approach
from cellbridge.cli import main
from cellbridge.conditions import Condition
from cellbridge.data.store import open_store, write_store
from cellbridge.errors import ConditionError, ConfigError, CouplingError, ModelError, StoppedBySignal, StoreError
from cellbridge.metrics.plans import energy_distance
from cellbridge.runs import RunDir
from cellbridge.settings import load
from cellbridge.stages import fit_bridge, pretrain
from cellbridge.stages.report import _training_view
from cellbridge.training import loop
from cellbridge.training.events import read
from cellbridge.transport import coupling
from cellbridge.transport.sinkhorn import Solution

SMALL = ["network.widths=[8,8]", "network.attention_levels=[1]"]
STEPS = ["training.batch_size=8", "training.steps=4", "training.checkpoint_every=2", "training.log_every=2"]
BRIDGE = ["bridge.modes=8", "bridge.judged=6", "bridge.simulation_steps=3", "transport.components=8"]
SHRINKER, DIMMER = Condition("shrinker", 1.0), Condition("dimmer", 5.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store, a base, and a bridge started from it through the command line."""
    folder = tmp_path_factory.mktemp("bridges")
    store = write_study(folder, per_well=12)["reference"]
    pretrain.run(
        load(pretrain.Config, overrides=[*SMALL, *STEPS, f"store={store}", "sampler.steps=2"]), out=folder / "base"
    )
    asked = ["--condition", "shrinker", "--condition", "dimmer", "--base", folder / "base", "--seed", 3]
    settings = [part for setting in (*STEPS, *BRIDGE) for part in ("--set", setting)]
    command = ["fit-bridge", "--store", store, *asked, *settings, "--out", folder / "bridge"]
    assert main([str(part) for part in command]) == 0
    return {"store": store, "base": folder / "base", "bridge": folder / "bridge"}


@pytest.fixture(autouse=True)
def _without_more_pictures(study, monkeypatch):
    """The study's own bridge has drawn its."""
    monkeypatch.setattr(fitting, "save_grid", lambda *_: None)


def fitted(study: dict[str, Path], out: Path, *settings: str) -> Path:
    asked = [f"store={study['store']}", "conditions=[shrinker,dimmer]", f"base={study['base']}"]
    fit_bridge.run(load(fit_bridge.Config, overrides=[*asked, *STEPS, *BRIDGE, *settings]), out=out)
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_bridge(run).model.network.state_dict())


def moved(run: Path, images: torch.Tensor, target: Condition, *, back: bool = False) -> torch.Tensor:
    bridge = load_bridge(run)
    return simulate(
        bridge.endpoints[target],
        images,
        reg=bridge.middle_reg,
        chances=row_chances(torch.arange(len(images)), tuple(images.shape[1:])),
        direction="backward" if back else "forward",
        grid=times(20),
        step="mean",
    )


def cells(study: dict[str, Path], condition: str, *, split: str = "train") -> torch.Tensor:
    store = open_store(study["store"])
    return torch.from_numpy(store.images(store.select(split=split, conditions=[condition])))


def test_a_bridge_is_published_with_what_it_was_fitted_to(study):
    bridge, run = load_bridge(study["bridge"]), RunDir(study["bridge"])
    assert list(bridge.endpoints) == [SHRINKER, DIMMER]
    assert bridge.control == Condition("DMSO")
    assert bridge.card.plates == ("P1", "P2")
    assert bridge.card.coupling == "ot"
    assert bridge.sigma_range == pytest.approx((0.02, 0.4))
    own = cells(study, "DMSO"), cells(study, "shrinker@1"), cells(study, "dimmer@5")
    assert bridge.image_std == pytest.approx(float(torch.cat(own).var((0, 2, 3)).mean().sqrt()), rel=0.01)
    assert bridge.card.base_sha256 is not None
    assert json.loads(run.provenance.read_text())["seed"] == 3
    assert (run.samples / "step-00000004.png").is_file()


def coarse(images: torch.Tensor) -> torch.Tensor:
    """Return images without the noise of single pixels."""
    return torch.nn.functional.avg_pool2d(images, 4).flatten(1)


def test_events_tell_the_plan_and_what_held_out_cells_said(study):
    events = read(RunDir(study["bridge"]).events)
    logged = [event for event in events if event["event"] == "logged"]
    assert [event["step"] for event in logged] == [2, 4]
    for event in logged:
        assert {"loss/forward", "loss/backward", "plan_relative_entropy", "plan_cost", "plan_retained_mass"} <= set(
            event
        )
        assert 0 <= event["plan_relative_entropy"] < 0.2, "targets are fewer than sources, and a few of these are split"
        assert event["plan_retained_mass"] == 1.0
    said = next(event for event in events if event["event"] == "judged")
    names = {"held_out_loss", *(f"gain{way}{what}" for way in ("", "_forward", "_backward") for what in ("", "_error"))}
    names |= {f"held_out_distance{what}" for what in ("", "_linear", "_untouched")} | {"conditional_variance_ratio"}
    assert names <= set(said)
    metrics = json.loads(RunDir(study["bridge"]).metrics.read_text())
    assert metrics["held_out"] == {name: said[name] for name in metrics["held_out"]}
    assert 0 <= said["conditional_variance_ratio"] < 1


@pytest.mark.parametrize(
    "coupling",
    ["ot", pytest.param("independent", marks=pytest.mark.slow), pytest.param("gaussian", marks=pytest.mark.slow)],
)
def test_a_bridge_leads_nearer_to_each_condition_and_back_from_the_first_step(study, tmp_path, coupling):
    """Its linear guess is a bridge already: a compound that shrinks nuclei and one that dims stains."""
    still = fitted(study, tmp_path / "run", "training.learning_rate=1e-12", f"bridge.coupling={coupling}")
    control = cells(study, "DMSO", split="test")
    for condition in (SHRINKER, DIMMER):
        real = cells(study, condition.name, split="test")
        there, back = moved(still, control, condition), moved(still, real, condition, back=True)
        far = energy_distance(coarse(control), coarse(real))
        assert energy_distance(coarse(there), coarse(real)) < 0.5 * far
        assert energy_distance(coarse(back), coarse(control)) < 0.5 * far
    er = CHANNELS.index("ER")
    means = [moved(still, control, condition)[:, er].mean() for condition in (SHRINKER, DIMMER)]
    assert float(means[1]) < float(means[0]) - 0.01, "conditions are told apart"


@pytest.mark.parametrize("train", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_resumed_bridge_is_the_one_that_was_never_stopped(study, tmp_path, monkeypatch, train):
    settings = [f"bridge.train={train}", "training.accumulation=2", "adapter.rank=2"]
    whole = fitted(study, tmp_path / "whole", *settings)
    plain = loop._step

    def stopping(training, request):
        plain(training, request)
        if training.step == 3:
            request.signal_number = 15

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", stopping)
        with pytest.raises(StoppedBySignal):
            fitted(study, tmp_path / "halves", *settings)
    assert not RunDir(tmp_path / "halves").model.exists(), "nothing that looks trained"
    halves = fitted(study, tmp_path / "halves", *settings)
    first, second = weights(whole), weights(halves)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rounds_of_markovian_fitting_are_published_if_kept_and_resumed(study, tmp_path, monkeypatch):
    """What held-out cells say of them is given here: the first is nearer, the second is not."""
    settings = ["seed=3", "bridge.imf_rounds=3", "bridge.imf_steps=2", "bridge.imf_pairs=8"]
    plain, out = weights(study["bridge"]), tmp_path / "run"

    def published(*said: Approach) -> tuple[dict[str, torch.Tensor], list[bool]]:
        given = iter(said)
        monkeypatch.setattr(rounds, "approach", lambda before, after: next(given))
        told = json.loads(RunDir(fitted(study, out, *settings)).metrics.read_text())
        assert all((out / "rounds" / one["run"] / "origin.json").is_file() for one in told["imf_rounds"])
        gain = f"{told['held_out']['gain']:.3f} ± {told['held_out']['gain_error']:.3f}"
        assert gain in _training_view(out)["facts"].values(), "the report tells it of what is published"
        return weights(out), [one["kept"] for one in told["imf_rounds"]]

    first, kept = published(Approach(0.3, 0.1), Approach(0.1, 0.1))
    assert kept == [True, False], "a round that was refused is the last"
    assert not any(torch.equal(first[name], plain[name]) for name in first if "conv" in name)
    assert load_bridge(out).card.coupling == "ot+imf"
    monkeypatch.setattr(replay, "simulate", lambda *_, **__: 1 / 0)
    without, kept = published(Approach(0.0, 0.1))
    assert kept == [False]
    assert all(torch.equal(without[name], plain[name]) for name in plain), (
        "a refused round leaves the weights as they were"
    )
    assert load_bridge(out).card.coupling == "ot"


def test_another_bridge_gives_the_weights_to_start_from(study, tmp_path):
    again = fitted(study, tmp_path / "again", f"init_from={study['bridge']}", "training.learning_rate=1e-12")
    first, second = weights(study["bridge"]), weights(again)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    with pytest.raises(ModelError, match=r"conditions are .* Leave init_from out"):
        fitted(study, tmp_path / "other", f"init_from={study['bridge']}", "conditions=[dimmer]")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (["conditions=[taxol]"], ConditionError, "taxol"),
        (["conditions=[DMSO]"], ConditionError, "is the control"),
        (["plates=[P9]"], StoreError, "P9"),
        (["bridge.sigma_rel=0"], ConfigError, "without volatility there is no bridge"),
        (["bridge.imf_rounds=1", "bridge.held_out=0"], ConfigError, "only if held-out cells say so"),
        (["bridge.imf_rounds=1", "bridge.held_out=0.03"], ConfigError, "2 cells of DMSO are held out where 4"),
        (["bridge.sigma_rel=[0.4,0.1]"], ConfigError, "swap them"),
        (["transport.tau=0.9"], ConfigError, "set reg_rel"),
        (["base=null"], ConfigError, "Give --base, or set bridge.train: scratch"),
        (["network.widths=[8,16]"], ConfigError, "network is the base's"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(study, tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        fitted(study, tmp_path / "run", *settings)
    assert not (tmp_path / "run").exists()


def without(study: dict[str, Path], folder: Path, dropped: np.ndarray) -> str:
    opened = open_store(study["store"])
    kept = np.flatnonzero(~dropped)
    obs, counts = opened.obs.iloc[kept].reset_index(drop=True), opened.counts(kept)
    write_store(folder, obs=obs, counts=counts, intensity=opened.intensity, **HEAD)
    return f"store={folder}"


def test_conditions_that_share_no_plate_with_the_control_are_refused_naming_the_option(study, tmp_path):
    opened = open_store(study["store"])
    apart = without(study, tmp_path / "apart.zarr", (opened.condition_names == "DMSO") & (opened.plates == "P2"))
    with pytest.raises(CouplingError, match=r"no source cell on the plate.*across_plates: true"):
        fitted(study, tmp_path / "run", apart)
    assert not (tmp_path / "run").exists()
    run = fitted(study, tmp_path / "run", apart, "transport.across_plates=true")
    assert any(
        "paired with sources of other plates" in note for note in json.loads(RunDir(run).metrics.read_text())["notes"]
    )


def test_a_condition_of_hardly_any_cells_is_refused_saying_how_many_are_needed(study, tmp_path):
    opened = open_store(study["store"])
    few = np.flatnonzero((opened.condition_names == "dimmer@5") & (opened.plates != "P3"))[6:]
    dropped = np.isin(np.arange(len(opened.obs)), few)
    with pytest.raises(CouplingError, match=r"6 cells of dimmer@5 .* 20 or more"):
        fitted(study, tmp_path / "run", without(study, tmp_path / "few.zarr", dropped))
    assert not (tmp_path / "run").exists()


def test_a_coupling_that_does_not_converge_ends_with_exit_code_3(study, tmp_path, monkeypatch, capsys):
    plain = coupling.approach
    monkeypatch.setattr(coupling, "approach", lambda *a, **k: plain(*a, **{**k, "most": 1}))
    monkeypatch.setattr(coupling, "finish", lambda problem, potentials, **_: _unfinished(problem, potentials))
    command = ["fit-bridge", "--store", study["store"], "--base", study["base"], "--condition", "dimmer"]
    command += ["--set", "transport.reg_rel=0.5", "--out", tmp_path / "run"]
    assert main([str(part) for part in command]) == 3
    assert "marginals are off" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _unfinished(problem, potentials):
    plan = torch.full(problem.cost.shape, 1 / problem.cost.numel(), dtype=torch.float64)
    return Solution(plan, potentials, residual=1.0, iterations=1)
