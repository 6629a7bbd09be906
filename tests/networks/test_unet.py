import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cellbridge.config import NetworkConfig
from cellbridge.errors import ConfigError, ModelError
from cellbridge.networks.unet import WEIGHTS, build_unet, load_unet, save_base

SMALL = NetworkConfig(widths=(8, 16), attention_levels=(1,))


def small(conditions: int = 3):
    return build_unet(SMALL, channels=3, size_px=8, conditions=conditions).eval()


def call(network, t: float = 12.5) -> torch.Tensor:
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(x_t, torch.full((2,), t), class_labels=torch.tensor([0, 2]), return_dict=False)[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base") / "model"
    network = small()
    save_base(network, directory, kind="cosine", steps=1000, prediction="v")
    return directory, network


@pytest.mark.parametrize("widths", [(32, 64, 96), (32, 64, 64), (48, 96), (8, 16)])
def test_groups_hold_four_channels_or_more(widths):
    network = build_unet(NetworkConfig(widths=widths, attention_levels=()), channels=5, size_px=16, conditions=3)
    sizes = {m.num_channels // m.num_groups for m in network.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert min(sizes) >= 4


def test_the_condition_embedding_starts_at_the_given_spread():
    rows = small(conditions=400).class_embedding.weight
    assert rows.std().item() == pytest.approx(0.02, rel=0.05)


def test_attention_lies_at_the_levels_named_and_nowhere_else():
    from diffusers.models.attention_processor import Attention

    def attended(*levels: int) -> int:
        config = NetworkConfig(widths=(8, 8, 16), attention_levels=levels)
        network = build_unet(config, channels=1, size_px=8, conditions=2)
        return sum(isinstance(module, Attention) for module in network.modules())

    assert attended() == 0
    assert attended(1) == 1 + 2  # one layer down, two up
    assert attended(2) == 1 + 2 + 1  # and the middle


def test_fractional_times_lie_between_their_neighbours():
    network = small()
    assert not torch.equal(call(network, 12.0), call(network, 12.5))


def test_the_folder_opens_as_a_stock_pipeline_and_gives_the_same_output(saved):
    from diffusers import DDIMPipeline, DiffusionPipeline

    directory, network = saved
    pipeline = DiffusionPipeline.from_pretrained(str(directory), local_files_only=True)
    assert isinstance(pipeline, DDIMPipeline)
    assert torch.equal(call(pipeline.unet.eval()), call(network))
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.clip_sample is False


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("kind", ["cosine", "linear", "scaled_linear"])
def test_the_saved_scheduler_has_the_schedule_of_training(kind, blank, tmp_path):
    from diffusers import DDIMScheduler

    from cellbridge.diffusion.schedule import beta_range, make_schedule

    save_base(
        small(),
        tmp_path / "model",
        kind=kind,
        steps=500,
        prediction="v",
        betas=beta_range(kind, 500) if kind == "scaled_linear" else None,
        zero_terminal_snr=blank,
    )
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "model" / "scheduler")
    expected = make_schedule(kind, 500, zero_terminal_snr=blank).alpha_bar
    assert torch.allclose(scheduler.alphas_cumprod.double(), expected, rtol=3e-4, atol=1e-7)
    assert scheduler.config.timestep_spacing == "trailing"


def test_a_saved_network_loads_to_the_same_output(saved):
    directory, network = saved
    assert torch.equal(call(load_unet(directory / "unet").eval()), call(network))


def test_no_path_of_this_machine_enters_the_folder(saved, tmp_path):
    from diffusers import UNet2DModel

    directory, _ = saved
    save_base(
        UNet2DModel.from_pretrained(directory / "unet"), tmp_path / "again", kind="cosine", steps=1000, prediction="v"
    )
    texts = [path.read_text() for path in (tmp_path / "again").rglob("*.json")]
    assert not any(str(directory.parent) in text for text in texts)


def _change(saved, tmp_path, change):
    directory, _ = saved
    unet = tmp_path / "unet"
    unet.mkdir()
    (unet / "config.json").write_text((directory / "unet" / "config.json").read_text())
    weights = load_file(directory / "unet" / WEIGHTS)
    change(weights)
    save_file(weights, unet / WEIGHTS)
    return unet


def test_a_missing_weight_is_refused_by_name(saved, tmp_path):
    unet = _change(saved, tmp_path, lambda weights: weights.pop("conv_in.bias"))
    with pytest.raises(ModelError, match=r'"conv_in.bias" is missing \(1 in all\)'):
        load_unet(unet)


def test_an_extra_weight_is_refused_by_name(saved, tmp_path):
    unet = _change(saved, tmp_path, lambda weights: weights.update({"conv_in.scale": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r'"conv_in.scale" has no place'):
        load_unet(unet)


def test_a_weight_of_another_shape_is_refused_with_both_shapes(saved, tmp_path):
    unet = _change(saved, tmp_path, lambda weights: weights.update({"conv_in.bias": torch.zeros(9)}))
    with pytest.raises(ModelError, match=r"shape \(9,\), the network expects \(8,\)"):
        load_unet(unet)


def test_a_truncated_file_and_a_damaged_configuration_are_refused(saved, tmp_path):
    unet = _change(saved, tmp_path, lambda weights: None)
    content = (unet / WEIGHTS).read_bytes()
    (unet / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="no readable UNet2DModel folder"):
        load_unet(unet)
    (unet / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"})[:-3])
    with pytest.raises(ModelError, match="no readable UNet2DModel folder"):
        load_unet(unet)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no readable UNet2DModel folder"):
        load_unet(tmp_path / "unet")


@pytest.mark.parametrize(
    ("config", "size_px", "message"),
    [
        (NetworkConfig(widths=(8, 8, 8)), 30, "30 px is no multiple of 4"),
        (NetworkConfig(widths=(8, 8), attention_levels=(2,)), 8, "there is no level 2"),
        (NetworkConfig(widths=(9, 16), attention_levels=()), 8, "share a divisor of at least 4"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(config, size_px, message):
    with pytest.raises(ConfigError, match=message):
        build_unet(config, channels=1, size_px=size_px, conditions=2)
