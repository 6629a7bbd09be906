"""What a training holds while it runs."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from cellbridge.config import TrainingConfig
from cellbridge.errors import ConfigError, ModelError
from cellbridge.runs import RunDir
from cellbridge.runtime import pick_precision
from cellbridge.training import optim, power_ema
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
    monitors : name → (sum, count), both on the device, 0-dimensional or grids (row, column) whose name has two places `{}`; logged as sum over count since the last log step.
    minima, maxima : name → on the device, 0-dimensional or grids, too; logged as the smallest and the largest since the last log step.
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
    again: str = "the same command"
    """What to run to continue."""
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
