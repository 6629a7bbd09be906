"""Pairs that a bridge simulates for a round of Markovian fitting, and batches in which they stand in for some of the coupling's.

From control cells the cells they become, from treated cells those they come from: each way teaches the network the other one.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cellbridge.assembly.bridges import BridgeCard
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.image_matching import Bridged, MixedPairs, bridged_batches
from cellbridge.bridge.images import ImageBridge, ImageEndpoint
from cellbridge.bridge.integrate import row_chances, simulate, times
from cellbridge.bridging.cells import BridgeCells
from cellbridge.bridging.fitting import Batches, averaged
from cellbridge.bridging.judging import DIRECTIONS
from cellbridge.config import BridgeFitConfig
from cellbridge.data import augment
from cellbridge.data.dataset import CellData
from cellbridge.data.pairs import PairSource
from cellbridge.errors import StoppedBySignal
from cellbridge.progress import bar
from cellbridge.runs import publish_directory
from cellbridge.runtime import derive_seed, generator
from cellbridge.training.signals import StopRequest, stop_requests

PAIRS = "pairs.safetensors"
_PAIRS_AT_ONCE = 64

Pairs = dict[str, Tensor]
"""`forward/…` and `backward/…`: rows of the real end, labels, the volatility, and the simulated images, float16."""


def simulated_pairs(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    ema: Mapping[str, Tensor],
    *,
    config: BridgeFitConfig,
    folder: Path,
    number: int,
) -> Pairs:
    """Return the pairs of round `number`, from a folder where they were simulated before.

    Raises
    ------
    StoppedBySignal : SIGINT, SIGTERM or SIGHUP came; these pairs are begun anew.
    """
    if not (folder / PAIRS).is_file():
        found: Pairs = {}
        with averaged(bridge, ema, config, cells.cells.data.device), stop_requests() as request:
            for direction in DIRECTIONS:
                part = _simulate(bridge, cells, card, direction, config=config, number=number, request=request)
                found |= {f"{direction}/{name}": tensor for name, tensor in part.items()}
        with publish_directory(folder, manifest={"kind": "simulated pairs"}) as directory:
            save_file(found, directory / PAIRS)
    return load_file(folder / PAIRS)


def _simulate(
    bridge: ImageBridge,
    cells: BridgeCells,
    card: BridgeCard,
    direction: Direction,
    *,
    config: BridgeFitConfig,
    number: int,
    request: StopRequest,
) -> dict[str, Tensor]:
    """Run the bridge from real cells that train, control cells forward and treated ones backward."""
    data, seed = cells.cells.data, config.training.seed
    chance = generator("cpu", "simulated pairs", seed, number, direction)
    rows, targets = _starts(cells, len(card.conditions), direction, count=config.bridge.imf_pairs, chance=chance)
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
                require_going_on(request)
    return {"rows": rows, "labels": targets, "turns": turns, "ends": ends, "reg": regs}


def require_going_on(request: StopRequest) -> None:
    """Raise StoppedBySignal where the end was asked for between two trainings."""
    if request.signal_number is not None:
        raise StoppedBySignal(
            "stopped in a round of Markovian fitting; what was trained is saved, and the same command goes on from there.",
            signal_number=request.signal_number,
        )


def _starts(
    cells: BridgeCells, conditions: int, direction: Direction, *, count: int, chance: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw cells that train, control cells forward and treated ones backward, and the condition at the other end or their own."""
    labels = cells.cells.data.labels.cpu()
    training = torch.ones(len(labels), dtype=torch.bool)
    training[torch.from_numpy(cells.judge)] = False
    start = ((labels < 0 if direction == "forward" else labels >= 0) & training).nonzero()[:, 0]
    rows = start[torch.randint(len(start), (count,), generator=chance)]
    return rows, torch.randint(conditions, (count,), generator=chance) if direction == "forward" else labels[rows]


def mixed_batches(pairs: Pairs, cells: BridgeCells, card: BridgeCard, config: BridgeFitConfig) -> Batches:
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
        chance = generator("cpu", "replay", training.seed, step, micro)
        return _replayed(bridged, pairs, data, share=config.bridge.imf_replay, chance=chance)

    return batches


def _replayed(bridged: Bridged, pairs: Pairs, data: CellData, *, share: float, chance: torch.Generator) -> Bridged:
    """Keep a share of the pairs by lot, and let simulated ones stand in for the others.

    What was simulated from a real source teaches the way back to it, and the other way round.
    """
    n, draw = len(bridged.pairs.source), bridged.draw
    simulated = torch.rand(n, generator=chance) >= share
    chosen = torch.rand(n, generator=chance)
    pair = [bridged.pairs.source.clone(), bridged.pairs.target.clone()]
    labels, reg = bridged.pairs.labels.clone(), draw.reg.clone()
    for way, mask in (("backward", draw.forward.cpu()), ("forward", ~draw.forward.cpu())):
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
    return replace(bridged, pairs=mixed, draw=replace(draw, reg=reg))
