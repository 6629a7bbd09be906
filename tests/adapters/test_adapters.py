import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_base import CONDITION, CONTROL, KINDS, build_base, call, trained

from cellbridge import _compat
from cellbridge.adapters import library, lora
from cellbridge.config import NetworkConfig
from cellbridge.errors import ModelError
from cellbridge.networks.unet import build_unet, save_base


@pytest.fixture(scope="module")
def base():
    return build_base()


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter") / "model"
    model = trained(base)
    library.save_adapter(model, directory, base_sha256="a" * 64)
    return directory, model.requires_grad_(False)  # as a loaded one: PyTorch chooses other kernels for frozen weights


@pytest.mark.parametrize("targets", [("attention",), ("convolution",), ("time",), tuple(lora.MODULES)])
def test_a_fresh_adapter_is_the_base_bit_for_bit(base, targets):
    model = lora.attach(copy.deepcopy(base), rank=4, targets=targets).eval()
    for label in range(3):
        assert torch.equal(call(model, label), call(base, label))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_fresh_adapter_of_each_kind_is_the_base(base, kind):
    """Bit for bit, but for DoRA, which divides each output by its length and multiplies by it again."""
    model = lora.attach(copy.deepcopy(base), rank=4, **KINDS[kind]).eval()
    assert (call(model) - call(base)).abs().max().item() <= (1e-6 if kind == "DoRA" else 0.0)


def test_dora_on_weights_without_a_direction_is_refused_where_it_would_give_no_number(base):
    """peft divides by their length; LoRA takes them."""
    from peft import LoraConfig, get_peft_model

    zeroed = copy.deepcopy(base)
    with torch.no_grad():
        zeroed.mid_block.resnets[0].conv2.weight[3] = 0.0
    unguarded = get_peft_model(copy.deepcopy(zeroed), LoraConfig(r=4, target_modules=["conv2"], use_dora=True)).eval()
    assert not torch.isfinite(call(unguarded)).all()
    with pytest.raises(ModelError, match=r"mid_block\.resnets\.0\.conv2.*adapter\.dora: false"):
        lora.attach(copy.deepcopy(zeroed), rank=4, dora=True)
    lora.attach(copy.deepcopy(zeroed), rank=4, dora=True, targets=("attention",))
    assert torch.equal(call(lora.attach(copy.deepcopy(zeroed), rank=4).eval()), call(zeroed))


def test_a_condition_starts_as_a_copy_of_the_control(base):
    network = copy.deepcopy(base)
    lora.copy_row(network, source=CONTROL, target=CONDITION)
    assert torch.equal(call(lora.attach(network, rank=4).eval(), CONDITION), call(base, CONTROL))


def test_a_row_can_be_copied_after_the_adapter_was_attached(base):
    model = lora.attach(copy.deepcopy(base), rank=4).eval()
    lora.copy_row(model, source=CONTROL, target=CONDITION)
    assert torch.equal(call(model, CONDITION), call(base, CONTROL))


def test_only_adapter_and_condition_rows_are_trainable(base):
    names = set(lora.trainable(lora.attach(copy.deepcopy(base), rank=4)))
    assert all("lora_" in name or "class_embedding" in name for name in names)
    for part in ("to_q", "to_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "time_embedding.linear_1"):
        assert any(part in name for name in names), part


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_trainable_parameter_receives_a_gradient_and_no_other(base, kind):
    model = trained(base, **KINDS[kind])
    model(torch.randn(3, 3, 8, 8), torch.full((3,), 20.0), class_labels=torch.arange(3), return_dict=False)[
        0
    ].square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == set(lora.trainable(model))


@pytest.mark.parametrize("kind", list(KINDS))
def test_merged_equals_unmerged(base, kind):
    model = trained(base, **KINDS[kind])
    merged = library.merge(model)
    assert type(merged) is type(base)
    assert (call(merged, CONDITION) - call(model, CONDITION)).abs().max().item() < 1e-5
    assert set(merged.state_dict()) == set(base.state_dict())
    assert not torch.equal(call(model, CONDITION), call(base, CONDITION))


@pytest.mark.parametrize(("rslora", "scale"), [(False, 0.5), (True, 1.0)])
def test_the_scale_is_alpha_over_rank_or_over_its_root(base, rslora, scale):
    model = lora.attach(copy.deepcopy(base), rank=4, alpha=2.0, rslora=rslora)
    layer = next(module for module in model.modules() if getattr(module, "scaling", None))
    assert layer.scaling == {"default": scale}


def test_a_saved_adapter_loads_to_the_same_output(base, saved):
    directory, model = saved
    loaded = library.load_adapter(copy.deepcopy(base), directory, base_sha256="a" * 64).eval()
    assert torch.equal(call(loaded, CONDITION), call(model, CONDITION))


OUTSIDE = """
import json, runpy, sys
guard, base, x_t, *adapters = sys.argv[1:]
runpy.run_path(guard)["install"]()  # a torchvision built for CUDA does not import beside a CPU torch
import torch
from diffusers import UNet2DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
x_t = load_file(x_t)["x_t"]
for directory in adapters:
    model = PeftModel.from_pretrained(UNet2DModel.from_pretrained(base), directory).eval()
    with torch.no_grad():
        output = model(x_t, torch.full((2,), 300.5), class_labels=torch.full((2,), 2), return_dict=False)[0]
    save_file({"output": output}, directory + ".safetensors")
assert "cellbridge" not in sys.modules
"""


def test_saved_adapters_of_every_kind_open_with_peft_and_diffusers_alone(base, tmp_path):
    save_base(base, tmp_path / "base", kind="cosine", steps=1000, prediction="v")
    models = {kind: trained(base, **own).requires_grad_(False) for kind, own in KINDS.items()}
    for kind, model in models.items():
        library.save_adapter(model, tmp_path / kind, base_sha256="a" * 64)
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"x_t": x_t}, tmp_path / "x_t.safetensors")
    paths = [
        Path(_compat.__file__),
        tmp_path / "base/unet",
        tmp_path / "x_t.safetensors",
        *map(tmp_path.joinpath, KINDS),
    ]
    subprocess.run([sys.executable, "-c", OUTSIDE, *map(str, paths)], check=True, cwd=tmp_path)
    for kind, model in models.items():
        outside = load_file(tmp_path / f"{kind}.safetensors")["output"]
        assert (outside - call(model, CONDITION)).abs().max().item() <= 1e-6


