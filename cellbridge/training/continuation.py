"""How a training becomes a checkpoint, and goes on from one."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cellbridge.errors import CheckpointError, ConfigError, NumericalError, RunError
from cellbridge.training import checkpoint as checkpoints
from cellbridge.training import optim, power_ema
from cellbridge.training.checkpoint import Snapshot
from cellbridge.training.state import Loss, Remembering, Training


def begin_checkpoint(training: Training) -> None:
    """Start to write a checkpoint, from the main process.

    Raises
    ------
    NumericalError : a weight or its average is not finite; nothing is written.
    """
    _require_finite(training, torch.float32)
    window = whole_window(training)
    if training.accelerator.is_main_process:
        training.writer.begin(snapshot(training, window))


def _require_finite(training: Training, dtype: torch.dtype) -> None:
    """Raise where a weight or its average is not finite, or would not be in a type."""
    tensors: list[Tensor] = [*(p.detach() for p in training.parameters.values()), *training.ema.values()]
    largest = torch.stack(torch._foreach_norm(tensors, ord=math.inf))
    if not torch.isfinite(largest.to(dtype)).all():
        rate = optim.learning_rate(training.step, training.config)
        held = (
            "" if dtype == torch.float32 else f" in {str(dtype).removeprefix('torch.')}, which snapshots are kept in,"
        )
        raise NumericalError(
            f"weights not finite{held} after step {training.step} (learning rate {rate:.3g}). {last_good(training)} "
            "Lower training.learning_rate."
        )


def whole_window(training: Training) -> dict[str, Tensor]:
    """Return the window of all processes together, as a single one would hold it; each process has to ask."""
    held = training.window.tensors()
    if training.accelerator.num_processes == 1:
        return held
    total, largest = training.sum_over_processes, training.largest_over_processes
    combine = {"losses": total, "monitors": total, "maxima": largest, "minima": lambda values: -largest(-values)}
    return {name: combine.get(name.partition("/")[0], lambda same: same)(tensor) for name, tensor in held.items()}


def own_share(window: Mapping[str, Tensor], *, main: bool) -> dict[str, Tensor]:
    """Return what one of the processes takes of a saved window: the main one all of it, the others nothing of what is summed."""
    summed = ("losses", "monitors")
    return {n: t if main or n.partition("/")[0] not in summed else torch.zeros_like(t) for n, t in window.items()}


def snapshot(training: Training, window: dict[str, Tensor]) -> Snapshot:
    """Return everything that the next step depends on; the tensors are the live ones."""
    return Snapshot(
        step=training.step,
        settings=checkpoints.binding_settings(training.config),
        identity=dict(training.identity),
        weights=training.weights(),
        ema=training.ema,
        optimizer=optim.state_tensors(training.optimizer, training.parameters),
        window=window,
        averages=power_ema.flattened(training.averages),
        method=memory_of(training.loss),
    )


def memory_of(loss: Loss) -> dict[str, Tensor]:
    """Return the live tensors that a loss remembers; none of a loss that is a function."""
    return loss.state() if isinstance(loss, Remembering) else {}


@torch.no_grad()
def restore(training: Training, saved: Snapshot, path: Path, *, accept_changes: bool = False) -> tuple[str, ...]:
    """Continue from a checkpoint that was made with the same inputs and fits the network exactly.

    Parameters
    ----------
    accept_changes : continue where the inputs are others, too.

    Returns
    -------
    A warning for each difference that was accepted.

    Raises
    ------
    RunError : data, base or settings differ (each difference is named).
    ConfigError : it is past the last step.
    CheckpointError : its tensors are not those of the network.
    """
    settings = checkpoints.binding_settings(training.config)
    changes = checkpoints.differences(saved, settings=settings, identity=training.identity)
    if changes and not accept_changes:
        fits = _shapes(training.weights()) == _shapes(saved.weights)
        remedy = (
            "Restore them, give another --out, or continue all the same with --accept-changes."
            if fits
            else "Restore them, or give another --out: its weights do not fit the network of now."
        )
        raise RunError(f"{path}: was made with other inputs ({'; '.join(changes)}). {remedy}")
    if saved.step > training.config.steps:
        raise ConfigError(f"{path}: is past training.steps {training.config.steps}. Raise training.steps.")
    for kind, own, tensors in (("weights", training.weights(), saved.weights), ("ema", training.ema, saved.ema)):
        _copy(own, tensors, where=f"{path}/{kind}.safetensors")
    _continue_averages(training, saved, changed=bool(changes), where=f"{path}/averages.safetensors")
    _continue_memory(training, saved, changed=bool(changes), where=f"{path}/method.safetensors")
    optim.load_state_tensors(
        training.optimizer, training.parameters, saved.optimizer, where=f"{path}/optimizer.safetensors"
    )
    training.window.load(own_share(saved.window, main=training.accelerator.is_main_process))
    training.step = saved.step
    training.watch.begin(saved.step)
    return tuple(f"{path}: was made with other inputs and is continued all the same ({change})." for change in changes)


def _continue_averages(training: Training, saved: Snapshot, *, changed: bool, where: str) -> None:
    """Take the power-function averages; with other settings, one that was not tracked begins with the weights as they are."""
    for sigma, average in training.averages.items():
        named = power_ema.flattened({sigma: average})
        kept = {name: saved.averages[name] for name in named if name in saved.averages}
        if kept or not changed:
            _copy(named, kept, where=where)
        else:
            torch._foreach_copy_(list(average.values()), [p.detach() for p in training.parameters.values()])


def _continue_memory(training: Training, saved: Snapshot, *, changed: bool, where: str) -> None:
    """Take what the loss remembers; with other settings, a memory of another kind is left and a new one begins."""
    own = memory_of(training.loss)
    if changed and _shapes(own) != _shapes(saved.method):
        return
    _copy(own, saved.method, where=where)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def averages_are_due(training: Training) -> bool:
    """Say whether this step is one that asks for a snapshot of the power-function averages."""
    every = training.config.power_ema.snapshot_every
    return bool(every) and training.step % every == 0


def keep_averages(training: Training) -> None:
    """Write a snapshot of the power-function averages, from the main process.

    Raises
    ------
    NumericalError : a weight is not finite; nothing is written.
    ResourceError : the disk is full.
    """
    _require_finite(training, power_ema.STORED_TYPE)
    if training.accelerator.is_main_process:
        power_ema.save(training.run.averages, training.averages, step=training.step)


def published_average(training: Training) -> dict[str, Tensor]:
    """Return the average that the model takes: the standard one, or one of a power-function profile."""
    wanted = training.config.power_ema.publish
    if wanted is None:
        return dict(training.ema)
    if wanted in training.averages:
        return dict(training.averages[wanted])
    stored = power_ema.load(training.run.averages, before=training.step)
    stored += [power_ema.Stored(training.step, sigma, average) for sigma, average in training.averages.items()]
    return power_ema.reconstruct(stored, step=training.step, sigma_rel=wanted)


def last_good(training: Training) -> str:
    """Name the newest checkpoint, in a sentence for an error message; one that is being written is waited for, by all processes."""
    training.writer.settle()
    training.accelerator.wait_for_everyone()  # the first to fail ends the others soon, and with them a write
    saved = training.run.saved_checkpoints()
    return f"Last good checkpoint: {saved[-1][1]}." if saved else "No checkpoint was saved before it."


def _copy(own: dict[str, Tensor], tensors: Mapping[str, Tensor], *, where: str) -> None:
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{where}: does not fit the network (missing: {missing[:3]}, unknown: {unknown[:3]}). Give another --out."
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the network has {tuple(tensor.shape)}"
            raise CheckpointError(f'{where}: "{name}" has shape {shapes}. Give another --out.')
        tensor.copy_(tensors[name])
