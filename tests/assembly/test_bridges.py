"""Bridges between images, whatever their backbone: they begin as their linear guess, and files give back what was trained."""

import json
from pathlib import Path

import pytest
import torch
from small_bridge import CONDITIONS, SIZE_PX, card, images, moments

from cellbridge.adapters.inside import merged
from cellbridge.assembly.bases import Base, build_network, build_schedule
from cellbridge.assembly.bridges import (
    adapt_bridge,
    build_bridge,
    load_bridge,
    publish_bridge,
    read_bridge_card,
)
from cellbridge.assembly.cards import ModelCard
from cellbridge.bridge.images import ImageBridge
from cellbridge.bridge.linear_guess import Where
from cellbridge.conditions import Condition
from cellbridge.config import AdapterConfig, ConditioningConfig, DitConfig, NetworkConfig, ScheduleConfig
from cellbridge.errors import CheckpointError, ConfigError, ModelError
from cellbridge.runs import RunDir

BACKBONES = {
    "unet": ("unet", "added", {}),
    "unet, padded": ("unet", "added", {"widths": (8, 8, 16)}),
    "unet, dose apart": ("unet", "added", {"tokens": ("compound", "dose")}),
    "unet, late": ("unet", "late", {}),
    "conditional unet": ("cross_attention_unet", "concatenated", {}),
    "conditional unet, tokens": ("cross_attention_unet", "cross_attention", {"compound": "characters"}),
    "dit": ("dit", "added", {}),
    "dit, tokens": ("dit", "cross_attention", {}),
}


def network(kind: str) -> NetworkConfig:
    backbone, scheme, changed = BACKBONES[kind]
    sizes = {"widths": (8, 16), "attention_levels": (1,), "dit": DitConfig(width=16, depth=1)}
    own = {key: value for key, value in changed.items() if key in NetworkConfig.model_fields}
    told = {key: value for key, value in changed.items() if key not in own}
    conditioning = ConditioningConfig(**{"scheme": scheme, "width": 16, "token_dropout": 0.0, **told})
    return NetworkConfig(**{"backbone": backbone, **sizes, **own, "conditioning": conditioning})


def base(config: NetworkConfig, *, conditions: tuple[str, ...] = ("", "DMSO", "<adapter>")) -> Base:
    of_base = ModelCard(
        kind="base",
        channels=card().channels,
        size_px=SIZE_PX,
        conditions=conditions,
        network=config,
        schedule=ScheduleConfig(),
        plates=("P1",),
        store_sha256="0" * 64,
    )
    return Base(build_network(of_base, seed=3).eval(), of_base, "1" * 64, build_schedule(ScheduleConfig()))


def built(kind: str = "unet", *, based: bool = True, **changed) -> ImageBridge:
    config = network(kind)
    given = base(config) if based else None
    return build_bridge(card(config, **changed), moments(), seed=0, base=given).eval()


def taught(bridge: ImageBridge) -> dict[str, torch.Tensor]:
    """Return weights that are not those of the start, as a training would hand them on."""
    chance = torch.Generator().manual_seed(5)
    trained = {name: p for name, p in bridge.network.named_parameters() if p.requires_grad}
    return {name: p.detach() + 0.1 * torch.randn(p.shape, generator=chance) for name, p in trained.items()}


def somewhere(n: int, *, condition: int = 0, forward: bool = True) -> Where:
    elapsed = torch.linspace(0, 0.99, n)
    rows = torch.ones(n)
    return Where(elapsed, (rows * forward).bool(), (rows * condition).long(), 0.02 * rows)


