"""The optimiser: AdamW, its learning rate at each step, and its state as plain tensors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cellbridge.config import TrainingConfig
from cellbridge.errors import CheckpointError

STATE = ("exp_avg", "exp_avg_sq", "step")
_FUSED = ("cpu", "cuda", "mps")


def make_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW, fused where the parameters' device has a fused kernel."""
    fused = all(p.device.type in _FUSED and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of the `step`-th optimiser step, counted from 1.

    Linear warm-up to `learning_rate` over `warmup_steps`, then constant, or half a cosine that would reach 0 one step after
    the last: lr (1 + cos(π (step - 1 - warmup) / (steps - warmup))) / 2.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    progress = (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def state_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimiser's state as `exp_avg/NAME`, `exp_avg_sq/NAME` and `step/NAME`; not yet updated weights have none."""
    return {
        f"{key}/{name}": optimizer.state[parameter][key]
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for key in STATE
    }


def load_state_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    *,
    where: str = "optimiser state",
) -> None:
    """Restore what `state_tensors` returned, bit for bit.

    Parameters
    ----------
    where : the file that they came from, for messages.

    Raises
    ------
    CheckpointError : a tensor belongs to no parameter, a parameter has a part of its state, or a shape differs.
    """
    known = {f"{key}/{name}" for key in STATE for name in parameters}
    unknown = sorted(tensors.keys() - known)
    if unknown:
        raise CheckpointError(f'{where}: "{unknown[0]}" belongs to no trainable parameter of this network.')
    for name, parameter in parameters.items():
        missing = [f"{key}/{name}" for key in STATE if f"{key}/{name}" not in tensors]
        if len(missing) == len(STATE):
            continue
        if missing:
            raise CheckpointError(
                f'{where}: "{missing[0]}" is missing, and the rest of its parameter\'s state is there.'
            )
        moments = {key: tensors[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
        if any(moment.shape != parameter.shape for moment in moments.values()):
            raise CheckpointError(f'{where}: the state of "{name}" has another shape than {tuple(parameter.shape)}.')
        fused = optimizer.param_groups[0]["fused"]
        state = {key: torch.empty_like(parameter).copy_(moment) for key, moment in moments.items()}
        state["step"] = tensors[f"step/{name}"].clone().to(parameter.device if fused else "cpu")
        optimizer.state[parameter] = state
