"""Backbones and conditioning schemes other than the default, through the commands: trained, published, adapted and translated with."""

import json
from pathlib import Path

import pytest
import torch
from known_world import write_study

from cellbridge import assembly
from cellbridge.conditions import Condition
from cellbridge.data.store import open_store
from cellbridge.errors import ConfigError, ModelError
from cellbridge.runs import RunDir
from cellbridge.settings import load
from cellbridge.stages import finetune, pretrain, translate
from cellbridge.training.events import read

SMALL = [
    "network.widths=[8,8]",
    "network.attention_levels=[1]",
    "network.dit={width: 16, depth: 2, patch_px: 4}",
    "network.conditioning.width=16",
    "training.batch_size=8",
    "sampler.steps=2",
]
STEPS = ["training.steps=4", "training.checkpoint_every=2", "training.log_every=2"]
CHOICES = {
    "dit, cross-attention": [
        "network.backbone=dit",
        "network.conditioning.scheme=cross_attention",
        "network.conditioning.tokens=[compound,dose,plate,time]",
    ],
    "conditional unet, concatenated": [
        "network.backbone=cross_attention_unet",
        "network.conditioning.scheme=concatenated",
        "schedule.variance=learned_range",
        "objective.kind=hybrid",
    ],
    "unet, late, fingerprints": ["network.conditioning.scheme=late", "network.conditioning.compound=fingerprint"],
    "conditional unet, characters": [
        "network.backbone=cross_attention_unet",
        "network.conditioning.scheme=cross_attention",
        "network.conditioning.compound=characters",
    ],
    "dit, one-hot": ["network.backbone=dit", "network.conditioning.scheme=one_hot", "network.dit.patch_px=3"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), per_well=2)["reference"]


def pretrained(store: Path, out: Path, *settings: str) -> Path:
    pretrain.run(load(pretrain.Config, overrides=[*SMALL, *STEPS, f"store={store}", *settings]), out=out)
    return out


def translated(store: Path, base: Path, out: Path, *settings: str) -> Path:
    given = [f"store={store}", f"base={base}", "solver.steps=2", "n=3", *settings]
    translate.run(load(translate.Config, overrides=given), out=out)
    return out


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_trains_is_published_takes_an_adapter_and_translates(name, store, tmp_path):
    settings = CHOICES[name]
    base = pretrained(store, tmp_path / "base", *settings, "conditions=[shrinker@1]")
    kind = [one for one in settings if one.startswith("objective")]
    tuned = [f"store={store}", f"base={base}", "condition=dimmer@5", "adapter.rank=2", "training.batch_size=8"]
    finetune.run(load(finetune.Config, overrides=[*tuned, *STEPS, "sampler.steps=2", *kind]), out=tmp_path / "adapter")
    out = translated(store, base, tmp_path / "out.zarr", f"adapters=[{tmp_path / 'adapter'}]")
    cells = open_store(out)
    assert {condition.name for condition in cells.info.conditions} >= {"shrinker@1", "dimmer@5"}
    assert cells.info.n_cells == 6


def test_a_base_that_reads_fingerprints_translates_to_a_compound_it_was_not_trained_on(store, tmp_path):
    base = pretrained(store, tmp_path / "base", *CHOICES["unet, late, fingerprints"])
    cells = open_store(translated(store, base, tmp_path / "out.zarr", "targets=[dimmer@5,shrinker@1]"))
    assert set(cells.obs["Metadata_TargetCondition"]) == {"dimmer@5", "shrinker@1"}


def test_a_base_that_does_not_read_says_what_to_do(store, tmp_path):
    base = assembly.load_base(pretrained(store, tmp_path / "base", *CHOICES["dit, one-hot"]))
    with pytest.raises(ModelError, match=r'not trained on "dimmer@5".*Fine-tune an adapter for it, or pretrain with'):
        assembly.with_unseen(base, Condition("dimmer", 5.0))


def test_training_goes_on_where_it_stopped_and_the_next_may_start_from_it(store, tmp_path):
    """Token dropout, too, is a function of (seed, step)."""
    settings = CHOICES["dit, cross-attention"]
    whole = pretrained(store, tmp_path / "whole", *settings, "training.steps=4")
    pretrained(store, tmp_path / "halves", *settings, "training.steps=2", "training.decay=constant")
    pretrained(store, tmp_path / "halves", *settings, "training.steps=4", "training.decay=constant")
    straight = pretrained(store, tmp_path / "straight", *settings, "training.steps=4", "training.decay=constant")
    files = [
        (RunDir(run).model / name).read_bytes()
        for run in (tmp_path / "halves", straight)
        for name in ("unet/diffusion_pytorch_model.safetensors", "conditioning/conditioner.safetensors")
    ]
    assert files[:2] == files[2:]
    started = pretrained(store, tmp_path / "next", *settings, f"init_from={whole}")
    assert json.loads((RunDir(started).model / "cellbridge.json").read_text())["network"]["backbone"] == "dit"


def test_the_loudness_of_the_condition_is_logged(store, tmp_path):
    base = pretrained(store, tmp_path / "base", "network.conditioning.scheme=attend_then_project", "conditions=all")
    logged = [event for event in read(RunDir(base).events) if event["event"] == "logged"]
    assert logged
    assert all(0.01 < event["embedding/condition_over_time"] < 1 for event in logged)


def test_a_plate_that_is_known_changes_the_image_and_an_unknown_one_is_none(store, tmp_path):
    settings = CHOICES["dit, cross-attention"]
    base = assembly.load_base(pretrained(store, tmp_path / "base", *settings, "training.learning_rate=0.05"))
    table = assembly.condition_table(base.card)
    labels = torch.tensor([table.label(1), table.label(1, plate="P1"), table.label(1, plate="another")])
    x_t = torch.zeros(3, 3, 16, 16)
    images = base.denoiser()(x_t, torch.full((3,), 500.0), labels)
    assert table.plates == ("P1", "P2")
    assert torch.allclose(images[0], images[2], atol=1e-6)
    assert not torch.allclose(images[0], images[1], atol=1e-4)


def test_a_scheme_that_the_backbone_has_not_is_refused_with_those_it_has(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone dit has no conditioning\.scheme late; use added"):
        load(
            pretrain.Config,
            overrides=["store=s", "network.backbone=dit", "network.conditioning.scheme=late"],
        )
