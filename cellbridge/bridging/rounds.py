"""Iterative Markovian fitting of a bridge between images, in rounds that held-out cells can refuse.

A round simulates pairs from the averaged weights (from control cells the cells they become, from treated cells those they come from),
trains on them and on some pairs of the coupling, and is kept if the translations of cells that were held out come nearer to real ones,
both directions together. What an under-trained network simulates can undo what it knew: else the weights before the round are taken back.

References
----------
Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, algorithm 1.
De Bortoli et al. 2024, "Schrödinger bridge flow for unpaired data translation", arXiv:2409.09347 (one network for both directions).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cellbridge.assembly.bridges import BridgeCard
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.image_matching import Bridged, MixedPairs, bridged_batches
from cellbridge.bridge.images import ImageBridge, ImageEndpoint
from cellbridge.bridge.integrate import row_chances, simulate, times
from cellbridge.bridging.judging import HeldOut
from cellbridge.bridging.training import BridgeCells, averaged, fit_bridge
from cellbridge.config import BridgeFitConfig
from cellbridge.data import augment
from cellbridge.data.pairs import PairSource
from cellbridge.progress import bar
from cellbridge.runs import RunDir, publish_directory, write_json
from cellbridge.runtime import derive_seed, generator
from cellbridge.training import ema as averaging

_PAIRS_AT_ONCE = 64
_PAIRS = "pairs.safetensors"

Pairs = dict[str, Tensor]
"""`forward/…` and `backward/…`: rows of the real end, labels, the volatility, and the simulated images, float16."""


def refine(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    ema: Mapping[str, Tensor],
    said: dict[str, float],
    *,
    config: BridgeFitConfig,
    run: RunDir,
    inputs: Mapping[str, Path],
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Take the rounds that are asked for, each in a run directory of its own under `rounds/`; the same call continues them.

    Parameters
    ----------
    ema : averaged weights to begin with.
    said : what held-out cells said of them; replaced by what they say of the weights that are returned.

    Returns
    -------
    The averaged weights to publish, and what was found and decided in each round.
    """
    best, rounds = dict(ema), []
    for number in range(1, config.bridge.imf_rounds + 1):
        place = RunDir(run.path / "rounds" / f"round-{number}")
        before = _distance(bridge, cells, best, config)
        averaging.load(bridge.network, best)
        pairs = _simulated(bridge, cells, card, best, config=config, place=place, number=number)
        own = _round_config(config, number)
        finished, found = fit_bridge(
            bridge,
            cells,
            card,
            config=own,
            run=place,
            inputs={**inputs, "pairs": place.path / "pairs" / _PAIRS},
            batches=_mixed(pairs, cells, card, own),
        )
        after = _distance(bridge, cells, finished.ema, config)
        kept = after < before
        if kept:
            best = dict(finished.ema)
            said.update(found)
        rounds.append({"round": number, "kept": kept, "distance_before": before, "distance_after": after})
        write_json(place.metrics, rounds[-1])
        if not kept:  # the next round would begin where this one did, with other chance
            break
    return best, rounds


def _round_config(config: BridgeFitConfig, number: int) -> BridgeFitConfig:
    """Return the configuration of a round: fewer steps, a third of the learning rate, chance of its own."""
    training = config.training.model_copy(
        update={
            "steps": config.bridge.imf_steps,
            "learning_rate": config.training.learning_rate / 3,
            "seed": derive_seed("round", config.training.seed, number),
        }
    )
    resume = "auto" if config.resume not in ("auto", "never") else config.resume
    return config.model_copy(update={"training": training, "resume": resume})


def _distance(bridge: ImageBridge, cells: BridgeCells, ema: Mapping[str, Tensor], config: BridgeFitConfig) -> float:
    judge = HeldOut(bridge, cells.cells, cells.judge, None, config=config)
    with averaged(bridge, ema, config, cells.cells.data.device):
        found = [one[0] for way in ("forward", "backward") for one in judge.distances(way)]
    return float(np.mean(found)) if found else float("nan")


def _simulated(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    ema: Mapping[str, Tensor],
    *,
    config: BridgeFitConfig,
    place: RunDir,
    number: int,
) -> Pairs:
    """Return a round's pairs, from its directory where they were simulated before."""
    folder = place.path / "pairs"
    if not (folder / _PAIRS).is_file():
        found: Pairs = {}
        with averaged(bridge, ema, config, cells.cells.data.device):
            for direction in ("forward", "backward"):
                part = _simulate(bridge, cells, card, direction, config=config, number=number)
                found |= {f"{direction}/{name}": tensor for name, tensor in part.items()}
        with publish_directory(folder, manifest={"kind": "simulated pairs"}) as directory:
            save_file(found, directory / _PAIRS)
    return load_file(folder / _PAIRS)


