import copy

import pytest
import torch
from small_base import CONDITION, CONTROL, KINDS, build_base, call, trained

from cellbridge.adapters import library, lora
from cellbridge.adapters.adapted import AdaptedNetwork
from cellbridge.config import ConditioningConfig, DitConfig, NetworkConfig
from cellbridge.errors import ModelError
from cellbridge.networks.backbones import conditioned_cross_attention_unet, conditioned_dit, conditioned_unet
from cellbridge.networks.condition_table import ConditionTable


@pytest.fixture(scope="module")
def base():
    return build_base()


@pytest.fixture(scope="module")
def models(base):
    """One trained adapter of each kind, by name."""
    return {kind: trained(base, seed, **own) for seed, (kind, own) in enumerate(KINDS.items(), 1)}


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for kind, model in models.items():
        library.save_adapter(model, folder / kind, base_sha256="a")
    return folder


@pytest.fixture(scope="module")
def three(base, folder):
    network = AdaptedNetwork(base, sha256="a")
    for kind in KINDS:
        network.attach(kind, folder / kind)
    return network


@pytest.fixture
def adapted(three):
    three.use({})
    return three


def weights(network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_attached_adapters_are_listed_and_change_nothing_until_used(base, adapted):
    assert adapted.attached == tuple(KINDS)
    assert same(weights(adapted.network), weights(base))
    assert adapted.shares == {}


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapter_in_force_is_what_peft_merges(adapted, models, kind):
    adapted.use({kind: 1.0})
    merged = weights(library.merge(models[kind]))
    assert weights(adapted.network).keys() == merged.keys()
    for name, tensor in weights(adapted.network).items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-6)
    assert (call(adapted.network, CONDITION) - call(models[kind], CONDITION)).abs().max().item() < 1e-5


BACKBONES = {
    ("unet", "attend_then_project"): conditioned_unet,
    ("cross_attention_unet", "cross_attention"): conditioned_cross_attention_unet,
    ("dit", "one_hot"): conditioned_dit,
    ("dit", "cross_attention"): conditioned_dit,
}


@pytest.mark.parametrize(("backbone", "scheme"), list(BACKBONES))
def test_adapters_of_other_backbones_reach_time_and_condition_and_are_what_peft_merges(backbone, scheme, tmp_path):
    config = NetworkConfig(
        backbone=backbone,
        widths=(8, 16),
        attention_levels=(1,),
        dit=DitConfig(width=16, depth=1),
        conditioning=ConditioningConfig(scheme=scheme, width=16),
    )
    table = ConditionTable.of(("", "DMSO", "taxol@1"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = BACKBONES[backbone, scheme](config, table, channels=3, size_px=8).eval()
        model = trained(base)
    reached = {name.split(".lora_A")[0].split(".base_layer")[0] for name in lora.trainable(model) if "lora_A" in name}
    assert any("to_q" in name for name in reached)
    assert any(end in name for name in reached for end in lora.MODULES["time"])
    assert any("to_vector.outward" in name for name in reached) == (scheme != "cross_attention")
    library.save_adapter(model, tmp_path / "one", base_sha256="a")
    network = AdaptedNetwork(base, sha256="a")
    network.attach("one", tmp_path / "one")
    network.use({"one": 1.0})
    assert (call(network.network, CONDITION) - call(model, CONDITION)).abs().max().item() < 1e-5
    assert (call(network.network, CONDITION) - call(base, CONDITION)).abs().max().item() > 1e-3
    network.use({})
    assert same(weights(network.network), weights(base))


def test_swapping_leaves_nothing_of_the_adapter_before(adapted):
    adapted.use({"LoRA": 1.0})
    alone = weights(adapted.network)
    adapted.use({"DoRA": 1.0})
    assert not same(weights(adapted.network), alone)
    adapted.use({"LoRA": 1.0})
    assert same(weights(adapted.network), alone)


def test_a_hundred_merges_and_unmerges_leave_the_base_bit_for_bit(base, adapted):
    for _ in range(100):
        adapted.use({"LoRA": 0.3, "rsLoRA": 0.4, "DoRA": 0.3})
        adapted.use({})
    assert same(weights(adapted.network), weights(base))


def test_a_blend_with_all_the_weight_on_one_adapter_is_that_adapter(adapted):
    adapted.use({"LoRA": 1.0})
    alone = weights(adapted.network)
    adapted.use({"LoRA": 1.0, "DoRA": 0.0})
    assert same(weights(adapted.network), alone)


def test_a_blend_lies_between_its_adapters_condition_embedding_included(adapted):
    ends = []
    for kind in ("LoRA", "DoRA"):
        adapted.use({kind: 1.0})
        ends.append(weights(adapted.network))
    adapted.use({"LoRA": 0.3, "DoRA": 0.7})
    assert not torch.equal(ends[0]["class_embedding.weight"], ends[1]["class_embedding.weight"])
    for name, tensor in weights(adapted.network).items():
        torch.testing.assert_close(tensor, 0.3 * ends[0][name] + 0.7 * ends[1][name], rtol=0, atol=1e-6)


def test_a_scaled_adapter_goes_that_part_of_its_way(base, adapted):
    adapted.use({"rsLoRA": 1.0})
    whole = weights(adapted.network)
    adapted.use({"rsLoRA": 0.25})
    for name, tensor in weights(adapted.network).items():
        own = base.state_dict()[name]
        torch.testing.assert_close(tensor, own + 0.25 * (whole[name] - own), rtol=0, atol=1e-6)


def test_opposite_shares_of_one_sum_are_not_taken_for_the_base(base, adapted):
    adapted.use({"LoRA": 0.5, "DoRA": -0.5})
    assert not torch.equal(call(adapted.network), call(base))


def test_detaching_the_adapter_in_force_brings_the_base_back(base, folder):
    network = AdaptedNetwork(base, sha256="a")
    network.attach("one", folder / "LoRA")
    network.use({"one": 1.0})
    network.detach("one")
    assert same(weights(network.network), weights(base))
    assert network.attached == ()


def test_the_base_and_the_global_random_state_are_left_as_they_were(base, folder):
    before, state = weights(base), torch.random.get_rng_state()
    network = AdaptedNetwork(base, sha256="a")
    network.attach("one", folder / "LoRA")
    network.use({"one": 1.0})
    assert same(weights(base), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(call(network.network, CONTROL), call(base, CONTROL))


def test_names_that_are_taken_or_unknown_and_other_bases_are_refused(base, adapted, folder):
    with pytest.raises(ModelError, match='called "LoRA" is attached already'):
        adapted.attach("LoRA", folder / "LoRA")
    for use in (lambda: adapted.use({"LoRa": 1.0}), lambda: adapted.detach("LoRa")):
        with pytest.raises(ModelError, match='Did you mean "LoRA"'):
            use()
    with pytest.raises(ModelError, match="belongs to the base a, but the base given is b"):
        AdaptedNetwork(copy.deepcopy(base), sha256="b").attach("LoRA", folder / "LoRA")
