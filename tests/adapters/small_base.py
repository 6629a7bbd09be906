"""A base of a few weights, and adapters over it that are not as they started."""

import copy
from typing import Any

import torch

from cellbridge.adapters import lora
from cellbridge.config import NetworkConfig
from cellbridge.networks.unet import build_unet

CONTROL, CONDITION = 1, 2
KINDS: dict[str, dict[str, Any]] = {"LoRA": {}, "rsLoRA": {"rslora": True, "alpha": 6.0}, "DoRA": {"dora": True}}


def build_base():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_unet(
            NetworkConfig(widths=(8, 16), attention_levels=(1,)), channels=3, size_px=8, conditions=3
        ).eval()


def call(network, label: int = CONTROL) -> torch.Tensor:
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(x_t, torch.full((2,), 300.5), class_labels=torch.full((2,), label), return_dict=False)[0]


def trained(network, seed: int = 1, **kind: Any):
    """Return an adapter whose weights are not those of its start."""
    model = lora.attach(copy.deepcopy(network), rank=4, **kind).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.trainable(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model
