"""LoRA inside a network that stays what it is: no wrapper around it, more layers trained whole beside it, and taken out merged.

Reference: Hu et al. 2021, "LoRA", arXiv:2106.09685, eq. 3.
"""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from cellbridge.adapters.lora import MODULES, Target
from cellbridge.errors import ModelError

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def inject(
    network: nn.Module,
    *,
    rank: int,
    alpha: float | None,
    targets: Sequence[Target],
    whole: Sequence[str],
    rslora: bool = False,
    dora: bool = False,
) -> None:
    """Put a fresh adapter into a network's layers and freeze what is neither adapted nor in `whole`; what the network says stays.

    A is drawn from PyTorch's default generator.

    Parameters
    ----------
    rank, alpha, targets, rslora, dora : as in `lora.attach`.
    whole : parts of the names of layers that are trained whole, in place of an adapter.

    Raises
    ------
    ModelError : the network has none of the targets' modules.
    """
    from peft import LoraConfig, inject_adapter_in_model

    ends = tuple(f".{end}" for target in targets for end in MODULES[target])
    adapted = [name for name, _ in network.named_modules() if f".{name}".endswith(ends) and not _is_part(name, whole)]
    if not adapted:
        raise ModelError(f"LoRA on {', '.join(targets)}: the network has no such module. Name other adapter.targets.")
    scale = rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=adapted, use_rslora=rslora, use_dora=dora)
    inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        if _is_part(name, whole):
            parameter.requires_grad_(True)


def merged(network: NetworkT) -> NetworkT:
    """Return a copy in which every adapted layer is a plain one again, of the weight W + (alpha / rank) B A."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(network)
    adapted = [(name, module) for name, module in plain.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        layer: Any = module
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(plain.get_submodule(parent), last, layer.get_base_layer())
    return plain


def _is_part(name: str, parts: Sequence[str]) -> bool:
    return any(f".{part}." in f".{name}." for part in parts)
