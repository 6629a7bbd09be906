"""What it costs to continue: from the call to the first step that is done, against loading the checkpoint and one step."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import row
from engine_turns import run_directory
from interleaved import Times, paired_ratio
from problem import Problem
from rivals import BareLoop
from sizes import Size
from torch import nn

from cellbridge.config import TrainingConfig
from cellbridge.diffusion.fitting import denoising_loss
from cellbridge.runs import RunDir
from cellbridge.runtime import pick_precision
from cellbridge.training import checkpoint, optim
from cellbridge.training.loop import fit

_STEPS = 3


class _StepDoneError(Exception):
    """The engine asks for its next batch, so that the step before is done."""


def resume(size: Size, device: torch.device) -> dict[str, Any]:
    """Time both in turns, in a process that has imported everything and holds the network and the cells."""
    problem = size.problem(size.small, batch=size.small_batch, device=device)
    config = TrainingConfig(steps=_STEPS + 10, batch_size=problem.batch, checkpoint_every=_STEPS)
    ours, theirs = problem.build(), problem.build()
    with run_directory() as run:
        until_step(problem, ours, config, run, last=_STEPS + 1)
        path = run.checkpoint(_STEPS)
        pairs: list[tuple[float, float]] = []
        for turn in range(1 + size.resumes):
            if turn % 2:
                other = load_and_step(problem, theirs, path)
                pairs.append((resumed_step(problem, ours, config, run), other))
            else:
                pairs.append((resumed_step(problem, ours, config, run), load_and_step(problem, theirs, path)))
    seconds: Times = np.array(pairs[1:])
    ratio = paired_ratio(seconds[:, :1], seconds[:, 1:])
    claim = f"seconds to the first step of a resume / load + one step ({problem.name})"
    return {
        "rows": [row(claim, ratio.value, interval=ratio.interval, at_most=1.05)],
        "pairs": ratio.pairs,
        "resume_seconds": float(np.median(seconds[:, 0])),
        "load_and_step_seconds": float(np.median(seconds[:, 1])),
    }


def resumed_step(problem: Problem, module: nn.Module, config: TrainingConfig, run: RunDir) -> float:
    """Return the seconds from the call of `fit` until the first step after the checkpoint is done."""
    began = time.perf_counter()
    ended = until_step(problem, module, config, run, last=_STEPS + 1)
    return ended - began


def until_step(problem: Problem, module: nn.Module, config: TrainingConfig, run: RunDir, *, last: int) -> float:
    """Train until step `last` is done, leave without saving, and return when that was."""
    batches = problem.batches()
    ended = 0.0

    def watched(step: int, micro: int) -> Any:
        nonlocal ended
        if step == last:
            if problem.device.type == "cuda":
                torch.cuda.synchronize(problem.device)
            ended = time.perf_counter()
            raise _StepDoneError
        return batches(step, micro)

    loss = denoising_loss(problem.schedule, "v")
    events = fit(module, loss, watched, config=config, run=run, identity={}, device=problem.device)
    try:
        for _ in events:
            pass
    except _StepDoneError:
        return ended
    raise AssertionError(f"training ended before step {last}")


def load_and_step(problem: Problem, module: nn.Module, path: Path) -> float:
    """Return the seconds that it takes to read and verify a checkpoint, put it in place, and make one bare step."""
    began = time.perf_counter()
    saved = checkpoint.load(path)
    module.load_state_dict(saved.weights)
    loop = BareLoop(
        module, problem.as_the_engine(), schedule=problem.schedule, dtype=pick_precision("auto", problem.device)
    )
    optim.load_state_tensors(loop.optimizer, dict(module.named_parameters()), saved.optimizer)
    average = {name: tensor.to(problem.device) for name, tensor in saved.ema.items()}
    loop()
    if problem.device.type == "cuda":
        torch.cuda.synchronize(problem.device)
    assert len(average) == len(loop.parameters)
    return time.perf_counter() - began
