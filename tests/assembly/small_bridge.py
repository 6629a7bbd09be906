"""A bridge between small images, of every kind of network, that has learnt nothing yet or something."""

import torch
from torch import Tensor

from cellbridge.assembly.bridges import BridgeCard
from cellbridge.bridge.image_moments import joined, leading_modes, pair_moments
from cellbridge.bridge.linear_guess import Moments
from cellbridge.config import DitConfig, NetworkConfig, ScheduleConfig

CHANNELS, SIZE_PX = ("DNA", "ER", "AGP"), 6
CONDITIONS = ("taxol@1", "taxol@5")


def card(network: NetworkConfig | None = None, **changed) -> BridgeCard:
    sizes = NetworkConfig(widths=(8, 16), attention_levels=(1,), dit=DitConfig(width=16, depth=1))
    values = {
        "channels": CHANNELS,
        "size_px": SIZE_PX,
        "control": "DMSO",
        "conditions": CONDITIONS,
        "network": network or sizes,
        "schedule": ScheduleConfig(),
        "clock": "endpoint",
        "reg": (0.01, 0.04),
        "image_std": 0.5,
        "coupling": "independent",
        "plates": ("P1",),
        "store_sha256": "0" * 64,
    }
    return BridgeCard(**{**values, **changed})


def images(n: int, seed: int = 0) -> Tensor:
    return 0.5 * torch.randn(n, len(CHANNELS), SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(seed))


def moments(modes: int = 4) -> Moments:
    source, targets = images(60), [0.7 * images(60, seed) + 0.2 for seed in (1, 2)]
    basis = leading_modes(source, modes, seed=0)
    return joined([pair_moments(lambda t=t: [(source, t)], basis, cells=60, coupled=False) for t in targets])
