"""Diffusion transformers over patches: diffusers' `DiTTransformer2DModel`, or, where it attends to tokens, `PixArtTransformer2DModel`.

References
----------
Peebles & Xie 2022, "Scalable diffusion models with transformers", arXiv:2212.09748; Chen et al. 2023, "PixArt-alpha",
arXiv:2310.00426 (the same with cross-attention and one shared adaLN).
"""

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cellbridge.config import NetworkConfig
from cellbridge.networks.initialisation import initialise
from cellbridge.networks.unet import head_width

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

TABLE = "class_embedder.embedding_table.weight"


def build_dit(
    config: NetworkConfig, *, channels: int, size_px: int, conditions: int, out_channels: int | None = None
) -> "DiTTransformer2DModel":
    """Build a transformer that takes vectors of the network's width as `class_labels`, and adds them to its time embedding.

    diffusers gives each block a table of labels of its own, which it also drops by itself in training; here one table outside
    serves all blocks, and the training drops conditions. `with_tables` puts tables back for others to read.
    """
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(**_sizes(config, channels, size_px, out_channels), num_embeds_ada_norm=conditions)
    initialise(network, config.initialisation, zero_out=config.zero_out)
    for block in network.transformer_blocks:
        block.norm1.emb.class_embedder = nn.Identity()
    return _with_repeated_blocks(network)


def build_cross_attention_dit(
    config: NetworkConfig, *, channels: int, size_px: int, out_channels: int | None = None
) -> "PixArtTransformer2DModel":
    """Build a transformer that attends to tokens of `config.conditioning.width`."""
    from diffusers import PixArtTransformer2DModel

    network = PixArtTransformer2DModel(
        **_sizes(config, channels, size_px, out_channels),
        cross_attention_dim=config.dit.width,
        caption_channels=config.conditioning.width,
        use_additional_conditions=False,
    )
    initialise(network, config.initialisation, zero_out=config.zero_out)
    return _with_repeated_blocks(network)


def with_tables(network: "DiTTransformer2DModel", vectors: Tensor) -> "DiTTransformer2DModel":
    """Return a copy of stock layout, whose tables hold the vector of every row, and in the place for dropped labels that of row 0."""
    from diffusers.models.embeddings import LabelEmbedding

    network = copy.deepcopy(network)
    network.register_to_config(num_embeds_ada_norm=len(vectors))
    for block in network.transformer_blocks:
        table = LabelEmbedding(len(vectors), vectors.shape[1], dropout_prob=0.1)
        table.embedding_table.weight.data[:-1] = vectors
        table.embedding_table.weight.data[-1] = vectors[0]
        block.norm1.emb.class_embedder = table
    return network


def _sizes(config: NetworkConfig, channels: int, size_px: int, out_channels: int | None) -> dict[str, Any]:
    head = head_width(config.dit.width)
    return {
        "num_attention_heads": config.dit.width // head,
        "attention_head_dim": head,
        "in_channels": channels,
        "out_channels": out_channels or channels,
        "num_layers": config.dit.depth,
        "dropout": config.dropout,
        "sample_size": size_px,
        "patch_size": config.dit.patch_px,
    }


def _with_repeated_blocks(network: Any) -> Any:
    network._repeated_blocks = ["BasicTransformerBlock"]
    return network
