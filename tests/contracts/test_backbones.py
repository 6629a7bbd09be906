"""What every backbone keeps, whatever its size: shape, gradients, files, independence of the batch, and the global random state."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_backbones import build, call, configured, noisy, without_gradient

from cellbridge import assembly
from cellbridge.errors import ConfigError, ModelError
from cellbridge.networks.conditioning import late
from cellbridge.networks.stored import load_weights, save_conditioning, stock
from cellbridge.networks.unet import WEIGHTS, save_base
from cellbridge.training.compilation import compiled

BACKBONES = {
    "unet": ("unet", "added", "UNet2DModel"),
    "unet, vectors": ("unet", "one_hot", "UNet2DModel"),
    "conditional unet": ("cross_attention_unet", "added", "UNet2DConditionModel"),
    "conditional unet, beside": ("cross_attention_unet", "concatenated", "UNet2DConditionModel"),
    "conditional unet, tokens": ("cross_attention_unet", "cross_attention", "UNet2DConditionModel"),
    "dit": ("dit", "added", "DiTTransformer2DModel"),
    "dit, tokens": ("dit", "cross_attention", "PixArtTransformer2DModel"),
}


def test_every_backbone_of_the_registry_is_here():
    assert {backbone for backbone, *_ in BACKBONES.values()} == set(assembly.BACKBONES)


@pytest.fixture(params=BACKBONES)
def chosen(request):
    return BACKBONES[request.param][:2]


@pytest.mark.parametrize("size_px", [8, 9, 11])
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels_and_any_size(chosen, channels, size_px):
    images = noisy(2, channels=channels, size_px=size_px)
    network = build(configured(*chosen), channels=channels, size_px=size_px, out_channels=2 * channels)
    output = call(network, *images)
    assert output.shape == (2, 2 * channels, size_px, size_px)
    assert output.dtype == torch.float32
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("size_px", [8, 9])
def test_every_parameter_receives_a_gradient(chosen, size_px):
    assert without_gradient(build(configured(*chosen), size_px=size_px), *noisy(size_px=size_px)) == []


def test_an_odd_image_is_the_crop_of_the_one_that_was_reflected(chosen):
    x_t, t, labels = noisy(size_px=9)
    reflected = torch.cat([x_t, x_t[..., 7:8]], 3)
    reflected = torch.cat([reflected, reflected[..., 7:8, :]], 2)
    odd, even = build(configured(*chosen), size_px=9), build(configured(*chosen), size_px=10)
    assert torch.equal(call(odd, x_t, t, labels), call(even, reflected, t, labels)[..., :9, :9])


def test_an_image_too_small_to_be_reflected_is_refused():
    with pytest.raises(ConfigError, match=r"2 px would have to be reflected up to 4 px.*Use fewer network\.widths"):
        build(configured("unet", "added", widths=(8, 8, 8), attention_levels=()), size_px=2)


def test_an_output_does_not_depend_on_its_batch(chosen):
    network, images = build(configured(*chosen)), noisy(6)
    with torch.no_grad():
        together = call(network, *images)
        alone = torch.cat([call(network, *(part[i : i + 1] for part in images)) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_times_lie_anywhere_and_say_something(chosen):
    x_t, t, labels = noisy()
    network = build(configured(*chosen))
    assert not torch.equal(call(network, x_t, t, labels), call(network, x_t, t + 0.25, labels))


def test_the_global_random_state_is_left_alone(chosen):
    network, images = build(configured(*chosen)), noisy()
    state = torch.get_rng_state()
    call(network, *images)
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_is_fused_and_channels_last_gives_the_same_output(chosen):
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    network, (x_t, t, labels) = build(configured(*chosen)), noisy()
    expected = call(network, x_t, t, labels)
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    assert attentions
    assert all(isinstance(module.processor, AttnProcessor2_0) for module in attentions)
    output = call(network.to(memory_format=torch.channels_last), x_t.to(memory_format=torch.channels_last), t, labels)
    assert torch.allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_dropped_in_training_unless_it_is_asked_for(chosen):
    """diffusers' DiT drops a tenth of its labels by itself."""
    images = noisy(32)
    plain, dropping = (build(configured(*chosen, dropout=dropout)) for dropout in (0.0, 0.3))
    expected = call(plain, *images)
    assert torch.allclose(call(plain.train(), *images), expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(call(dropping, *images), expected, rtol=1e-5, atol=1e-6)
    with torch.random.fork_rng(devices=[]):
        assert (call(dropping.train(), *images) - expected).abs().max() > 1e-3


def test_recomputed_activations_give_the_same_gradients(chosen):
    network, images = build(configured(*chosen)).train(), noisy()
    found = []
    for switch in (network.disable_gradient_checkpointing, network.enable_gradient_checkpointing):
        switch()
        assert without_gradient(network, *images) == []
        found.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-7) for one, other in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["default", "regional"])
def test_a_compiled_network_trains_to_the_same_gradients(chosen, strategy):
    network, images = build(configured(*chosen, dropout=0.0)).train(), noisy()
    assert without_gradient(network, *images) == []
    expected = [p.grad.clone() for p in network.parameters()]
    with compiled(network, strategy, device=torch.device("cpu"), backend="eager") as fast:
        assert without_gradient(fast, *images) == []
    assert all(
        torch.allclose(p.grad, e, rtol=1e-4, atol=1e-7) for p, e in zip(network.parameters(), expected, strict=True)
    )


