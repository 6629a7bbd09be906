"""Guidance by other models, through the stages: a weaker self in its three forms, a classifier of noisy images, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from known_world import CHANNELS, HEAD, SIZE, WELLS, write_study

from cellbridge import assembly
from cellbridge.config import SolverConfig
from cellbridge.data.store import describe, open_store, write_store
from cellbridge.diffusion.classifier_guidance import LEAST_SIGNAL
from cellbridge.errors import CheckpointError, ConditionError, ConfigError, ModelError
from cellbridge.runs import RunDir, fingerprint
from cellbridge.settings import load
from cellbridge.stages import finetune, generate, pretrain, train_classifier, translate
from cellbridge.training import checkpoint

SMALL = ["network.attention_levels=[]", "training.batch_size=8", "training.learning_rate=0.05", "sampler.steps=2"]
STEPS = ["training.steps=4", "training.checkpoint_every=2", "training.keep_last=3"]
AVERAGES = ["training.power_ema.sigma_rel=[0.05,0.1]", "training.power_ema.snapshot_every=2"]
SOLVED = ["solver.steps=2", "device=cpu"]
TARGET = "shrinker@1"


def trained(stage: Any, out: Path, *settings: str) -> Path:
    stage.run(load(stage.Config, overrides=list(settings)), out=out)
    return out


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint base, a smaller one, one of the control with an adapter, and a classifier of noisy images and one of clean ones."""
    root = tmp_path_factory.mktemp("guided")
    store = f"store={write_study(root, per_well=2)['reference']}"
    joint = [store, *SMALL, *STEPS, "conditions=all"]
    trained(pretrain, root / "joint", *joint, *AVERAGES, "network.widths=[8,16]")
    trained(pretrain, root / "smaller", *joint, "network.widths=[8,8]", "schedule.prediction=x_0", "plates=[P1]")
    trained(pretrain, root / "control", store, *SMALL, *STEPS, "network.widths=[8,8]")
    tuned = [store, f"base={root / 'control'}", f"condition={TARGET}", "adapter.rank=2", *SMALL[1:], *STEPS, *AVERAGES]
    trained(finetune, root / "adapter", *tuned)
    classifier = [store, "widths=[8,8]", "training.batch_size=16"]
    trained(train_classifier, root / "noisy", *classifier, "training.steps=40", "noise={}", "plates=[P1]")
    trained(train_classifier, root / "clean", *classifier, "training.steps=2")
    return root


def generated(study: Path, out: Path, *settings: str) -> torch.Tensor:
    given = [f"base={study / 'joint'}", f"conditions=[{TARGET}]", "n=3", *SOLVED, *settings]
    trained(generate, out, *given)
    cells = open_store(out)
    return torch.from_numpy(cells.images(range(3)))


def solver(**settings: Any) -> SolverConfig:
    return SolverConfig(steps=2, **settings)


def guided(study: Path, settings: SolverConfig, name: str = "joint") -> tuple[assembly.Model, Any]:
    base = assembly.load_base(study / name)
    adapters = [] if name == "joint" else [study / "adapter"]
    models = {condition.name: model for condition, model in assembly.load_models(base, adapters).items()}
    return models[TARGET], assembly.guided_model(models[TARGET], settings, assembly.load_guides(settings, base))


