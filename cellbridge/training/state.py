"""What a training holds while it runs, and how that becomes a checkpoint and comes back."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from cellbridge.config import TrainingConfig
from cellbridge.errors import CheckpointError, ConfigError, ModelError, NumericalError, RunError
from cellbridge.runs import RunDir
from cellbridge.runtime import pick_precision
from cellbridge.training import checkpoint as checkpoints
from cellbridge.training import optim, power_ema
from cellbridge.training.checkpoint import Snapshot
from cellbridge.training.monitors import Clock, Window
from cellbridge.training.profiler import Profiler
from cellbridge.training.saving import CheckpointWriter
from cellbridge.training.throughput import Throughput
from cellbridge.training.watch import Watch


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns for one micro-batch.

    Parameters
    ----------
    loss : 0-dimensional, the mean over the micro-batch.
    monitors : name → (sum, count), both 0-dimensional on the device; logged as sum over count since the last log step.
    minima, maxima : name → 0-dimensional, on the device; logged as the smallest and the largest since the last log step.
    """

    loss: Tensor
    monitors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    minima: Mapping[str, Tensor] = field(default_factory=dict)
    maxima: Mapping[str, Tensor] = field(default_factory=dict)


Loss = Callable[[nn.Module, Any], LossOutput]


@runtime_checkable
class Remembering(Protocol):
    """A loss whose next value depends on earlier ones, so that checkpoints hold what it remembers."""

    def state(self) -> dict[str, Tensor]:
        """Return the live tensors; a resumed training copies the saved ones into them."""
        ...


Batches = Callable[[int, int], Any]
"""(steps done before, micro-batch) → batch."""


@dataclass
class Training:
    """The arguments of `fit`, and the state that a checkpoint saves."""

    module: nn.Module
    network: nn.Module
    """The module, or its compiled form."""
    loss: Loss
    batches: Batches
    config: TrainingConfig
    run: RunDir
    identity: Mapping[str, str]
    accelerator: Accelerator
    device: torch.device
    dtype: torch.dtype
    parameters: dict[str, nn.Parameter]
    ema: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    window: Window
    clock: Clock
    writer: CheckpointWriter
    watch: Watch
    averages: power_ema.Averages
    """Power-function averages, where they are tracked."""
    step: int = 0
    profiler: Profiler | None = None
    throughput: Throughput | None = None
    """Where the device's peak is known."""

    def region(self, name: str) -> AbstractContextManager[object]:
        """Name what happens in a block for the profiler, if there is one."""
        return nullcontext() if self.profiler is None else self.profiler.region(name)

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Return the sum of every process's tensor; the tensor itself where there is one process."""
        if self.accelerator.num_processes == 1:
            return tensor
        total: Tensor = self.accelerator.reduce(tensor.clone(), reduction="sum")
        return total

    def largest_over_processes(self, tensor: Tensor) -> Tensor:
        """Return, elementwise, the largest of every process's tensor; the tensor itself where there is one process."""
        if self.accelerator.num_processes == 1:
            return tensor
        everyone: Tensor = self.accelerator.gather(tensor[None])
        return everyone.amax(0)

    def weights(self) -> dict[str, Tensor]:
        """Return what is trained, and the buffers that a network may update by itself."""
        frozen = {name for name, parameter in self.module.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.module.state_dict().items() if name not in frozen}