@pytest.mark.parametrize("clock", ["endpoint", "noise", "elapsed"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_every_backbone_begins_as_the_linear_guess_exactly(kind, clock):
    bridge, x = built(kind, clock=clock), images(4, 9)
    for forward in (True, False):
        where = somewhere(4, forward=forward)
        assert torch.equal(bridge.endpoint(x, where), bridge.linear(x, where)[0])


@pytest.mark.parametrize("kind", BACKBONES)
def test_files_give_back_every_backbone_with_its_averaged_weights(kind, tmp_path: Path):
    bridge, run, x = built(kind), RunDir(tmp_path / "run"), images(4, 9)
    weights = taught(bridge)
    publish_bridge(run, bridge, ema=weights, card=card(network(kind)))
    bridge.network.load_state_dict(weights, strict=False)
    loaded = load_bridge(run.path)
    assert list(loaded.endpoints) == [Condition("taxol", 1.0), Condition("taxol", 5.0)]
    s = torch.linspace(0, 0.9, 4)
    ways = {}
    for number, condition in enumerate(loaded.endpoints):
        for direction in ("forward", "backward"):
            found = loaded.endpoints[condition].mean(x, s, direction)
            forward = direction == "forward"
            where = Where(
                s if forward else 1 - s,
                torch.full((4,), forward),
                torch.full((4,), number),
                torch.full((4,), loaded.middle_reg),
            )
            with torch.no_grad():
                torch.testing.assert_close(found, bridge.endpoint(x, where), rtol=0, atol=1e-5)
            ways[condition, direction] = bridge.output(x, where)
    outputs = list(ways.values())
    differ = [not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(outputs) for b in outputs[:i]]
    assert all(differ), "conditions and directions are told apart"


@pytest.mark.parametrize(
    "conditions", [("", "DMSO", "<adapter>"), ("", "DMSO", "a@1", "b@1", "c@1")], ids=["3 rows", "5, as the bridge has"]
)
def test_a_base_gives_its_weights_and_every_row_begins_at_its_control_but_apart_from_the_others(conditions):
    config = network("unet")
    given = base(config, conditions=conditions)
    bridge = build_bridge(card(config), moments(), seed=0, base=given)
    own, theirs = bridge.network.backbone.state_dict(), given.network.state_dict()
    assert torch.equal(own["conv_in.weight"][:, :3], theirs["conv_in.weight"])
    assert not own["conv_in.weight"][:, 3:].any()
    apart = own["class_embedding.weight"] - theirs["class_embedding.weight"][1]
    assert float(apart.std()) == pytest.approx(config.embedding_std, rel=0.2)
    changed = {
        name for name in own if own[name].shape != theirs[name].shape or not torch.equal(own[name], theirs[name])
    }
    assert changed == {"conv_in.weight", "class_embedding.weight", "conv_out.weight", "conv_out.bias"}


@pytest.mark.parametrize("kind", ["unet", "dit, tokens"])
def test_an_adapter_trains_little_and_is_merged_into_what_is_published(kind, tmp_path: Path):
    bridge, run, x = built(kind), RunDir(tmp_path / "run"), images(4, 9)
    before = bridge.output(x, somewhere(4))
    adapt_bridge(bridge, AdapterConfig(rank=2), seed=0)
    assert torch.equal(bridge.output(x, somewhere(4)), before)
    weights = taught(bridge)
    frozen = {name for name, p in bridge.network.named_parameters() if not p.requires_grad}
    assert any("base_layer" in name for name in frozen)
    assert not any("class_embedding" in name or "lora" in name for name in frozen)
    bridge.network.load_state_dict(weights, strict=False)
    publish_bridge(run, bridge, ema=weights, card=card(network(kind)))
    loaded = load_bridge(run.path).model
    with torch.no_grad():
        torch.testing.assert_close(loaded.output(x, somewhere(4)), bridge.output(x, somewhere(4)), rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name in merged(bridge.network).state_dict())


def test_a_bridge_is_asked_at_the_volatilities_that_it_was_trained_at(tmp_path: Path):
    bridge, run = built(), RunDir(tmp_path / "run")
    publish_bridge(run, bridge, ema=taught(bridge), card=card(network("unet")))
    loaded = load_bridge(run.model)
    assert loaded.sigma_range == pytest.approx((0.2, 0.4))
    assert loaded.reg_of(0.2) == pytest.approx(0.01)
    x, s = images(2), torch.tensor([0.3, 0.6])
    low, high = (loaded.at(reg)[Condition("taxol", 1.0)].mean(x, s, "forward") for reg in loaded.reg)
    assert not torch.allclose(low, high)
    with pytest.raises(ConfigError, match=r"volatility of 0\.1 of the pixels' .* trained at 0\.2 to 0\.4"):
        loaded.at(loaded.reg_of(0.1))
    with pytest.raises(ConfigError, match="volatility of 0 "):
        loaded.at(0.0)


def test_the_backbone_opens_in_diffusers(tmp_path: Path):
    from diffusers import UNet2DModel

    bridge, run = built(), RunDir(tmp_path / "run")
    publish_bridge(run, bridge, ema=taught(bridge), card=card(network("unet")))
    found = UNet2DModel.from_pretrained(run.model / "unet")
    assert (found.config.in_channels, found.config.out_channels, found.config.num_class_embeds) == (5, 3, 5)


def test_what_is_no_bridge_is_refused(tmp_path: Path):
    bridge, run = built(), RunDir(tmp_path / "run")
    publish_bridge(run, bridge, ema=taught(bridge), card=card(network("unet")))
    assert read_bridge_card(run.path).conditions == CONDITIONS
    with pytest.raises(CheckpointError, match="holds no finished model"):
        load_bridge(tmp_path)
    changed = json.loads((run.model / "bridge.json").read_text())
    (run.model / "bridge.json").write_text(json.dumps(changed | {"kind": "vector bridge"}))
    with pytest.raises(CheckpointError, match="bytes"):
        load_bridge(run.path)


def test_building_leaves_the_global_random_state():
    before = torch.get_rng_state()
    adapt_bridge(built(based=False), AdapterConfig(rank=2), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_base_of_another_size_is_refused():
    other = network("unet").model_copy(update={"widths": (8, 24)})
    with pytest.raises(ModelError, match="the base's network"):
        build_bridge(card(network("unet")), moments(), seed=0, base=base(other))
