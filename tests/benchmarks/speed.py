"""The engine's step against a bare loop, and against the settings of a well-known example."""

from typing import Any

import numpy as np
import torch
from claims import Row, not_measured, row
from engine_turns import Duel, duel
from interleaved import bootstrap
from problem import Problem
from rivals import BareLoop, ExampleLoop
from sizes import Size

from cellbridge.config import TrainingConfig
from cellbridge.runtime import pick_precision

EVERY = TrainingConfig.model_fields["checkpoint_every"].default
"""Steps over which the cost of a checkpoint is spread."""


def step(size: Size, device: torch.device) -> dict[str, Any]:
    """The engine against a bare loop, in the precision that it picks; waiting for data and for checkpoints."""
    problem = size.problem(size.small, batch=size.batch, device=device)
    dtype = pick_precision("auto", device)
    bare = BareLoop(problem.build(), problem.in_memory(), schedule=problem.schedule, dtype=dtype)
    every = size.checkpoint_every
    found = duel(problem, bare, blocks=size.blocks, steps=size.block, flags={}, checkpoint_every=every)
    wall = found.ratio(checkpoint_every=EVERY)
    wait, wait_interval = found.told("data_wait")
    rows = [row(f"engine / bare loop ({problem.name})", wall.value, interval=wall.interval, at_least=0.97)]
    if device.type == "cpu":
        processor = found.ratio(checkpoint_every=EVERY, clock=1)
        rows.append(row("… in processor time", processor.value, interval=processor.interval))
    rows.append(row("data wait, share of a step", wait, interval=wait_interval, at_most=0.01))
    rows.append(_stall(found, every))
    return {
        "rows": rows,
        "images_per_second": found.images_per_second(problem.batch),
        "parameters": problem.parameters,
        "dtype": str(dtype),
        "pairs": wall.pairs,
        "log_every": size.block,
        "checkpoint_every": every,
        "checkpoint_seconds": found.checkpoint_seconds[:, 0].tolist(),
        "checkpoint_stall_by_the_engine": [entry["checkpoint_stall"] for entry in found.logged],
        "checkpoint_cost_spread_over": EVERY,
    }


def example(size: Size, device: torch.device) -> dict[str, Any]:
    """The engine as it comes (bf16 where the hardware computes in it) and in float32, against the settings of diffusers' example.

    In float32 the network's own arithmetic is the same on both sides, and all that can be gained is the optimiser and the average;
    that row has a goal only at the small size, where it must not be lost.
    """
    rows, details = [], {}
    for network, blocks, block, goals in (
        (size.small, size.blocks // 2, size.block, {"auto": 1.0, "fp32": 1.0}),
        (size.medium, size.medium_blocks, 1, {"auto": 1.2, "fp32": None}),
    ):
        problem = size.problem(network, batch=size.small_batch, device=device)
        rival = _example(problem)
        for precision, goal in goals.items():
            found = duel(problem, rival, blocks=blocks, steps=block, flags={"precision": precision})
            ratio = found.ratio(checkpoint_every=EVERY)
            words = "both in fp32" if precision == "fp32" else "as it comes"
            claim = f"engine / example loop, {words} ({problem.name})"
            rows.append(row(claim, ratio.value, interval=ratio.interval, at_least=goal))
            details[f"{problem.name}, {words}"] = {
                "parameters": problem.parameters,
                "pairs": ratio.pairs,
                "images_per_second": found.images_per_second(problem.batch),
            }
    return {"rows": rows, "networks": details}


def _example(problem: Problem) -> ExampleLoop:
    return ExampleLoop(problem.build(), problem.in_memory(), schedule=problem.schedule)


def _stall(found: Duel, every: int) -> Row:
    """Tell what checkpoints add to the time of training where there is one every `every` steps: the copy, and the writer beside it."""
    claim = f"checkpoint stall, share of training at one every {every} steps"
    seconds = found.checkpoint_seconds[:, 0]
    if not len(seconds):
        return not_measured(claim, "no checkpoint was written while the engine was timed")
    training = every * float(np.median(found.engine[~found.disturbed, 0]))
    low, high = bootstrap(seconds / training, np.median)
    return row(claim, float(np.median(seconds / training)), interval=(low, high), at_most=0.05)
