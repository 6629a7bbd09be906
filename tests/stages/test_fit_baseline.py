"""`fit-baseline` on a small study: what it publishes, resumes and refuses, and that a flow listens to its labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from known_world import CHANNELS, HEAD, write_study

from cellbridge import flow_fitting
from cellbridge.assembly.bases import condition_table, load_base
from cellbridge.assembly.flows import flow_translator, load_flow
from cellbridge.cli import main
from cellbridge.conditions import Condition
from cellbridge.config import SolverConfig
from cellbridge.data.store import open_store, write_store
from cellbridge.errors import ConditionError, ConfigError, CouplingError, StoppedBySignal, StoreError
from cellbridge.flow_fitting import WithinPlates, flow_cells
from cellbridge.runs import RunDir
from cellbridge.settings import load
from cellbridge.stages import fit_baseline, pretrain
from cellbridge.training import loop
from cellbridge.training.events import read
from cellbridge.typing import CellBatch

KINDS = ("control-flow", "noise-flow")
SMALL = ["network.widths=[8,8]", "network.attention_levels=[1]"]
STEPS = [
    "training.batch_size=8",
    "training.steps=4",
    "training.checkpoint_every=2",
    "training.log_every=2",
    "sampler.steps=2",
]
SHRINKER, DIMMER = Condition("shrinker", 1.0), Condition("dimmer", 5.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store, a base, and both flows started from it through the command line."""
    folder = tmp_path_factory.mktemp("flows")
    store = write_study(folder, per_well=6)["reference"]
    pretrain.run(load(pretrain.Config, overrides=[*SMALL, *STEPS, f"store={store}"]), out=folder / "base")
    found = {"store": store, "base": folder / "base"}
    for kind in KINDS:
        asked = ["--kind", kind, "--condition", "shrinker", "--condition", "dimmer", "--base", folder / "base"]
        settings = [part for setting in STEPS for part in ("--set", setting)]
        command = ["fit-baseline", "--store", store, *asked, *settings, "--out", folder / kind]
        assert main([str(part) for part in command]) == 0
        found[kind] = folder / kind
    return found


@pytest.fixture(autouse=True)
def _without_more_pictures(study, monkeypatch):
    """The study's own flows have drawn theirs."""
    monkeypatch.setattr(flow_fitting, "save_grid", lambda *_: None)


def fitted(study: dict[str, Path], out: Path, *settings: str, kind: str = "control-flow") -> Path:
    asked = [f"store={study['store']}", f"kind={kind}", "conditions=[shrinker,dimmer]"]
    fit_baseline.run(load(fit_baseline.Config, overrides=[*asked, *STEPS, *settings]), out=out)
    return out


