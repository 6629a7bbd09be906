"""The training loop: a generator of events that steps an optimiser, and survives whatever ends the process.

The network after step k is a function of (settings, data, k) alone: batches are asked for by (step, micro-batch), and PyTorch's
own generators, from which dropout draws, are seeded from (seed, step, micro-batch) before each loss. This is the one place that
touches them; they are restored when the loop ends.
"""

import signal
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from cellbridge import processes
from cellbridge.config import TrainingConfig
from cellbridge.errors import NumericalError, StoppedBySignal
from cellbridge.runs import RunDir, exclusive
from cellbridge.runtime import autocast, derive_seed, peak_memory_gib, seed_default_generators
from cellbridge.training import checkpoint as checkpoints
from cellbridge.training import ema as averaging
from cellbridge.training import optim, power_ema, throughput
from cellbridge.training.checkpoint import Resume
from cellbridge.training.compilation import begin_micro_batch, begin_step, compiled
from cellbridge.training.continuation import (
    averages_are_due,
    begin_checkpoint,
    keep_averages,
    last_good,
    published_average,
    restore,
)
from cellbridge.training.events import Compiling, Event, Finished, Logged, Profiled, SampleDue, Saved, Started
from cellbridge.training.memory import within_memory
from cellbridge.training.profiler import profiling
from cellbridge.training.recomputation import recomputing
from cellbridge.training.signals import StopRequest, stop_requests
from cellbridge.training.state import Batches, Loss, LossOutput, Training, prepare
from cellbridge.training.throughput import Throughput
from cellbridge.training.trackers import require_trackers

__all__ = ["Batches", "Loss", "LossOutput", "fit"]


def fit(
    module: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    config: TrainingConfig,
    run: RunDir,
    identity: Mapping[str, str],
    device: torch.device,
    resume: Resume = "auto",
    accept_changes: bool = False,
) -> Generator[Event, None, None]:
    """Train the parameters that require a gradient, and yield what happens.

    Each optimiser step descends the mean of `accumulation` micro-batch losses, so that it equals one step on their union; with
    several processes (torchrun, `accelerate launch`) each takes every n-th micro-batch, and the numbers stay the same.
    The module is left on `device`, in evaluation mode, with the last (not averaged) weights.

    Parameters
    ----------
    loss : (module, batch) → LossOutput; called under autocast, with the module compiled if `config.compile` says so. What it
        draws from PyTorch's own generators depends on (seed, step, micro-batch) only.
    batches : (steps done before, micro-batch) → batch; a pure function.
    identity : name → hash of everything else that decides the result; a checkpoint with another identity is refused.
    resume : "auto" continues from the run's newest checkpoint that verifies, "never" refuses to, a path names one.
    accept_changes : continue a checkpoint of another identity or other settings, with a warning for each difference.

    Yields
    ------
    Started, Compiling where the network is compiled, then Logged, Saved, Profiled and SampleDue as they come, then Finished. Saved
    comes when a checkpoint is published, which may be some steps after its own, and before the next one begins; in several
    processes, from the main one only.

    Raises
    ------
    NumericalError : a loss or gradient was not finite, at most 20 steps ago; nothing was saved since.
    StoppedBySignal : SIGINT, SIGTERM or SIGHUP came, and everything is saved; a second one ends the process at once.
    ResourceError : out of memory, or the disk is full.
    RunError : another process holds the run, or the checkpoint was made with other inputs.
    CheckpointError : the checkpoint asked for is absent or damaged.
    ConfigError : a tracker that is not known or not installed; nothing was created.
    """
    require_trackers(config.trackers)
    found = checkpoints.resolve(run, resume) if isinstance(resume, Path) else None  # an error must create nothing
    patient = InitProcessGroupKwargs(timeout=processes.LONGEST_WAIT)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[patient])
    device = accelerator.device if accelerator.num_processes > 1 else device
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(exclusive(run))
        accelerator.wait_for_everyone()
        found = found or checkpoints.resolve(run, resume)
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.callback(module.eval)
        training = prepare(
            module, loss, batches, config=config, run=run, identity=identity, accelerator=accelerator, device=device
        )
        if isinstance(resume, Path):  # with it the same command begins there again
            training.again += " without --resume"
        stack.callback(training.writer.close)  # before the lock is released
        training.network = stack.enter_context(compiled(module, config.compile, device=device))
        if config.gradient_checkpointing:
            stack.enter_context(recomputing(module))
        warnings = found.warnings
        if found.snapshot is not None and found.path is not None:
            warnings += restore(training, found.snapshot, found.path, accept_changes=accept_changes)
        if config.profile and accelerator.is_main_process and training.step < config.steps:
            traced = profiling(run.profile, device, step=training.step, steps=config.steps)
            training.profiler = stack.enter_context(traced)
        with stop_requests() as request:
            yield Started(training.step, found.path, warnings, accelerator.is_main_process)
            if config.compile != "none" and training.step < config.steps:
                yield Compiling(training.step, config.compile)
            yield from _train(training, request)
        yield Finished(training.step, published_average(training))


