"""The UNet whose attention also looks at tokens (diffusers' `UNet2DConditionModel`), and whose conditions may stand beside the time."""

from typing import TYPE_CHECKING, Literal

from cellbridge.config import NetworkConfig
from cellbridge.networks.initialisation import initialise
from cellbridge.networks.unet import check_levels, group_count, head_width

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def build_cross_attention_unet(
    config: NetworkConfig,
    *,
    channels: int,
    size_px: int,
    out_channels: int | None = None,
    takes: Literal["tokens", "added vectors", "concatenated vectors"],
) -> "UNet2DConditionModel":
    """Build the backbone with fresh weights, from the default generator.

    Where it takes vectors, its attention levels attend to the image alone, as those of `build_unet` do.

    Raises
    ------
    ConfigError : the size cannot be halved once per level, a level is named that is not there, or the widths share no group size.
    """
    from diffusers import UNet2DConditionModel

    check_levels(config, size_px=size_px)
    attending = "CrossAttn{}Block2D" if takes == "tokens" else "Attn{}Block2D"
    heads = [head_width(width) for width in config.widths]
    if takes == "tokens":  # what diffusers calls the width of a head is their number in these blocks
        heads = [width // head for width, head in zip(config.widths, heads, strict=True)]
    levels = range(len(config.widths))
    kinds = [attending if level in config.attention_levels else "{}Block2D" for level in levels]
    middle = takes == "tokens" and levels[-1] in config.attention_levels
    network = UNet2DConditionModel(
        sample_size=size_px,
        in_channels=channels,
        out_channels=out_channels or channels,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple(kind.format("Down") for kind in kinds),
        mid_block_type="UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        up_block_types=tuple(kind.format("Up") for kind in reversed(kinds)),
        cross_attention_dim=config.conditioning.width,
        attention_head_dim=tuple(heads),
        norm_num_groups=group_count(config.widths),
        resnet_time_scale_shift="scale_shift",
        dropout=config.dropout,
        class_embed_type=None if takes == "tokens" else "identity",
        class_embeddings_concat=takes == "concatenated vectors",
    )
    initialise(network, config.initialisation, zero_out=config.zero_out)
    network._repeated_blocks = ["ResnetBlock2D", "Attention"]
    return network
