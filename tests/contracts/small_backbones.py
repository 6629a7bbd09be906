"""Small networks of every backbone and conditioning scheme, and images for them."""

from typing import Any

import torch
from torch import Tensor, nn

from cellbridge.assembly import BACKBONES
from cellbridge.config import ConditioningConfig, DitConfig, NetworkConfig
from cellbridge.networks.condition_table import ConditionTable

NAMES = ("", "DMSO", "taxol@1", "taxol@5", "nocodazole@0.3", "<adapter>")
PLATES = ("P1", "P2")


def configured(backbone: str, scheme: str, **changed: Any) -> NetworkConfig:
    own = {key: changed.pop(key) for key in list(changed) if key in NetworkConfig.model_fields}
    sizes = {"widths": (8, 16), "attention_levels": (1,), "dit": DitConfig(width=16, depth=2)}
    conditioning = ConditioningConfig(**{"scheme": scheme, "width": 16, "token_dropout": 0.0, **changed})
    return NetworkConfig(**{"backbone": backbone, **sizes, **own, "conditioning": conditioning})


def table() -> ConditionTable:
    return ConditionTable.of(NAMES, plates=PLATES)


def build(config: NetworkConfig, *, channels: int = 3, size_px: int = 8, out_channels: int | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = BACKBONES[config.backbone]
        return make(config, table(), channels=channels, size_px=size_px, out_channels=out_channels).eval()


def noisy(n: int = 5, *, channels: int = 3, size_px: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    x_t = torch.randn(n, channels, size_px, size_px, generator=torch.Generator().manual_seed(1))
    return x_t, torch.linspace(-0.5, 999.0, n), torch.arange(n) % len(NAMES)


def call(network: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return network(x_t, t, class_labels=labels, return_dict=False)[0]


def without_gradient(network: nn.Module, *inputs: Tensor) -> list[str]:
    """Return the trainable parameters that the output does not depend on."""
    network.zero_grad(set_to_none=True)
    call(network, *inputs).square().mean().backward()
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    return [name for name, p in trained if p.grad is None or not p.grad.abs().sum() > 0]
