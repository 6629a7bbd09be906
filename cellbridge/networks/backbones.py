"""Each backbone with each conditioning scheme that it takes, called as `network(x_t, t, class_labels=labels, return_dict=False)[0]`."""

from torch import nn

from cellbridge.config import ConditioningConfig, NetworkConfig
from cellbridge.networks.condition_table import ConditionTable
from cellbridge.networks.condition_tokens import TokenEncoder
from cellbridge.networks.conditioning import (
    AttendedThenProjected,
    ConditionedBackbone,
    Conditioner,
    Entry,
    Projected,
    Summed,
    as_class_labels,
    by_cross_attention,
    late,
    without_cross_attention,
)
from cellbridge.networks.cross_attention_unet import build_cross_attention_unet
from cellbridge.networks.dit import build_cross_attention_dit, build_dit
from cellbridge.networks.padding import padded_size
from cellbridge.networks.unet import build_unet

_TO_VECTOR = {"one_hot": Projected, "attend_then_project": AttendedThenProjected}


def conditioned_unet(
    config: NetworkConfig, table: ConditionTable, *, channels: int, size_px: int, out_channels: int | None = None
) -> nn.Module:
    """Build a `UNet2DModel`: by default alone, with an embedding of one row per condition.

    Raises
    ------
    ConfigError : as `build_unet`; sizes that cannot be halved are padded.
    """
    multiple = 2 ** (len(config.widths) - 1)
    plain = _has_own_rows(config.conditioning)
    takes = {"late": "nothing"}.get(config.conditioning.scheme, "rows" if plain else "vectors")
    network = build_unet(
        config,
        channels=channels,
        size_px=padded_size(size_px, multiple),
        conditions=len(table),
        out_channels=out_channels,
        takes=takes,  # type: ignore[arg-type]
    )
    if is_stock(config, size_px=size_px):
        return network
    conditioner = None if plain else _conditioner(config, table, 4 * config.widths[0])
    entry: Entry = late if config.conditioning.scheme == "late" else as_class_labels
    return ConditionedBackbone(network, conditioner, entry, multiple_of=multiple)


def conditioned_cross_attention_unet(
    config: NetworkConfig, table: ConditionTable, *, channels: int, size_px: int, out_channels: int | None = None
) -> ConditionedBackbone:
    """Build a `UNet2DConditionModel`.

    Raises
    ------
    ConfigError : as `build_cross_attention_unet`; sizes that cannot be halved are padded.
    """
    multiple = 2 ** (len(config.widths) - 1)
    scheme = config.conditioning.scheme
    takes = {"cross_attention": "tokens", "concatenated": "concatenated vectors"}.get(scheme, "added vectors")
    network = build_cross_attention_unet(
        config,
        channels=channels,
        size_px=padded_size(size_px, multiple),
        out_channels=out_channels,
        takes=takes,  # type: ignore[arg-type]
    )
    entry = by_cross_attention if takes == "tokens" else without_cross_attention
    return ConditionedBackbone(network, _conditioner(config, table, 4 * config.widths[0]), entry, multiple_of=multiple)


def conditioned_dit(
    config: NetworkConfig, table: ConditionTable, *, channels: int, size_px: int, out_channels: int | None = None
) -> ConditionedBackbone:
    """Build a diffusion transformer; images that cannot be cut into patches are padded."""
    padded = padded_size(size_px, config.dit.patch_px)
    network: nn.Module
    if config.conditioning.scheme == "cross_attention":
        network = build_cross_attention_dit(config, channels=channels, size_px=padded, out_channels=out_channels)
        entry: Entry = by_cross_attention
    else:
        network = build_dit(config, channels=channels, size_px=padded, conditions=len(table), out_channels=out_channels)
        entry = as_class_labels
    conditioner = _conditioner(config, table, config.dit.width)
    return ConditionedBackbone(network, conditioner, entry, multiple_of=config.dit.patch_px)


def is_stock(config: NetworkConfig, *, size_px: int) -> bool:
    """Say whether a network is diffusers' `UNet2DModel` as it is: no scheme but its own, and nothing to pad."""
    halved = size_px % 2 ** (len(config.widths) - 1) == 0
    return config.backbone == "unet" and _has_own_rows(config.conditioning) and halved


def _has_own_rows(config: ConditioningConfig) -> bool:
    """Say whether a condition is one learned row, added to the time embedding, which diffusers' UNet has itself."""
    return config.scheme == "added" and config.parts == ("compound",) and config.compound == "learned"


def _conditioner(config: NetworkConfig, table: ConditionTable, features: int) -> Conditioner:
    chosen = config.conditioning
    tokens = TokenEncoder(
        table,
        tokens=chosen.parts,
        compound=chosen.compound,
        width=chosen.width,
        dropout=chosen.token_dropout,
        text_length=chosen.text_length,
    )
    if chosen.scheme == "cross_attention":
        return Conditioner(tokens, None)
    to_vector = _TO_VECTOR.get(chosen.scheme, Summed)
    return Conditioner(tokens, to_vector(chosen.width, features, std=config.embedding_std))