def prepare(
    module: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    config: TrainingConfig,
    run: RunDir,
    identity: Mapping[str, str],
    accelerator: Accelerator,
    device: torch.device,
) -> Training:
    """Move the module to its device, and make what trains it.

    Raises
    ------
    ConfigError : the micro-batches cannot be shared among the processes.
    ModelError : nothing requires a gradient.
    """
    if config.accumulation % accelerator.num_processes:
        raise ConfigError(
            f"training.accumulation {config.accumulation} cannot be shared among {accelerator.num_processes} processes. "
            f"Set it to a multiple of {accelerator.num_processes}; batch_size stays the global batch."
        )
    module.to(device).train()
    if config.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        raise ModelError("the network has no parameter that requires a gradient. Unfreeze it, or attach an adapter.")
    if accelerator.num_processes > 1:
        broadcast([p.data for p in parameters.values()])
    return Training(
        module=module,
        network=module,
        loss=loss,
        batches=batches,
        config=config,
        run=run,
        identity=identity,
        accelerator=accelerator,
        device=device,
        dtype=pick_precision(config.precision, device),
        parameters=parameters,
        ema={name: p.detach().clone() for name, p in parameters.items()},
        optimizer=optim.make_optimizer(list(parameters.values()), config),
        window=Window(config.log_every, device),
        clock=Clock(),
        writer=CheckpointWriter(run, keep_last=config.keep_last, beside=config.async_checkpoints),
        watch=Watch(device),
        averages={
            sigma: {name: p.detach().clone() for name, p in parameters.items()} for sigma in config.power_ema.sigma_rel
        },
    )


def begin_checkpoint(training: Training) -> None:
    """Start to write a checkpoint, from the main process.

    Raises
    ------
    NumericalError : a weight or its average is not finite; nothing is written.
    """
    tensors: list[Tensor] = [*(p.detach() for p in training.parameters.values()), *training.ema.values()]
    if not torch.isfinite(torch.stack(torch._foreach_norm(tensors, ord=math.inf))).all():
        rate = optim.learning_rate(training.step, training.config)
        raise NumericalError(
            f"weights not finite after step {training.step} (learning rate {rate:.3g}). {last_good(training)} Lower training.learning_rate."
        )
    window = whole_window(training)
    if training.accelerator.is_main_process:
        training.writer.begin(snapshot(training, window))


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
        raise RunError(
            f"{path}: was made with other inputs ({'; '.join(changes)}). "
            "Restore them, give another --out, or continue all the same with --accept-changes."
        )
    if saved.step > training.config.steps:
        raise ConfigError(f"{path}: is past training.steps {training.config.steps}. Raise training.steps.")
    for kind, own, tensors in (("weights", training.weights(), saved.weights), ("ema", training.ema, saved.ema)):
        _copy(own, tensors, where=f"{path}/{kind}.safetensors")
    averages = power_ema.flattened(training.averages)
    for kind, own, tensors in (
        ("averages", averages, saved.averages),
        ("method", memory_of(training.loss), saved.method),
    ):
        if not changes or (own and tensors):  # with other settings there may be nothing to continue
            _copy(own, tensors, where=f"{path}/{kind}.safetensors")
    if averages and not saved.averages:
        for average in training.averages.values():
            torch._foreach_copy_(list(average.values()), [p.detach() for p in training.parameters.values()])
    optim.load_state_tensors(
        training.optimizer, training.parameters, saved.optimizer, where=f"{path}/optimizer.safetensors"
    )
    training.window.load(own_share(saved.window, main=training.accelerator.is_main_process))
    training.step = saved.step
    training.watch.begin(saved.step)
    return tuple(f"{path}: was made with other inputs and is continued all the same ({change})." for change in changes)


def keep_averages(training: Training) -> None:
    """Write a snapshot of the power-function averages from the main process, at the steps that ask for one."""
    every = training.config.power_ema.snapshot_every
    if every and training.step % every == 0 and training.accelerator.is_main_process:
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
    """Name the newest checkpoint, in a sentence for an error message; one that is being written is waited for."""
    training.writer.settle()
    saved = training.run.saved_checkpoints()
    return f"Last good checkpoint: {saved[-1][1]}." if saved else "No checkpoint was saved before it."


def _copy(own: dict[str, Tensor], tensors: Mapping[str, Tensor], *, where: str) -> None:
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(f"{where}: does not fit the network (missing: {missing[:3]}, unknown: {unknown[:3]}).")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the network has {tuple(tensor.shape)}"
            raise CheckpointError(f'{where}: "{name}" has shape {shapes}.')
        tensor.copy_(tensors[name])
