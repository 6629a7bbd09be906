"""The suite `train`: what the training engine costs, and what it gains, as ratios of contenders that take short turns.

    cellbridge benchmark train [--parts step,example] [--quick]

| part | the engine against | goal |
|---|---|---|
| step | a bare loop with the same network and flags | ≥ 0.97 of its speed |
| example | a loop with the settings of diffusers' unconditional example (float32) | ≥ 1.0 at 1.2 M parameters, ≥ 1.2 at 26 M |
| best | the same loop, with the engine's best flags on this machine, at equal held-out loss | ≥ 1.5 |
| resume | loading the checkpoint and one step | no slower |
| adapter | full fine-tuning: gradients, optimiser and average in memory | ≤ 3 % |
| device | the arithmetic peak of a CUDA device | MFU ≥ 35 % |
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from adapter_part import adapter
from best_flags import best
from device_limit import on_device
from parts import measured
from resuming import resume
from sizes import FULL, QUICK, Size
from speed import example, step

from cellbridge.runtime import pick_device

Part = Callable[[Size, torch.device], dict[str, Any]]
PARTS: Mapping[str, Part] = MappingProxyType(
    {"step": step, "example": example, "best": best, "resume": resume, "adapter": adapter, "device": on_device}
)


def run(*, parts: Sequence[str] | None = None, quick: bool = False, device: str = "auto") -> dict[str, Any]:
    """Measure the parts asked for (all by default), and return their rows, details, seconds and peaks of memory.

    Raises
    ------
    ConfigError : there is no such part.
    """
    return measure(parts, size=QUICK if quick else FULL, device=pick_device(device))


def measure(parts: Sequence[str] | None, *, size: Size, device: torch.device) -> dict[str, Any]:
    """Measure the parts at a size."""
    return measured("train", PARTS, parts, size=size, device=device)