def cells(study: dict[str, Path], split: str = "test") -> CellBatch:
    store = open_store(study["store"])
    rows = store.select(split=split, conditions=["DMSO"])[:4]
    return CellBatch(
        torch.from_numpy(store.images(rows)),
        tuple(store.obs.index[rows]),
        tuple(store.plates[rows]),
        ("DMSO",) * len(rows),
        torch.arange(len(rows)),
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_flow(run).velocity.network.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_is_published_with_what_it_was_trained_on(study, kind):
    flow = load_flow(study[kind])
    card = flow.card
    assert card.recipe.kind == kind
    assert card.network.conditions == ("", "DMSO", "shrinker@1", "dimmer@5")
    assert card.network.plates == ("P1", "P2")
    assert card.base_sha256 is not None
    assert card.targets == (("DMSO",) if kind == "noise-flow" else ()) + ("shrinker@1", "dimmer@5")
    assert condition_table(card.network).plates == (("P1", "P2") if kind == "noise-flow" else ())
    run = RunDir(study[kind])
    assert {path.name for path in run.model.iterdir()} >= {"unet", "cellbridge.json", "manifest.json"}
    assert (run.samples / "step-00000004.png").is_file()
    logged = [entry for entry in read(run.events) if entry["event"] == "logged"]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert all(np.isfinite(entry["loss"]) for entry in logged)


@pytest.mark.parametrize("kind", KINDS)
def test_translations_are_images_of_the_cells_in_range(study, kind):
    flow, batch = load_flow(study[kind]), cells(study)
    result = flow_translator(flow.velocity, flow.card, SolverConfig(steps=3)).translate(batch, target=DIMMER)
    assert result.images.shape == batch.images.shape
    assert bool(torch.isfinite(result.images).all())
    assert float(result.images.abs().max()) <= 1
    assert result.conditions == ("dimmer@5",) * 4


def test_a_flow_from_control_cells_starts_as_the_identity_and_one_from_noise_as_its_base(study, tmp_path):
    """Before its first step: no velocity, and that of the base's v with the same noise."""
    still = load_flow(fitted(study, tmp_path / "still", "training.learning_rate=1e-12", f"base={study['base']}"))
    batch = cells(study)
    kept = flow_translator(still.velocity, still.card, SolverConfig(steps=2), strength=0.0).translate(
        batch, target=DIMMER
    )
    assert torch.allclose(kept.images, batch.images, atol=1e-5)
    noise = fitted(
        study, tmp_path / "noise", "training.learning_rate=1e-12", f"base={study['base']}", kind="noise-flow"
    )
    own, base = weights(noise), load_base(study["base"]).network.state_dict()
    for name in ("conv_in.weight", "conv_out.weight", "mid_block.resnets.0.conv1.weight"):
        assert torch.allclose(own[f"backbone.{name}"], base[name], atol=1e-6)


def test_labels_matter_once_trained_on_effects_that_differ(study, tmp_path):
    """A compound that shrinks cells and one that dims them: the stains that each changes are told apart."""
    settings = ["training.steps=40", "training.batch_size=8", "training.learning_rate=1e-2", "training.ema_decay=0.9"]
    flow = load_flow(fitted(study, tmp_path / "run", *SMALL, *settings, "flow.noise_probability=0"))
    batch, solver = cells(study, "train"), SolverConfig(steps=4)
    translator = flow_translator(flow.velocity, flow.card, solver, strength=0.0)
    means = {target: translator.translate(batch, target=target).images.mean((0, 2, 3)) for target in (SHRINKER, DIMMER)}
    dna, er = CHANNELS.index("DNA"), CHANNELS.index("ER")
    assert float(means[DIMMER][er]) < float(means[SHRINKER][er]) - 0.01
    assert float(means[SHRINKER][dna]) < float(means[DIMMER][dna]) - 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_flow_is_the_one_that_was_never_stopped(study, tmp_path, monkeypatch, kind):
    settings = [*SMALL, "training.accumulation=2"]
    whole = fitted(study, tmp_path / "whole", *settings, kind=kind)
    plain = loop._step

    def stopping(training, request):
        plain(training, request)
        if training.step == 3:
            request.signal_number = 15

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", stopping)
        with pytest.raises(StoppedBySignal):
            fitted(study, tmp_path / "halves", *settings, kind=kind)
    halves = fitted(study, tmp_path / "halves", *settings, kind=kind)
    assert json.loads((halves / "events.jsonl").read_text().splitlines()[-1])["event"] == "finished"
    first, second = weights(whole), weights(halves)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_every_condition_is_learnt_as_often_as_another(study, kind):
    """The controls, of which there are four wells to three, as any other."""
    store, card = open_store(study["store"]), load_flow(study[kind]).card
    rows = store.select(split="train")
    config = load(
        fit_baseline.Config,
        overrides=[f"store={study['store']}", f"kind={kind}", "conditions=[shrinker,dimmer]", "training.batch_size=64"],
    )
    cells = flow_cells(store, rows, card, config=config, device=torch.device("cpu"))
    labels = torch.cat([cells.lines(step, 0).labels for step in range(16)]) % len(card.network.conditions)
    shown = labels[labels > 0]  # the rest had their condition hidden
    shares = torch.bincount(shown, minlength=4)[1:] / len(shown)
    expected = [1 / 3, 1 / 3, 1 / 3] if kind == "noise-flow" else [0.0, 0.5, 0.5]
    assert torch.allclose(shares, torch.tensor(expected), atol=0.05)


def test_pairs_are_of_one_plate_and_use_every_control_once_for_each_condition(study):
    store, card = open_store(study["store"]), load_flow(study["control-flow"]).card
    rows = store.select(split="train")
    names, plates = store.condition_names[rows], store.plates[rows]
    pairs = WithinPlates(names, plates, card, across_plates=False, seed=0)
    (sources, targets), (_, later) = pairs(0), pairs(1)
    assert len(sources) == pairs.count
    assert (plates[sources] == plates[targets]).all()
    controls = np.flatnonzero(names == "DMSO")
    for condition in ("shrinker@1", "dimmer@5"):
        assert sorted(sources[names[targets] == condition]) == list(controls)
    assert set(names[targets]) == {"shrinker@1", "dimmer@5"}
    assert (targets != later).any()
    assert (pairs(0)[1] == targets).all()


def test_another_flow_gives_the_weights_to_start_from(study, tmp_path):
    again = fitted(
        study,
        tmp_path / "again",
        *SMALL,
        f"init_from={study['control-flow']}",
        "training.learning_rate=1e-12",
    )
    first, second = weights(study["control-flow"]), weights(again)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize(
    ("settings", "kind", "error", "words"),
    [
        (["conditions=[taxol]"], "control-flow", ConditionError, "taxol"),
        (["conditions=[DMSO]"], "control-flow", ConditionError, "is the control"),
        (["plates=[P9]"], "control-flow", StoreError, "P9"),
        (["flow.noise_level=0.5"], "noise-flow", ConfigError, "flow.noise_level is of control-flow"),
        (["base=BASE", "network.widths=[8,8]"], "control-flow", ConfigError, "network is the base's"),
        (["base=BASE", "init_from=FLOW"], "control-flow", ConfigError, "both give the weights"),
        (["sampler.method=ddim"], "noise-flow", ConfigError, "solver.method = ddim does nothing for a flow"),
        (["sampler.guidance_rescale=0.5", "sampler.guidance_scale=2"], "noise-flow", ConfigError, "guidance_rescale"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(study, tmp_path, settings, kind, error, words):
    given = [text.replace("BASE", str(study["base"])).replace("FLOW", str(study["control-flow"])) for text in settings]
    with pytest.raises(error, match=words):
        fitted(study, tmp_path / "run", *given, kind=kind)
    assert not (tmp_path / "run").exists()


def test_conditions_that_share_no_plate_with_the_control_are_refused_naming_the_option(study, tmp_path):
    """A store whose plate P2 has no control cell."""
    opened = open_store(study["store"])
    kept = np.flatnonzero(~((opened.condition_names == "DMSO") & (opened.plates == "P2")))
    obs, counts = opened.obs.iloc[kept].reset_index(drop=True), opened.counts(kept)
    write_store(tmp_path / "apart.zarr", obs=obs, counts=counts, intensity=opened.intensity, **HEAD)
    apart = f"store={tmp_path / 'apart.zarr'}"
    with pytest.raises(CouplingError, match=r"no source cell on the plate.*across_plates: true"):
        fitted(study, tmp_path / "run", *SMALL, apart)
    assert not (tmp_path / "run").exists()
    fitted(study, tmp_path / "run", *SMALL, apart, "across_plates=true")
    assert RunDir(tmp_path / "run").require_model().is_dir()


def translated(study: dict[str, Path], kind: str, out: Path, *settings: object) -> Path:
    options = ["--method", "flow", "--baseline", study[kind], "--set", "solver.grid=uniform"]
    assert (
        main([str(part) for part in ("translate", "--store", study["store"], *options, *settings, "--out", out)]) == 0
    )
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_translate_takes_a_flow_and_says_what_it_was(study, tmp_path, kind, capsys):
    out = translated(study, kind, tmp_path / "made.zarr", "--n", 4, "--nfe", 9)
    made = open_store(out)
    assert set(made.obs["Metadata_Model"]) == {kind}
    assert set(made.obs["Metadata_TargetCondition"]) == {"shrinker@1", "dimmer@5"}
    attributes = made.info.attributes
    assert attributes["trained_on"] == {"flow": ["P1", "P2"]}
    calls = 4 if kind == "control-flow" else 2  # a step by the midpoint rule, with guidance or without
    assert attributes["steps"] == 9 // calls
    assert attributes["network_calls"] == calls * (9 // calls)
    assert attributes.get("strength") == (1.0 if kind == "control-flow" else None)


def test_a_flow_shows_its_way_and_draws_a_cell_several_times(study, tmp_path):
    settings = ["--target", "dimmer", "--n", 2, "--nfe", 4, "--set", "solver.guidance_scale=1", "--strength", 0.5]
    out = translated(
        study, "control-flow", tmp_path / "made.zarr", *settings, "--samples-per-cell", 2, "--trajectories", 1
    )
    assert sorted(open_store(out).obs["Metadata_Sample"].astype(int)) == [0, 0, 1, 1]
    frames = open_store(tmp_path / "made_trajectories.zarr")
    assert len(frames.obs) == 3  # the cell, and each of two steps


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("control-flow", ["--target", "DMSO"], "the flow was not trained on"),
        ("control-flow", ["--source", "dimmer", "--target", "shrinker"], "starts from DMSO alone"),
        ("control-flow", ["--strength", 0, "--samples-per-cell", 2], "all draws of a cell are equal"),
        ("control-flow", ["--base", "BASE"], "base does nothing for method flow"),
        ("control-flow", ["--set", "solver.threshold=clip"], "solver.threshold = clip does nothing for a flow"),
        ("noise-flow", ["--strength", 0.5], "noise-flow starts from noise alone"),
        ("noise-flow", ["--trajectories", 1], "noise-flow makes new ones"),
    ],
)
def test_what_a_flow_cannot_translate_is_refused(study, tmp_path, capsys, kind, settings, words):
    asked = [str(study["base"]) if part == "BASE" else str(part) for part in settings]
    command = ["translate", "--store", str(study["store"]), "--method", "flow", "--baseline", str(study[kind])]
    assert main([*command, *asked, "--out", str(tmp_path / "made.zarr")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "made.zarr").exists()
