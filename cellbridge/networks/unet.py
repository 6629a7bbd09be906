"""The UNet backbone (diffusers' `UNet2DModel`) with one embedding row per condition, and its directory on disk.

The directory is a diffusers pipeline folder (`model_index.json`, `unet/`, `scheduler/`) that `DiffusionPipeline.from_pretrained` opens
without remote code. diffusers only warns of a missing weight; `load_unet` refuses.

diffusers is imported inside the functions: it costs about five seconds, whichever of its public paths is taken.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from cellbridge.config import NetworkConfig
from cellbridge.errors import ConfigError, ModelError, did_you_mean, in_one_line
from cellbridge.networks.initialisation import initialise

if TYPE_CHECKING:
    from diffusers import UNet2DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
_CHANNELS_PER_GROUP = 4
_LARGEST_HEAD = 32
_PREDICTION_TYPES = {"v": "v_prediction", "epsilon": "epsilon", "x_0": "sample"}


def build_unet(
    config: NetworkConfig,
    *,
    channels: int,
    size_px: int,
    conditions: int,
    out_channels: int | None = None,
    takes: Literal["rows", "vectors", "nothing"] = "rows",
) -> "UNet2DModel":
    """Build the backbone with fresh weights, drawn as every PyTorch module draws them (from the default generator).

    Group normalisation has at least four channels to a group: with one, each channel of a cell would lose its own mean intensity.
    The condition embedding starts at `embedding_std`, because PyTorch's 1.0 drowns the time embedding it is added to.

    Parameters
    ----------
    conditions : rows of the condition embedding, the unconditional row included.
    out_channels : as many as `channels` if not given; twice as many where variances are learned.
    takes : as `class_labels`: rows of its own embedding, vectors that are added to its time embedding, or none.

    Raises
    ------
    ConfigError : the size cannot be halved once per level, a level is named that is not there, or the widths share no group size.
    """
    from diffusers import UNet2DModel

    levels = len(config.widths)
    check_levels(config, size_px=size_px)
    groups = group_count(config.widths)
    attended = [config.widths[level] for level in config.attention_levels] or [config.widths[-1]]
    network = UNet2DModel(
        sample_size=size_px,
        in_channels=channels,
        out_channels=out_channels or channels,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple(
            "AttnDownBlock2D" if i in config.attention_levels else "DownBlock2D" for i in range(levels)
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if i in config.attention_levels else "UpBlock2D" for i in reversed(range(levels))
        ),
        add_attention=levels - 1 in config.attention_levels,
        attention_head_dim=head_width(math.gcd(*attended)),
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift",
        dropout=config.dropout,
        num_class_embeds=conditions if takes == "rows" else None,
        class_embed_type="identity" if takes == "vectors" else None,
    )
    initialise(network, config.initialisation, zero_out=config.zero_out)
    if takes == "rows":
        nn.init.normal_(network.class_embedding.weight, std=config.embedding_std)
    return _with_repeated_blocks(network)


def save_base(
    network: nn.Module,
    directory: Path,
    *,
    kind: Literal["cosine", "linear", "scaled_linear"],
    steps: int,
    prediction: Literal["v", "epsilon", "x_0"],
    betas: tuple[float, float] | None = None,
    zero_terminal_snr: bool = False,
    learned_range: bool = False,
) -> None:
    """Write a diffusers pipeline folder: `model_index.json`, `unet/` and `scheduler/`.

    `DiffusionPipeline.from_pretrained(directory)` opens it as a `DDIMPipeline`, or as a `DDPMPipeline` where variances are learned:
    diffusers' DDIM scheduler does not take them off the network's output. Its own `__call__` knows no conditions; loop over
    `pipeline.scheduler.timesteps` with `pipeline.unet(x_t, t, class_labels=…)`.

    Parameters
    ----------
    network : a diffusers backbone, which the folder holds as `unet` whatever its class is; its name is not kept, so that no path of this machine enters the folder.
    betas : first and last beta of the linear kinds; Ho et al.'s if not given.
    """
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

    schedule: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}
    if kind != "cosine":
        first, last = betas or (0.1 / steps, 20 / steps)
        schedule = {"beta_schedule": kind, "beta_start": first, "beta_end": last}
    schedule |= {
        "num_train_timesteps": steps,
        "prediction_type": _PREDICTION_TYPES[prediction],
        "clip_sample": False,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": zero_terminal_snr,
    }
    _forget_path(network)
    if learned_range:
        scheduler = DDPMScheduler(variance_type="learned_range", **schedule)
        pipeline = DDPMPipeline(unet=network, scheduler=scheduler)
    else:
        pipeline = DDIMPipeline(unet=network, scheduler=DDIMScheduler(**schedule))
    pipeline.save_pretrained(directory, safe_serialization=True)


def load_unet(directory: Path) -> "UNet2DModel":
    """Open the `unet/` folder of a pipeline: configuration and safetensors weights, every key and shape checked.

    Raises
    ------
    ModelError : a file is missing or damaged, or its weights are not exactly those of the configured network.
    """
    from diffusers import UNet2DModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network = UNet2DModel.from_config(UNet2DModel.load_config(directory))
        weights = load_file(directory / WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = in_one_line(error)
        raise ModelError(f"{directory}: is no readable UNet2DModel folder (config.json, {WEIGHTS}): {reason}") from None
    require_same_keys(weights, dict(network.state_dict()), source=str(directory / WEIGHTS))
    network.load_state_dict(weights)
    return _with_repeated_blocks(network)


def require_same_keys(found: dict[str, Tensor], expected: dict[str, Tensor], *, source: str) -> None:
    """Raise ModelError, naming the first of them, where weights are missing, extra or of another shape."""
    for name in expected:
        if name not in found:
            missing = sum(key not in found for key in expected)
            raise ModelError(
                f'{source}: the weight "{name}" is missing ({missing} in all). Train or copy the model again.'
            )
    for name in found:
        if name not in expected:
            extra = sum(key not in expected for key in found)
            raise ModelError(
                f'{source}: the weight "{name}" has no place in the network ({extra} such in all).'
                f"{did_you_mean(name, expected, limit=3)}"
            )
        if found[name].shape != expected[name].shape:
            raise ModelError(
                f'{source}: the weight "{name}" has shape {tuple(found[name].shape)}, '
                f"the network expects {tuple(expected[name].shape)}. The weights belong to another network."
            )


def _with_repeated_blocks(network: "UNet2DModel") -> "UNet2DModel":
    """Name the classes that regional compilation compiles; diffusers leaves the list of `UNet2DModel` empty."""
    network._repeated_blocks = ["ResnetBlock2D", "Attention"]
    return network


def check_levels(config: NetworkConfig, *, size_px: int) -> None:
    """Raise ConfigError where the size cannot be halved once per level, or a level is named that is not there."""
    levels = len(config.widths)
    if size_px % 2 ** (levels - 1):
        raise ConfigError(
            f"network.widths has {levels} levels, which halve the image {levels - 1} times; {size_px} px is no multiple of "
            f"{2 ** (levels - 1)}. Use fewer levels or another size_px."
        )
    for level in config.attention_levels:
        if not 0 <= level < levels:
            raise ConfigError(
                f"network.attention_levels: there is no level {level}; levels are 0 (finest) to {levels - 1}."
            )


def group_count(widths: tuple[int, ...]) -> int:
    """Return a number of normalisation groups that divides every width, with at least four channels to a group."""
    common = math.gcd(*widths)
    if common < _CHANNELS_PER_GROUP:
        raise ConfigError(
            f"network.widths = {list(widths)}: all widths must share a divisor of at least {_CHANNELS_PER_GROUP}."
        )
    return _largest_divisor(common, limit=min(32, min(widths) // _CHANNELS_PER_GROUP))


def head_width(width: int) -> int:
    """Return the features of one attention head: the largest divisor of the width up to 32."""
    return _largest_divisor(width, limit=_LARGEST_HEAD)


def _largest_divisor(number: int, *, limit: int) -> int:
    return max(divisor for divisor in range(1, limit + 1) if number % divisor == 0)


def _forget_path(network: Any) -> None:
    if getattr(network.config, "_name_or_path", None):
        network.register_to_config(_name_or_path="")
