"""Ways to start a backbone's weights other than its own.

References
----------
Glorot & Bengio 2010 (xavier), He et al. 2015, arXiv:1502.01852 (he), Goyal et al. 2017, arXiv:1706.02677, section 5.1, and Peebles &
Xie 2022, arXiv:2212.09748 (residual blocks that start as the identity).
"""

from typing import Any, Literal

import torch
from torch import nn

from cellbridge.errors import ModelError

Initialisation = Literal["default", "xavier", "he"]

_LAST_LAYERS = {
    "ResnetBlock2D": ("conv2",),
    "Attention": ("to_out.0",),
    "FeedForward": ("net.2",),
    "AdaLayerNormZero": ("linear",),
}
"""What a residual block of diffusers ends with, by the class of the block; adaLN-zero gates its block instead."""

OUTPUT_LAYERS = ("conv_out", "proj_out_2", "proj_out")
"""What gives the image, of diffusers' backbones, whichever is there."""


def initialise(network: nn.Module, kind: Initialisation, *, zero_out: bool) -> None:
    """Draw the convolutions and linear maps of a backbone anew, from the default generator.

    Parameters
    ----------
    kind : `xavier` and `he` draw uniform and normal weights that keep the variance of what flows back and forth, or (before a
        rectifier) forth; biases start at zero. `default` leaves what diffusers drew.
    zero_out : the last layer of every residual block starts at zero, and the block as the identity.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and kind != "default":
            if kind == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if not zero_out:
        return
    for block in network.modules():
        for name in _LAST_LAYERS.get(type(block).__name__, ()):
            layer = block.get_submodule(name)
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


@torch.no_grad()
def silence(network: nn.Module) -> None:
    """Let a backbone say zero.

    Parameters
    ----------
    network : diffusers' own, or one or more wrappers with that as `backbone`.

    Raises
    ------
    ModelError : it has no output layer that is known.
    """
    inner: Any = network
    while isinstance(getattr(inner, "backbone", None), nn.Module):
        inner = inner.backbone
    found = [layer for name in OUTPUT_LAYERS if isinstance(layer := getattr(inner, name, None), nn.Conv2d | nn.Linear)]
    if not found:
        raise ModelError(
            f"{type(inner).__name__} has no layer called {' or '.join(OUTPUT_LAYERS)}. Use backbone unet or dit."
        )
    found[0].weight.zero_()
    if found[0].bias is not None:
        found[0].bias.zero_()
