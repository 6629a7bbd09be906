"""The exponential moving average of the weights, with the usual warm-up.

Of an adapter the factors A and B are averaged, and not the update B A that they make: the product of their averages is not the average
of the products, though near it where the factors move little within the average's memory.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def warmed_decay(updates: int, decay: float) -> float:
    """Return the decay of the next update, after `updates` earlier ones.

    d_k = min(decay, (1 + k) / (10 + k)), and d_0 = 0, so that the first average is the weights themselves.

    Reference
    ---------
    diffusers, `training_utils.EMAModel.get_decay`.
    """
    return min(decay, (1 + updates) / (10 + updates)) if updates else 0.0


@torch.no_grad()
def update(ema: Sequence[Tensor], weights: Sequence[Tensor], *, updates: int, decay: float) -> None:
    """Move the average towards the weights in place: ema ← d ema + (1 - d) weights, with d = `warmed_decay(updates, decay)`."""
    if weights:
        torch._foreach_lerp_(list(ema), list(weights), 1.0 - warmed_decay(updates, decay))


@torch.no_grad()
def load(module: nn.Module, ema: Mapping[str, Tensor]) -> None:
    """Copy an average into the parameters of the same names."""
    parameters = dict(module.named_parameters())
    for name, value in ema.items():
        parameters[name].copy_(value)


def digest(ema: Mapping[str, Tensor]) -> str:
    """Return the sha256 of an average: of the names, types, shapes and bytes of its tensors."""
    found = hashlib.sha256()
    for name in sorted(ema):
        value = ema[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def applied(module: nn.Module, ema: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the module have the averaged weights, and be in evaluation mode, inside the block; both are restored exactly after it."""
    parameters = dict(module.named_parameters())
    before = {name: parameters[name].detach().clone() for name in ema}
    was_training = module.training
    load(module, ema)
    module.eval()
    try:
        yield
    finally:
        load(module, before)
        module.train(was_training)
