"""What every suite does with its parts: choose, measure one after another, and note seconds and peaks of memory."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import machine
import torch

from cellbridge.errors import ConfigError, did_you_mean


def measured(
    suite: str,
    parts: Mapping[str, Callable[[Any, torch.device], dict[str, Any]]],
    chosen: Sequence[str] | None,
    *,
    size: Any,
    device: torch.device,
) -> dict[str, Any]:
    """Measure the parts of a suite that were chosen (None is all), each at a size and on a device.

    Raises
    ------
    ConfigError : there is no such part; said before anything is measured.
    """
    names = list(parts) if chosen is None else list(dict.fromkeys(chosen))
    for name in names:
        if name not in parts:
            raise ConfigError(f'the suite {suite} has no part "{name}".{did_you_mean(name, parts)}')
    found: dict[str, Any] = {"suite": suite, "machine": machine.describe(device), "parts": {}}
    for name in names:
        sys.stderr.write(f"benchmark {suite}: {name}\n")
        whole = machine.forget_peak(device)
        began = time.perf_counter()
        result = parts[name](size, device)
        result |= {"seconds": time.perf_counter() - began, "peak_memory_gib": machine.peak_gib(device)}
        found["parts"][name] = result | {"peak_is_of_this_part": whole}
    return found