def test_half_precision_goes_through(chosen):
    network, images = build(configured(*chosen)), noisy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = call(network, *images)
    assert torch.allclose(output.float(), call(network, *images), atol=0.1)


def test_blocks_that_start_at_zero_pass_their_input_on(chosen):
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    network, images = build(configured(*chosen, zero_out=True)), noisy()
    changes = []

    def note(block, inputs, keywords, output):
        given = inputs[0] if inputs else keywords["hidden_states"]
        if given.shape == output.shape:
            changes.append((output - given).abs().max().item())

    for module in network.modules():
        shortcut = getattr(module, "conv_shortcut", None)
        if isinstance(module, BasicTransformerBlock) or (isinstance(module, ResnetBlock2D) and shortcut is None):
            module.register_forward_hook(note, with_kwargs=True)
    call(network, *images)
    assert changes
    assert max(changes) == 0


@pytest.mark.parametrize(
    ("kind", "variance"), [("xavier", lambda i, o: 2 / (i + o)), ("he", lambda i, o: 2 / i)], ids=["xavier", "he"]
)
def test_weights_start_at_the_variance_of_their_name(chosen, kind, variance):
    weights = stock(build(configured(*chosen, initialisation=kind))).state_dict()
    large = {n: w for n, w in weights.items() if w.ndim in (2, 4) and w.numel() > 1500 and "embed" not in n}
    assert large
    for weight in large.values():
        fan_out, fan_in = (side * weight[0, 0].numel() for side in weight.shape[:2])
        assert weight.var().item() == pytest.approx(variance(fan_in, fan_out), rel=0.2)


def saved(network, directory):
    save_base(stock(network), directory, kind="cosine", steps=1000, prediction="v")
    save_conditioning(network, directory)
    return directory


@pytest.mark.parametrize("name", BACKBONES)
def test_a_saved_network_loads_bit_for_bit_and_opens_outside_with_the_same_output(name, tmp_path):
    import diffusers

    *chosen, kind = BACKBONES[name]
    network, (x_t, t, labels) = build(configured(*chosen)), noisy()
    with torch.no_grad():
        expected = call(network, x_t, t, labels)
        directory = saved(network, tmp_path / "model")
        again = build(configured(*chosen))
        for parameter in again.parameters():
            parameter.zero_()
        load_weights(again, directory)
        assert torch.equal(call(again, x_t, t, labels), expected)
        assert json.loads((directory / "unet" / "config.json").read_text())["_class_name"] == kind
        pipeline = diffusers.DiffusionPipeline.from_pretrained(str(directory), local_files_only=True)
        assert type(pipeline.unet).__name__ == kind
        output = outside(getattr(diffusers, kind).from_pretrained(directory / "unet").eval(), directory, x_t, t, labels)
    assert torch.allclose(output, expected, rtol=0, atol=1e-6)


def outside(network, directory, x_t, t, labels):
    """Call a stock network as the files say, without cellbridge."""
    rows = directory / "conditioning" / "rows.safetensors"
    given = {"class_labels": labels}
    if rows.is_file() and type(network).__name__ != "DiTTransformer2DModel":
        values = {name: tensor[labels] for name, tensor in load_file(rows).items()}
        given = {"class_labels": values.get("vectors")}
        if "tokens" in values:
            given = {"encoder_hidden_states": values["tokens"], "encoder_attention_mask": values["keep"]}
        elif type(network).__name__ == "UNet2DConditionModel":
            given["encoder_hidden_states"] = None
    return network(x_t, timestep=t, **given, return_dict=False)[0]


@pytest.mark.parametrize("file", ["unet/" + WEIGHTS, "conditioning/conditioner.safetensors"])
def test_a_missing_weight_is_refused_by_name(file, tmp_path):
    network = build(configured("dit", "added"))
    directory = saved(network, tmp_path / "model")
    weights = load_file(directory / file)
    name = next(name for name in weights if "class_embedder" not in name)
    save_file({key: value for key, value in weights.items() if key != name}, directory / file)
    with pytest.raises(ModelError, match=f'"{name}" is missing'):
        load_weights(network, directory)


def test_a_damaged_conditioner_is_refused(tmp_path):
    network = build(configured("dit", "added"))
    directory = saved(network, tmp_path / "model")
    (directory / "conditioning/conditioner.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelError, match=r"conditioner\.safetensors: is no readable"):
        load_weights(network, directory)


def test_late_injection_of_nothing_is_the_network_s_own_forward_pass():
    network, (x_t, t, _) = build(configured("unet", "late")).backbone, noisy()
    nothing = torch.zeros(len(x_t), 32)
    assert torch.equal(late(network, x_t, t, nothing), network(x_t, t, return_dict=False)[0])


def test_what_is_injected_late_leaves_the_way_down_alone():
    network, (x_t, t, labels) = build(configured("unet", "late")), noisy()
    down, up = [], []
    for blocks, seen in ((network.backbone.down_blocks, down), (network.backbone.up_blocks, up)):
        for block in blocks:
            block.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
    for rows in (labels, labels.flip(0)):
        call(network, x_t, t, rows)
    assert torch.equal(down[0][0], down[2][0])
    assert torch.equal(down[1][0], down[3][0])
    assert not torch.equal(up[0], up[2])
