"""How loud a condition is beside the time, where both are vectors that a backbone adds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cellbridge.networks.conditioning import ConditionedBackbone
from cellbridge.typing import Labels, Times

MONITOR = "embedding/condition_over_time"
_LOUDEST = 3.0


@torch.no_grad()
def condition_over_time(network: nn.Module, t: Times, labels: Labels) -> Tensor | None:
    """Return |condition vector| / |time embedding| of each image, None where a network has not both.

    Wrappers (compiled, adapted) are looked through. Token dropout is off in this, and draws nothing.
    """
    for module in network.modules():
        if isinstance(module, ConditionedBackbone) and module.conditioner is not None:
            if module.conditioner.to_vector is None:
                return None
            training = module.conditioner.tokens.training
            module.conditioner.tokens.training = False  # its own flag only: the encoders in it have no dropout
            vector = module.conditioner(labels, t)
            module.conditioner.tokens.training = training
            return _ratio(vector, _time_embedding(module.backbone, t))
        embedding: Any = getattr(module, "class_embedding", None)
        if embedding is not None and hasattr(module, "time_embedding"):
            return _ratio(embedding(labels), _time_embedding(module, t))
    return None


def condition_warning(values: Mapping[str, float]) -> str | None:
    """Return what to do where the condition drowns the time, from logged values by name."""
    ratio = values.get(MONITOR, 0.0)
    if ratio <= _LOUDEST:
        return None
    return (
        f"the condition is {ratio:.1f} times as loud as the time embedding that it is added to (expected below {_LOUDEST:g}): the "
        "network hardly knows how noisy its input is. Lower network.embedding_std or training.learning_rate."
    )


def _time_embedding(backbone: Any, t: Times) -> Tensor:
    blocks = getattr(backbone, "transformer_blocks", None)
    emb: Any = backbone if blocks is None else blocks[0].norm1.emb
    embed = emb.time_embedding if blocks is None else emb.timestep_embedder
    vector: Tensor = embed(emb.time_proj(t.float()).to(backbone.dtype))
    return vector


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny
    ratio: Tensor = one.float().norm(dim=1) / other.float().norm(dim=1).clamp_min(tiny)
    return ratio