def _train(training: Training, request: StopRequest) -> Iterator[Event]:
    config, clock, accelerator = training.config, training.clock, training.accelerator
    clock.begin()
    if training.step < config.steps:
        training.throughput = within_memory(training, lambda: _measured(training))
    while training.step < config.steps:
        within_memory(training, lambda: _step(training, request))
        yield from _traced(training)
        step, last = training.step, training.step == config.steps
        log, keep = step % config.log_every == 0 or last, averages_are_due(training)
        stopping = _inspect(training, request, waiting=log or keep or step % config.checkpoint_every == 0)
        saving = step % config.checkpoint_every == 0 or last or stopping
        if log:
            event = Logged(step, _values(training))
            with clock.paused():
                yield event
        yield from _published(training, waiting=saving)
        if keep:
            with clock.waiting_for_checkpoint():
                keep_averages(training)
        if saving:
            with clock.waiting_for_checkpoint():
                begin_checkpoint(training)
            yield from _published(training, waiting=last or stopping)
        if last or stopping:
            accelerator.wait_for_everyone()  # a process that ends makes the launcher end the one that still writes
        if stopping:
            raise _stopped(training, request)
        if config.sample_every and step % config.sample_every == 0 and not last:
            with clock.paused():
                yield SampleDue(step, dict(training.ema))
            training.module.train()
    if request.signal_number is not None:
        raise _stopped(training, request)


def _measured(training: Training) -> Throughput | None:
    """Count what a step computes, where the device's peak is known."""

    def loss() -> torch.Tensor:
        batch = training.batches(training.step, training.accelerator.process_index)
        with autocast(training.device, training.dtype):
            return training.loss(training.module, batch).loss

    with training.clock.paused():
        return throughput.measured(
            training.module,
            loss,
            device=training.device,
            dtype=training.dtype,
            micro_batches=training.config.accumulation,
            processes=training.accelerator.num_processes,
        )


def _traced(training: Training) -> Iterator[Profiled]:
    """Tell the profiler that a step is done, and yield where its trace lies once there is one."""
    if training.profiler is None:
        return
    with training.clock.paused():
        path = training.profiler.end_step()
        if path is not None:
            yield Profiled(training.step, path)


def _published(training: Training, *, waiting: bool) -> Iterator[Saved]:
    """Yield the checkpoint that was published since the last look, if any."""
    with training.clock.waiting_for_checkpoint():
        saved = training.writer.collect(waiting=waiting)
    if saved is not None:
        with training.clock.paused():
            yield saved


