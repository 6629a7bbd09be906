"""The training state of an adapter, counted beside that of full fine-tuning."""

from dataclasses import asdict
from typing import Any

import torch
from adapter_state import GOAL, compare
from claims import Row, row
from sizes import Size

from cellbridge.config import AdapterConfig

_WIDER = 16


def adapter(size: Size, device: torch.device) -> dict[str, Any]:
    """Count bytes of the default adapter, of a wider one and of full fine-tuning on the largest network; exact, so without intervals."""
    configs = [AdapterConfig(), AdapterConfig(rank=_WIDER)]
    full, counted = compare(size.on_device[-1], configs)
    rows: list[Row] = []
    for config, adapted in zip(configs, counted, strict=True):
        name = f"adapter of rank {config.rank} / full fine-tuning ({full.trainable / 1e6:.3g} M)"
        rows.append(row(f"gradients, optimiser, average: {name}", adapted.held / full.held, at_most=GOAL))
        rows.append(row(f"checkpoint on disk: {name}", adapted.checkpoint / full.checkpoint, at_most=GOAL))
    states = {f"rank {config.rank}": asdict(adapted) for config, adapted in zip(configs, counted, strict=True)}
    return {"rows": rows, "bytes": {"full": asdict(full), **states}}