def noisy(model: assembly.Model, t: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_t = torch.randn(3, len(CHANNELS), SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return x_t, torch.full((3,), t), torch.full((3,), model.row)


def test_a_smaller_base_of_another_prediction_guides_by_extrapolating_away_from_it(study):
    model, denoiser = guided(study, solver(guidance_scale=2.5, weaker=study / "smaller"))
    smaller = assembly.load_base(study / "smaller")
    inputs = noisy(model, 400.0)
    own, weaker = model.denoiser(*inputs), smaller.denoiser()(*inputs[:2], torch.full((3,), smaller.card.row(TARGET)))
    assert torch.allclose(denoiser(*inputs), weaker + 2.5 * (own - weaker), atol=1e-5)


@pytest.mark.parametrize("form", ["checkpoints/step-00000002", "averages/step-00000002.safetensors"])
@pytest.mark.parametrize("run", ["joint", "adapter"])
def test_an_earlier_self_is_read_from_a_checkpoint_or_a_snapshot_of_averages(study, run, form):
    settings = solver(guidance_scale=0.0, weaker=study / run / form)
    model, denoiser = guided(study, settings, name="joint" if run == "joint" else "control")
    inputs = noisy(model, 400.0)
    estimate = denoiser(*inputs)
    assert not torch.allclose(estimate, model.denoiser(*inputs), atol=1e-3)
    if run == "joint":
        network = assembly.build_network(assembly.load_base(study / run).card, seed=5)
        if form.startswith("checkpoints"):
            wanted = checkpoint.load(study / run / form).ema
        else:
            from safetensors.torch import load_file

            tensors = load_file(study / run / form)
            wanted = {name.removeprefix("0.05/"): value.float() for name, value in tensors.items() if "0.05/" in name}
        network.load_state_dict(wanted)
        expected = assembly.load_base(study / run).denoiser(network.eval())(*inputs)
        assert torch.allclose(estimate, expected, atol=1e-6)


def test_the_last_checkpoint_of_an_adapter_is_the_adapter(study):
    """Its averaged weights are those that were published."""
    last = study / "adapter" / "checkpoints" / "step-00000004"
    model, _ = guided(study, solver(), name="control")
    settings = solver(guidance_scale=3.0, weaker=last)
    weaker = assembly.load_guides(settings, assembly.load_base(study / "control")).weaker
    inputs = noisy(model, 400.0)
    assert torch.allclose(weaker.denoiser(*inputs), model.denoiser(*inputs), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "itself"), [("joint", "joint"), ("control", "adapter"), ("control", "adapter/checkpoints/step-00000004")]
)
def test_a_model_that_is_to_guide_itself_is_refused(study, name, itself):
    """Guidance by it is no guidance at twice the cost, whatever the scale."""
    with pytest.raises(ModelError, match="the very weights of the model"):
        guided(study, solver(guidance_scale=3.0, weaker=study / itself), name=name)


def test_a_classifier_of_noisy_images_makes_its_condition_likelier(study):
    model, denoiser = guided(study, solver(classifier=study / "noisy", classifier_scale=4.0))
    base = assembly.load_base(study / "joint")
    guide = assembly.load_guides(solver(classifier=study / "noisy"), base).classifier
    inputs = noisy(model, 300.0)
    network, target = guide.of(TARGET)
    assert WELLS.keys() == set(guide.conditions)

    def likelihood(images: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(network(images, inputs[1]), 1)[:, target]

    step = 1e-2 * (denoiser(*inputs) - model.denoiser(*inputs))
    assert (likelihood(inputs[0] + step) > likelihood(inputs[0])).all()


def test_where_hardly_any_signal_is_left_a_trained_classifier_is_not_followed(study):
    model, denoiser = guided(study, solver(classifier=study / "noisy"))
    last = noisy(model, 999.0)
    assert denoiser.schedule.alpha(last[1]).max() < LEAST_SIGNAL
    assert torch.equal(denoiser(*last), model.denoiser(*last))


def test_guides_lie_in_an_interval_around_both(study):
    given = {"guidance_scale": 2.0, "weaker": study / "smaller", "classifier": study / "noisy"}
    model, denoiser = guided(study, solver(**given, guidance_interval=(100, 500)))
    inside, outside = noisy(model, 400.0), noisy(model, 600.0)
    assert torch.equal(denoiser(*outside), model.denoiser(*outside))
    assert torch.equal(denoiser(*inside), guided(study, solver(**given))[1](*inside))


def test_generated_cells_are_guided_and_the_store_says_by_what(study, tmp_path):
    plain, out = generated(study, tmp_path / "plain.zarr"), tmp_path / "guided.zarr"
    guides = {"weaker": study / "smaller", "classifier": study / "noisy"}
    settings = ["solver.guidance_scale=3", *(f"solver.{name}={path}" for name, path in guides.items())]
    assert not torch.allclose(generated(study, out, *settings), plain, atol=1e-2)
    attributes = describe(out).attributes
    assert {name: attributes["inputs"][name] for name in guides} == {n: fingerprint(path) for n, path in guides.items()}
    assert attributes["trained_on"]["weaker model"] == attributes["trained_on"]["guiding classifier"] == ["P1"]


def test_translated_cells_are_guided_towards_the_targets_alone(study, tmp_path):
    """The weaker self is an adapter's, which knows its own condition; the source is inverted without guidance."""
    store = [f"store={study / 'store.zarr'}", f"base={study / 'control'}", f"adapters=[{study / 'adapter'}]", "n=2"]
    weaker = [f"solver.weaker={study / 'adapter' / 'checkpoints' / 'step-00000002'}", "solver.guidance_scale=4"]
    found = []
    for name, settings in {"plain": [], "guided": weaker}.items():
        trained(translate, tmp_path / name, *store, *SOLVED, f"targets=[{TARGET}]", *settings)
        found.append(open_store(tmp_path / name))
    rows = range(2)
    assert torch.equal(*(torch.from_numpy(one.x_T(rows)) for one in found))
    assert not torch.equal(*(torch.from_numpy(one.images(rows)) for one in found))


def test_the_noisy_classifier_is_told_from_that_of_clean_images(study):
    card = json.loads((RunDir(study / "noisy").model / "cellbridge.json").read_text())
    assert card["noise"]["kind"] == "cosine"
    with pytest.raises(ModelError, match=r"was trained on noisy images.*without the section noise"):
        assembly.load_classifier(study / "noisy")
    metrics = json.loads(RunDir(study / "noisy").metrics.read_text())["held_out"]
    assert [one["t"] for one in metrics["times"]] == pytest.approx([99, 299, 499, 699, 899])
    assert all(0 <= one["balanced_accuracy"]["value"] <= 1 for one in metrics["times"])


def test_training_a_noisy_classifier_goes_on_where_it_stopped_and_the_next_may_start_from_it(study, tmp_path):
    given = [f"store={study / 'store.zarr'}", "widths=[8,8]", "training.batch_size=8", "noise.kind=linear"]
    given += ["held_out=null", "training.decay=constant", "training.checkpoint_every=2"]
    for steps, run in ((2, "halves"), (4, "halves"), (4, "whole")):
        trained(train_classifier, tmp_path / run, *given, f"training.steps={steps}")
    halves, whole = ((tmp_path / run / "model" / "classifier.safetensors").read_bytes() for run in ("halves", "whole"))
    assert halves == whole
    trained(train_classifier, tmp_path / "next", *given, "training.steps=1", f"init_from={tmp_path / 'whole'}")
    with pytest.raises(ModelError, match="of noisy images, and the other is not"):
        trained(train_classifier, tmp_path / "clean", *given[:-4], "held_out=null", f"init_from={tmp_path / 'whole'}")


def test_guides_that_do_not_fit_are_refused_and_nothing_is_written(study, tmp_path):
    other = tmp_path / "other.zarr"
    cells = open_store(study / "store.zarr")
    head = HEAD | {"channels": ("DNA", "ER", "Actin")}
    rows = range(cells.info.n_cells)
    maps = cells.intensity.__class__(**{**vars(cells.intensity), "channels": head["channels"]})
    write_store(other, obs=cells.obs.reset_index(drop=True), counts=cells.counts(rows), intensity=maps, **head)
    linear = [*SMALL, "network.widths=[8,8]", "training.steps=1", "conditions=all"]
    trained(pretrain, tmp_path / "linear", f"store={study / 'store.zarr'}", *linear, "schedule.kind=linear")
    trained(pretrain, tmp_path / "channels", f"store={other}", *linear)
    tiny = ["widths=[8]", "training.steps=1", "held_out=null"]
    trained(train_classifier, tmp_path / "linear-noise", f"store={study / 'store.zarr'}", *tiny, "noise.kind=linear")
    trained(
        train_classifier, tmp_path / "two", f"store={study / 'store.zarr'}", *tiny, "noise={}", "conditions=[dimmer@5]"
    )
    trained(train_classifier, tmp_path / "other-noise", f"store={other}", *tiny, "noise={}")
    refusals: list[tuple[str, Path, type[Exception], str]] = [
        ("weaker", tmp_path / "channels", ModelError, r"makes 16 px of \['DNA', 'ER', 'Actin'\]"),
        ("weaker", tmp_path / "linear", ModelError, "another noise schedule"),
        ("weaker", study / "control", ConditionError, r"knows \['DMSO'\], not \"shrinker@1\""),
        ("weaker", study / "adapter", ModelError, "belongs to the base"),
        ("weaker", study / "noisy", ModelError, "kind classifier"),
        ("weaker", tmp_path / "absent", CheckpointError, "no such run"),
        ("classifier", study / "clean", ModelError, "was trained on clean images"),
        ("classifier", tmp_path / "linear-noise", ModelError, "Train one with noise: .*cosine"),
        ("classifier", tmp_path / "other-noise", ModelError, "trained on 16 px of"),
        ("classifier", tmp_path / "two", ConditionError, 'apart, not "shrinker@1"'),
    ]
    for name, path, error, message in refusals:
        with pytest.raises(error, match=message):
            guided(study, solver(**{name: path}, guidance_scale=2.0))
    with pytest.raises(ConditionError, match="the weaker model knows"):
        generated(study, tmp_path / "out.zarr", "solver.guidance_scale=2", f"solver.weaker={study / 'control'}")
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["weaker=run"], "weaker does nothing at guidance_scale 1; set the scale"),
        (["weaker=run", "guidance_scale=2", "guidance_from=unconditional"], "leave guidance_from out"),
        (["weaker=run", "guidance_scale=2", "guidance_by_distance=true"], "leave guidance_by_distance out"),
        (["weaker=run", "guidance_scale=2", "guidance_rescale=0.7"], "leave guidance_rescale out"),
        (["classifier_scale=2"], "name its run as classifier"),
        (["classifier=run", "method=ddpm", "variance=learned"], "guidance mixes two"),
        (["guidance_scale=0", "guidance_interval=[1,2]"], "leave it out, or scale 0"),
    ],
)
def test_settings_of_guides_that_do_nothing_or_contradict_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load(SolverConfig, overrides=settings)


def test_an_interval_that_guides_no_sample_grid_is_refused_before_training(study, tmp_path):
    settings = ["sampler.guidance_scale=2", "sampler.guidance_interval=[2000,3000]"]
    with pytest.raises(ConfigError, match="guides nothing"):
        trained(pretrain, tmp_path / "base", f"store={study / 'store.zarr'}", *SMALL, *settings)
    assert not (tmp_path / "base").exists()


def test_sample_grids_show_the_model_that_is_trained_alone():
    for setting in ("sampler.classifier=run", "sampler.weaker=run"):
        with pytest.raises(ConfigError, match="trained alone; leave it out"):
            load(pretrain.Config, overrides=["store=x", "sampler.guidance_scale=2", setting])
