"""How near training comes to the arithmetic peak of a CUDA device, eager and compiled."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from best_flags import words
from claims import Row, not_measured, row
from engine_turns import engine, run_directory
from interleaved import bootstrap
from problem import Problem
from sizes import Size

from cellbridge.config import TrainingConfig
from cellbridge.diffusion.fitting import denoising_loss
from cellbridge.errors import CellbridgeError, in_one_line
from cellbridge.training.events import Logged
from cellbridge.training.throughput import device_peak, flops_per_image

_GOAL = 0.35
_STRATEGIES = ("none", "regional", "default", "reduce-overhead")
_WARM_UP = 2
"""Log steps that are not counted: compilation, the choice of kernels, and the capture of graphs."""
_WINDOWS = 4
"""Log steps that are."""


@dataclass(frozen=True)
class Rate:
    """Images per second, with its interval over log steps."""

    value: float
    interval: tuple[float, float]

    def times(self, factor: float) -> "Rate":
        return Rate(self.value * factor, (self.interval[0] * factor, self.interval[1] * factor))


def on_device(size: Size, device: torch.device) -> dict[str, Any]:
    """Measure images per second and MFU in bf16 and channels-last, for each network and way of compiling."""
    if device.type != "cuda":
        return {"rows": [not_measured("images/s and MFU at 64 px", "no CUDA device")]}
    peak = device_peak(device, torch.bfloat16)
    rows: list[Row] = []
    details = {}
    for network, batch in zip(size.on_device, size.device_batches, strict=True):
        shape = replace(size, size_px=size.device_px)
        problem = shape.problem(network, batch=batch, device=device)
        found, details[problem.name] = against_peak(problem, steps=size.device_steps, peak=peak)
        rows += found
    return {"rows": rows, "networks": details, "peak_flops_per_second": peak}


def against_peak(problem: Problem, *, steps: int, peak: float | None) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of one network: images/s of each way of compiling, and MFU where the peak (in FLOP/s) is known."""
    flops = flops_of(problem)
    rows: list[Row] = []
    utilisations: list[float] = []
    for strategy in _STRATEGIES:
        flags = {"precision": "bf16", "channels_last": True, "compile": strategy}
        try:
            rate = images_per_second(problem, flags, steps=steps)
        except (
            CellbridgeError,
            RuntimeError,
        ) as error:  # out of memory, no compiler, or one that fails on this network
            rows.append(not_measured(f"{words(flags)} ({problem.name})", in_one_line(error)))
            continue
        rows.append(row(f"{words(flags)} ({problem.name})", rate.value, interval=rate.interval, unit="images/s"))
        if peak is not None:
            share = rate.times(flops / peak)
            utilisations.append(share.value)
            rows.append(row("… MFU", share.value, interval=share.interval))
    if utilisations:
        rows.append(row(f"best MFU ({problem.name})", max(utilisations), at_least=_GOAL))
    limit = None if peak is None else peak / flops
    return rows, {"flops_per_image": flops, "images_per_second_at_peak": limit, "parameters": problem.parameters}


def flops_of(problem: Problem) -> float:
    """Return the FLOPs of a forward and backward pass for each image."""
    network, loss, batch = problem.build().train(), denoising_loss(problem.schedule, "v"), problem.batches()(0, 0)
    return flops_per_image(network, lambda: loss(network, batch).loss, images=problem.batch)


def images_per_second(problem: Problem, flags: dict[str, Any], *, steps: int) -> Rate:
    """Run the engine alone, and return its speed after the steps at which things are done once."""
    torch.compiler.reset()
    config = TrainingConfig(
        **flags, steps=(_WARM_UP + _WINDOWS) * steps, batch_size=problem.batch, log_every=steps, checkpoint_every=10**6
    )
    with run_directory() as run:
        logged = [event.values for event in engine(problem, config, run) if isinstance(event, Logged)]
    rates = np.array([problem.batch / values["seconds_per_step"] for values in logged[_WARM_UP:]])
    return Rate(float(np.median(rates)), bootstrap(rates, np.median))