def _step(training: Training, request: StopRequest) -> None:
    config, accelerator, clock = training.config, training.accelerator, training.clock
    total = torch.zeros((), device=training.device)
    begin_step(config.compile, training.device, training.parameters.values())
    for micro in range(accelerator.process_index, config.accumulation, accelerator.num_processes):
        seed = derive_seed("training step", config.seed, training.step, micro)
        with clock.waiting_for_data(), training.region("data"):
            batch = training.batches(training.step, micro)
        seed_default_generators(seed, training.device)
        begin_micro_batch(config.compile, training.device)
        with autocast(training.device, training.dtype), training.region("forward"):
            output = training.loss(training.network, batch)
        with training.region("backward"):
            (output.loss / config.accumulation).backward()
        total += output.loss.detach() / config.accumulation
        training.window.add_monitors(output.monitors, minima=output.minima, maxima=output.maxima)
    parameters = list(training.parameters.values())
    everywhere, stops = total, None
    if accelerator.num_processes > 1:
        everywhere, stops = _sum_gradients(parameters, training, total, request)
    with training.region("optimizer"):
        norm = nn.utils.clip_grad_norm_(parameters, config.gradient_clip, foreach=True)
        optim.set_learning_rate(training.optimizer, optim.learning_rate(training.step + 1, config))
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
    with training.region("ema"):
        averaging.update(list(training.ema.values()), parameters, updates=training.step, decay=config.ema_decay)
    power_ema.update(training.averages, parameters, updates=training.step)
    training.window.close_step(total, norm)
    training.watch.note(everywhere, norm, stops=stops)
    training.step += 1
    clock.steps += 1


def _sum_gradients(
    parameters: list[nn.Parameter], training: Training, loss: Tensor, request: StopRequest
) -> tuple[Tensor, Tensor]:
    """Sum gradients over processes in one message; each already carries its share of the mean.

    Returns
    -------
    The loss of the whole step, and how many processes were asked to stop: they travel in the same message.
    """
    asked = torch.full((1,), float(request.signal_number is not None), device=training.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = training.sum_over_processes(torch.cat([*(g.reshape(-1) for g in gradients), loss[None], asked]))
    *parts, everywhere, stops = summed.split([*(p.numel() for p in parameters), 1, 1])
    for parameter, gradient in zip(parameters, parts, strict=True):
        # Fused AdamW takes it for granted that a gradient lies in memory as its parameter does (channels_last), and is wrong otherwise.
        shaped = gradient.view_as(parameter)
        fits = shaped.stride() == parameter.stride()
        parameter.grad = shaped if fits else torch.empty_like(parameter).copy_(shaped)
    return everywhere[0], stops[0]


def _inspect(training: Training, request: StopRequest, *, waiting: bool) -> bool:
    """Raise where a loss or gradient was not finite, and return whether to stop after this step.

    A single process heeds a signal at once. Several agree on the step: they all see the same signs at the same steps.

    Parameters
    ----------
    waiting : wait for the device, and see this step's signs; otherwise those of up to 20 steps ago.
    """
    watch, alone = training.watch, training.accelerator.num_processes == 1
    signs = watch.look_now() if waiting else watch.look(training.step)
    stopping = request.signal_number is not None if alone else signs.stop
    if stopping and not waiting:
        signs = watch.look_now()
    if not signs.finite:
        _require_finite(training)
    return stopping


def _stopped(training: Training, request: StopRequest) -> StoppedBySignal:
    path = training.run.checkpoint(training.step)
    return StoppedBySignal(
        f"stopped at step {training.step} of {training.config.steps}; saved {path}. Run {training.again} to continue.",
        signal_number=request.signal_number or signal.SIGTERM,
    )


def _require_finite(training: Training) -> None:
    """Raise where a loss or gradient since the last log step is not finite, naming the first."""
    found = training.window.first_non_finite(training.sum_over_processes)
    if found is None:
        return
    step = training.step - training.window.steps + found[0] + 1
    raise NumericalError(
        f"{found[1]} not finite at step {step} (learning rate {optim.learning_rate(step, training.config):.3g}). "
        f"{last_good(training)} Lower training.learning_rate or training.gradient_clip, or set training.precision=fp32."
    )


def _values(training: Training) -> dict[str, float]:
    """Return what is logged, and begin a new window."""
    values = training.window.values(training.sum_over_processes, training.largest_over_processes)
    values["learning_rate"] = optim.learning_rate(training.step, training.config)
    values |= training.clock.read() | {"memory_gib": peak_memory_gib(training.device)}
    if training.throughput is not None:
        values |= training.throughput.values(values["seconds_per_step"])
    values["host_memory_gib"] = peak_memory_gib(torch.device("cpu"))
    training.window.reset()
    return values