def test_the_directory_holds_the_named_files_and_no_path(base, saved):
    directory, _ = saved
    files = {path.name for path in directory.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "binding.json"}
    assert '"base_model_name_or_path": null' in (directory / "adapter_config.json").read_text()


def test_equal_adapters_are_equal_files(base, saved, tmp_path):
    directory, model = saved
    library.save_adapter(model, tmp_path, base_sha256="a" * 64)
    for path in directory.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    targets = (directory / "adapter_config.json").read_text().split('"target_modules": [')[1].split("]")[0].split(",")
    assert targets == sorted(targets)


def test_averaged_weights_are_saved_in_place_of_the_models_own(base, tmp_path):
    model = trained(base)
    before = call(model, CONDITION)
    ema = {name: parameter.detach() * 0.5 for name, parameter in lora.trainable(model).items()}
    library.save_adapter(model, tmp_path, base_sha256="b", ema=ema)
    assert torch.equal(call(model, CONDITION), before)
    loaded = library.load_adapter(copy.deepcopy(base), tmp_path, base_sha256="b")
    assert all(torch.equal(parameter, ema[name]) for name, parameter in loaded.named_parameters() if name in ema)


def test_averaged_weights_must_be_exactly_the_trainable_ones(base):
    model = trained(base)
    ema = dict(lora.trainable(model))
    name = next(iter(ema))
    with pytest.raises(ModelError, match="is missing"):
        lora.copy_weights(model, {key: value for key, value in ema.items() if key != name})
    with pytest.raises(ModelError, match="has no place"):
        lora.copy_weights(model, ema | {"other": torch.zeros(1)})


def test_another_base_is_refused_with_both_hashes(base, saved):
    directory, _ = saved
    with pytest.raises(ModelError, match=f"{'a' * 64}.*{'c' * 64}"):
        library.load_adapter(copy.deepcopy(base), directory, base_sha256="c" * 64)


def _change(saved, tmp_path, change):
    directory, _ = saved
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(directory / library.WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / library.WEIGHTS)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(next(key for key in weights if "lora_A" in key)), 'lora_A.weight" is missing'),
        (
            lambda weights: weights.update({"base_model.model.conv_in.lora_A.weight": torch.zeros(1)}),
            "conv_in.* has no place",
        ),
    ],
)
def test_missing_and_extra_weights_are_refused_by_name(base, saved, tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        library.load_adapter(copy.deepcopy(base), _change(saved, tmp_path, change), base_sha256="a" * 64)


def test_an_adapter_of_another_number_of_conditions_is_refused(saved):
    with torch.random.fork_rng(devices=[]):
        wider = build_unet(NetworkConfig(widths=(8, 16), attention_levels=(1,)), channels=3, size_px=8, conditions=5)
    with pytest.raises(ModelError, match=r"class_embedding.* shape"):
        library.load_adapter(wider, saved[0], base_sha256="a" * 64)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "binding.json"])
@pytest.mark.parametrize("damage", ["absent", "truncated"])
def test_absent_or_truncated_files_are_refused(base, saved, tmp_path, name, damage):
    directory = _change(saved, tmp_path, lambda weights: None)
    content = (directory / name).read_bytes()
    (directory / name).unlink()
    if damage == "truncated":
        (directory / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=directory.name):
        library.load_adapter(copy.deepcopy(base), directory, base_sha256="a" * 64)


def test_rows_and_targets_that_are_not_there_are_refused(base):
    with pytest.raises(ModelError, match="rows 0 to 2, no row 3"):
        lora.copy_row(copy.deepcopy(base), source=1, target=3)
    with torch.random.fork_rng(devices=[]):
        plain = build_unet(NetworkConfig(widths=(8,), attention_levels=()), channels=1, size_px=8, conditions=2)
    with pytest.raises(ModelError, match="LoRA on attention"):
        lora.attach(plain, rank=4, targets=("attention",))
