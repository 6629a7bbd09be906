"""Objectives and schedules other than the default, from the command's configuration to a model that opens outside."""

from pathlib import Path

import pytest
import torch
from known_world import write_study

from cellbridge import assembly
from cellbridge.errors import ConfigError
from cellbridge.runs import RunDir
from cellbridge.settings import load
from cellbridge.stages import finetune, pretrain
from cellbridge.training.events import read

SMALL = [
    "network.widths=[8,8]",
    "network.attention_levels=[]",
    "training.steps=4",
    "training.batch_size=8",
    "sampler.steps=2",
]
LEARNED = ["objective.kind=hybrid", "schedule.variance=learned_range"]


def pretrained(store: Path, out: Path, *settings: str) -> Path:
    pretrain.run(load(pretrain.Config, overrides=[*SMALL, f"store={store}", *settings]), out=out)
    return out


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), per_well=2)["reference"]


@pytest.fixture(scope="module")
def learned(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(store, tmp_path_factory.mktemp("learned") / "base", *LEARNED)


def test_a_base_of_learned_variance_opens_with_a_scheduler_that_takes_it_off(learned):
    from diffusers import DDPMPipeline, DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(str(RunDir(learned).model), local_files_only=True)
    assert isinstance(pipeline, DDPMPipeline)
    assert pipeline.unet.config.out_channels == 2 * pipeline.unet.config.in_channels
    x_t = torch.zeros(1, 3, 16, 16)
    output = pipeline.unet(x_t, 500, class_labels=torch.tensor([1])).sample
    assert pipeline.scheduler.step(output, 500, x_t).prev_sample.shape == x_t.shape


def test_its_denoiser_gives_an_image_and_a_fraction_and_an_adapter_learns_both(store, learned, tmp_path):
    settings = [*SMALL[2:], f"store={store}", f"base={learned}", "condition=shrinker@1", "adapter.rank=2"]
    with pytest.raises(ConfigError, match="never trains it"):
        finetune.run(load(finetune.Config, overrides=settings), out=tmp_path / "plain")
    finetune.run(load(finetune.Config, overrides=[*settings, "objective.kind=hybrid"]), out=tmp_path / "adapter")
    denoiser, _ = assembly.load_adapted(assembly.load_base(learned), tmp_path / "adapter")
    x_t = torch.zeros(2, 3, 16, 16)
    x_0, fraction = denoiser.with_fraction(x_t, torch.full((2,), 400.0), torch.ones(2, dtype=torch.int64))
    assert x_0.shape == fraction.shape == x_t.shape


def test_the_bound_with_times_by_importance_trains_on_a_schedule_without_signal_at_its_end(store, tmp_path):
    settings = ("objective.kind=vlb", "objective.times=importance", "schedule.zero_terminal_snr=true")
    run = RunDir(pretrained(store, tmp_path / "base", *settings))
    assert (run.checkpoint(4) / "method.safetensors").is_file()
    assert assembly.load_base(run.path).schedule.zero_terminal_snr


def test_times_by_importance_are_refused_where_processes_would_remember_apart(store, tmp_path, monkeypatch):
    monkeypatch.setattr("cellbridge.processes.count", lambda: 2)
    with pytest.raises(ConfigError, match="Use times: uniform, or one process"):
        pretrained(store, tmp_path / "base", "objective.kind=vlb", "objective.times=importance")


def test_min_snr_weights_train_every_prediction(store, tmp_path):
    run = pretrained(store, tmp_path / "base", "objective.min_snr_gamma=5", "schedule.kind=scaled_linear")
    assert assembly.load_base(run).schedule.alpha_bar[-1].sqrt().item() == pytest.approx(0.0682649, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective.kind=hybrid"], "Set schedule.variance: learned_range, or objective.kind: simple"),
        (["schedule.variance=learned_range"], "never trains it"),
        (["objective.kind=vlb", "objective.min_snr_gamma=5"], "use kind simple or hybrid"),
        (["objective.times=importance"], "use times: uniform"),
        (["schedule.prediction=epsilon", "schedule.zero_terminal_snr=true"], "use prediction v or x_0"),
    ],
)
def test_combinations_that_train_nothing_are_refused_and_nothing_is_written(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pretrained(tmp_path / "absent.zarr", tmp_path / "base", *settings)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_finetune_says_how_many_equally_weighted_cells_its_own_are_worth(store, tmp_path, balance):
    """12 treated and 4 control cells in 4 classes of 6, 6, 2 and 2: at beta = 1 the weights are 2/3 and 2, and (sum w)^2 / sum w^2 is 12."""
    base = pretrained(store, tmp_path / "base")
    settings = [*SMALL[2:], f"store={store}", f"base={base}", "condition=shrinker@1", "adapter.rank=2", "beta=1"]
    summary = finetune.run(load(finetune.Config, overrides=[*settings, f"balance={balance}"]), out=tmp_path / "adapter")
    assert (summary["cells"], summary["replayed control cells"]) == (12, 4)
    assert summary["effective sample size"] == pytest.approx(12.0)
    started = read(RunDir(tmp_path / "adapter").events)[0]
    assert (started["event"], started["cells"], started["effective_sample_size"]) == ("started", 16, 12.0)