def _simulate(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    direction: Direction,
    *,
    config: BridgeFitConfig,
    number: int,
) -> dict[str, Tensor]:
    """Run the bridge from real cells that train, control cells forward and treated ones backward."""
    data, seed = cells.cells.data, config.training.seed
    chance = generator("cpu", "simulated pairs", seed, number, direction)
    labels = data.labels.cpu()
    training = torch.ones(len(data), dtype=torch.bool)
    training[torch.from_numpy(cells.judge)] = False
    start = ((labels < 0 if direction == "forward" else labels >= 0) & training).nonzero()[:, 0]
    rows = start[torch.randint(len(start), (config.bridge.imf_pairs,), generator=chance)]
    targets = (
        torch.randint(len(card.conditions), (len(rows),), generator=chance) if direction == "forward" else labels[rows]
    )
    turns = augment.draw_dihedral(len(rows), generator=chance) * int(config.augment)
    ends = torch.empty(len(rows), *data.image_shape, dtype=torch.float16)
    low, high = card.reg
    regs = torch.empty(len(rows))
    seeds = torch.tensor([derive_seed("simulated", seed, number, direction, i) for i in range(len(rows))])
    with bar(f"simulate {direction}", total=len(rows), unit="cells") as shown:
        for condition in range(len(card.conditions)):
            for part in (targets == condition).nonzero()[:, 0].split(_PAIRS_AT_ONCE):
                reg = low * (high / low) ** float(torch.rand((), generator=chance))
                model, regs[part] = ImageEndpoint(bridge, condition=condition, reg=reg), reg
                images = data.batch(rows[part], elements=turns[part])
                moved = simulate(
                    model,
                    images,
                    reg=reg,
                    chances=row_chances(seeds[part].to(data.device), data.image_shape),
                    direction=direction,
                    grid=times(config.bridge.simulation_steps),
                    step="mean",
                )
                ends[part] = moved.float().clamp(-1, 1).cpu().half()
                shown.advance(len(part))
    return {"rows": rows, "labels": targets, "turns": turns, "ends": ends, "reg": regs}


def _mixed(
    pairs: Pairs, cells: BridgeCells, card: BridgeCard, config: BridgeFitConfig
) -> Callable[[int, int], Bridged]:
    """Return (step, micro-batch) → pairs of the coupling, some of them replaced by simulated ones: a pure function."""
    training, data = config.training, cells.cells.data
    order = PairSource(
        data,
        cells.coupled,
        count=cells.train.count,
        batch_size=training.batch_size,
        accumulation=training.accumulation,
        seed=training.seed,
        augment=config.augment,
        align=cells.train.align,
    )
    plain = bridged_batches(order, reg=card.reg, seed=training.seed, accumulation=training.accumulation)

    def batches(step: int, micro: int) -> Bridged:
        bridged = plain(step, micro)
        n, chance = len(bridged.pairs.source), generator("cpu", "replay", training.seed, step, micro)
        simulated = torch.rand(n, generator=chance) >= config.bridge.imf_replay
        chosen = torch.rand(n, generator=chance)
        pair = [bridged.pairs.source.clone(), bridged.pairs.target.clone()]
        labels, reg = bridged.pairs.labels.clone(), bridged.draw.reg.clone()
        for way, mask in (("backward", bridged.draw.forward.cpu()), ("forward", ~bridged.draw.forward.cpu())):
            # What was simulated from a real source teaches the way back to it, and the other way round.
            at = (simulated & mask).nonzero()[:, 0]
            if not len(at):
                continue
            number = (chosen[at] * len(pairs[f"{way}/rows"])).long()
            kept = data.batch(pairs[f"{way}/rows"][number], elements=pairs[f"{way}/turns"][number])
            made, at = pairs[f"{way}/ends"][number].to(kept), at.to(data.device)
            real, other = pair if way == "forward" else reversed(pair)
            real[at], other[at] = kept, made
            labels[at], reg[at] = pairs[f"{way}/labels"][number].to(labels), pairs[f"{way}/reg"][number].to(reg)
        source, target = pair
        mixed = MixedPairs(source, target, labels, bridged.pairs.weights, simulated.to(data.device))
        return replace(bridged, pairs=mixed, draw=replace(bridged.draw, reg=reg))

    return batches
