"""A diffusion backbone as the network of a bridge between images.

It is the backbone itself, of any kind and conditioning scheme, with two more input planes: how far the bridge has come, and how strong its
noise is. Their weights begin at zero, and so does the output layer: what a base has learnt is kept, and the network says nothing yet.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from cellbridge.networks.initialisation import OUTPUT_LAYERS
from cellbridge.networks.unet import require_same_keys
from cellbridge.typing import Images, Labels, Times

_FIRST = ("conv_in", "pos_embed.proj")
_ROWS = "class_embedding.weight"

PLANES = 2
"""Input planes beside the image: elapsed time, and noise."""


@final
class BridgeBackbone(nn.Module):
    """What a backbone makes of a point of a bridge.

    Parameters
    ----------
    backbone : called as `backbone(input, t, class_labels=labels, return_dict=False)[0]`, of `PLANES` more input channels than output
        channels.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Images, t: Times, labels: Labels, *, elapsed: Times, noise: Tensor) -> Images:
        """Return the output, as large as `x`.

        Parameters
        ----------
        t : time for the backbone's own embedding.
        elapsed : (batch,), in [0, 1].
        noise : (batch,), the volatility on a scale of about -1 to 1.
        """
        planes = torch.stack([2 * elapsed - 1, noise], 1).to(x.dtype)
        shown = torch.cat([x, planes[..., None, None].expand(-1, -1, *x.shape[2:])], 1)
        output: Images = self.backbone(shown, t, class_labels=labels, return_dict=False)[0]
        return output

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed."""
        return bool(self.backbone.is_gradient_checkpointing)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only what goes into each block of the backbone."""
        self.backbone.enable_gradient_checkpointing()  # type: ignore[operator]

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation again."""
        self.backbone.disable_gradient_checkpointing()  # type: ignore[operator]


@torch.no_grad()
def take_weights(network: nn.Module, base: nn.Module, *, channels: int, row: int) -> None:
    """Give a backbone of more input planes and another table of conditions the weights of a base.

    Parameters
    ----------
    channels : of an image; further input planes begin at zero.
    row : of the base's condition embedding, with which every row begins, as far apart from it as a fresh table's rows are from zero:
        direction and condition are told by the rows alone, and from equal ones nothing is learnt that differs between them.

    Raises
    ------
    ModelError : the base is of another shape.
    """
    given, own = dict(_plain(base).state_dict()), dict(_plain(network).state_dict())
    shaped = {name: _reshaped(name, value, own, channels=channels, row=row) for name, value in given.items()}
    require_same_keys(shaped, own, source="the base's network")
    _plain(network).load_state_dict(shaped)


def _reshaped(name: str, value: Tensor, own: Mapping[str, Tensor], *, channels: int, row: int) -> Tensor:
    if name in own and name.endswith(_ROWS):  # as many rows as the base has would still stand for something else
        return value[row] + own[name]
    if name not in own or own[name].shape == value.shape:
        return value
    if any(name.endswith(f"{first}.weight") for first in _FIRST):
        wider = torch.zeros_like(own[name])
        wider[:, :channels] = value[:, :channels]
        return wider
    if any(f"{last}." in name for last in OUTPUT_LAYERS):
        return value[: len(own[name])]  # a base that also predicts its variance has twice the outputs
    return value


def _plain(network: nn.Module) -> nn.Module:
    return network.backbone if isinstance(network, BridgeBackbone) else network
