"""Which of the engine's flags pay on this machine, what they bring together, and whether the model is as good."""

from typing import Any

import numpy as np
import torch
from claims import Row, not_measured, row
from engine_turns import Duel, duel, engine, run_directory
from problem import Problem
from rivals import ExampleLoop
from sizes import Size
from speed import EVERY

from cellbridge.config import TrainingConfig
from cellbridge.errors import CellbridgeError, in_one_line
from cellbridge.runtime import pick_precision
from cellbridge.training import optim
from cellbridge.training.ema import load
from cellbridge.training.events import Finished

Flags = dict[str, Any]


def best(size: Size, device: torch.device) -> dict[str, Any]:
    """Choose flags greedily by their ratio on the medium network, and measure the choice afresh, on which no choice depends."""
    problem = size.problem(size.medium, batch=size.small_batch, device=device)
    flags, tried, rows = choose(problem, size)
    rival = ExampleLoop(problem.build(), problem.in_memory(), schedule=problem.schedule)
    found = _duel(problem, rival, size.medium_blocks, flags)
    ratio = found.ratio(checkpoint_every=EVERY)
    claim = f"best flags ({words(flags)}) / example loop ({problem.name})"
    rows.append(row(claim, ratio.value, interval=ratio.interval, at_least=1.5))
    judged, losses = equally_good(size, flags, device)
    return {
        "rows": rows + judged,
        "flags": flags,
        "tried": tried,
        "parameters": problem.parameters,
        "images_per_second": found.images_per_second(problem.batch),
        "held_out": losses,
    }


def choose(problem: Problem, size: Size) -> tuple[Flags, list[dict[str, Any]], list[Row]]:
    """Return the fastest flags, what was tried, and a row for each: precision first, then memory layout, then compilation.

    The seconds that a compilation takes are told apart, and count in no ratio.
    """
    changes: list[Flags] = [{}, {"precision": "bf16"}, {"channels_last": True}]
    best_flags: Flags = {"precision": "fp32"}
    best_ratio, tried, rows = 0.0, [], []
    if problem.device.type == "cpu" and size.compile:
        rows.append(not_measured("flags: compilation", "on a CPU it takes longer than the rest of the suite"))
    else:
        changes += [{"compile": strategy} for strategy in size.compile]
    rival = ExampleLoop(problem.build(), problem.in_memory(), schedule=problem.schedule)
    for change in changes:
        flags = best_flags | change
        claim = f"flags: {words(flags)} / example loop ({problem.name})"
        if flags["precision"] == "bf16" and pick_precision("auto", problem.device) != torch.bfloat16:
            rows.append(not_measured(claim, "this machine has no native bf16 arithmetic"))
            continue
        try:
            found = _duel(problem, rival, size.flag_blocks, flags)
        except (CellbridgeError, RuntimeError) as error:  # no compiler, or one that fails on this network
            rows.append(not_measured(claim, in_one_line(error)))
            continue
        ratio = found.ratio(checkpoint_every=EVERY)
        once = found.first_block - float(np.median(found.engine[:, 0]))
        tried.append({"flags": flags, "ratio": ratio.value, "interval": ratio.interval, "seconds_once": once})
        rows.append(
            row(f"{claim}, {once:.0f} s once" if "compile" in change else claim, ratio.value, interval=ratio.interval)
        )
        if ratio.value > best_ratio:
            best_flags, best_ratio = flags, ratio.value
    return best_flags, tried, rows


def _duel(problem: Problem, rival: ExampleLoop, blocks: int, flags: Flags) -> Duel:
    torch.compiler.reset()
    return duel(problem, rival, blocks=blocks, steps=1, flags=flags)


def words(flags: Flags) -> str:
    """Return flags as a few words."""
    compiled = [f"compile {flags['compile']}"] if flags.get("compile", "none") != "none" else []
    return ", ".join([flags["precision"], *(["channels-last"] if flags.get("channels_last") else []), *compiled])


def equally_good(size: Size, flags: Flags, device: torch.device) -> tuple[list[Row], dict[str, Any]]:
    """Train both from the same weights on the same batches, and compare the held-out loss of the averaged weights over seeds.

    The rate of learning is the engine's for both; betas, weight decay and average are each one's own. The difference is given in
    standard errors: of the difference between two means over seeds.
    """
    problem = size.problem(size.small, batch=size.small_batch, device=device)
    config = TrainingConfig(
        **flags, steps=size.seed_steps, batch_size=problem.batch, warmup_steps=max(1, size.seed_steps // 10)
    )
    pairs = [(_engine_loss(problem, config, seed), _example_loss(problem, config, seed)) for seed in range(size.seeds)]
    ours, theirs = (np.array(losses) for losses in zip(*pairs, strict=True))
    n = len(pairs)
    error = float(np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / n))
    losses: dict[str, Any] = {
        name: {
            "mean": float(values.mean()),
            "standard_error": float(values.std(ddof=1) / np.sqrt(n)),
            "seeds": values.tolist(),
        }
        for name, values in (("engine", ours), ("example", theirs), ("difference", ours - theirs))
    }
    losses |= {"network": problem.name, "steps": size.seed_steps, "cells": len(problem.held_out)}
    claim = (
        f"held-out loss above the example's, in standard errors ({n} seeds of {size.seed_steps} steps, {problem.name})"
    )
    return [row(claim, (losses["engine"]["mean"] - losses["example"]["mean"]) / error, at_most=1.0)], losses


def _engine_loss(problem: Problem, config: TrainingConfig, seed: int) -> float:
    torch.compiler.reset()
    with run_directory() as run:
        finished = [
            e
            for e in engine(problem, config.model_copy(update={"seed": seed}), run, seed=seed)
            if isinstance(e, Finished)
        ]
    network = problem.build(seed)
    load(network, finished[0].ema)
    return problem.held_out_loss(network)


def _example_loss(problem: Problem, config: TrainingConfig, seed: int) -> float:
    network = problem.build(seed)
    loop = ExampleLoop(
        network,
        problem.as_the_engine(seed),
        schedule=problem.schedule,
        learning_rate=lambda step: optim.learning_rate(step, config),
    )
    for _ in range(config.steps):
        loop()
    loop.average.copy_to(network.parameters())
    return problem.held_out_loss(network)
