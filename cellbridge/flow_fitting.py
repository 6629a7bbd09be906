"""Flows on the training engine: cells or pairs in memory, the loss on their velocity, and a grid of translated cells."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellbridge.assembly.bases import condition_table
from cellbridge.assembly.flows import FlowCard, flow_translator, flow_velocity
from cellbridge.baselines.flow import NetworkVelocity
from cellbridge.baselines.flow_matching import Draws, Lines, control_lines, noise_lines, velocity_loss
from cellbridge.conditions import Condition
from cellbridge.config import FlowFitConfig
from cellbridge.data.dataset import BatchSource, CellData
from cellbridge.data.pairs import PairSource
from cellbridge.data.store import Store
from cellbridge.networks.condition_monitor import condition_warning
from cellbridge.runs import RunDir, begin, fingerprint
from cellbridge.runtime import autocast, pick_precision
from cellbridge.sample_grids import CONDITIONS, evenly, save_grid
from cellbridge.settings import dump
from cellbridge.training.checkpoint import as_resume
from cellbridge.training.ema import applied
from cellbridge.training.events import Finished, show
from cellbridge.training.loop import fit
from cellbridge.translators.translator import Translator
from cellbridge.transport.strata import Cells, EpochPairs
from cellbridge.typing import CellBatch


@dataclass(frozen=True)
class FlowCells:
    """The cells of a flow in memory.

    Parameters
    ----------
    data : cells, labelled by embedding row and, where the network is told it, plate.
    names, plates : condition and plate of each.
    lines : (step, micro-batch) → lines, a pure function.
    notes : what is to be known of the pairs.
    """

    data: CellData
    names: np.ndarray
    plates: np.ndarray
    lines: Callable[[int, int], Lines]
    notes: tuple[str, ...] = ()


def flow_cells(
    store: Store, rows: np.ndarray, card: FlowCard, *, config: FlowFitConfig, device: torch.device
) -> FlowCells:
    """Hold the cells of `rows` in memory and order their lines by (seed, step), every condition as often as another.

    Raises
    ------
    CouplingError : control cells and targets share no plate, or hardly any cells.
    """
    names, plates = store.condition_names[rows], store.plates[rows]
    table = condition_table(card.network)
    told = [
        table.label(card.network.row(str(name)), plate=str(plate)) for name, plate in zip(names, plates, strict=True)
    ]
    data = CellData.load(store, rows, labels=torch.tensor(told, dtype=torch.int64), device=device)
    training, recipe = config.training, card.recipe
    draws = Draws(
        rows=len(table),
        times=recipe.times,
        condition_dropout=recipe.condition_dropout,
        seed=training.seed,
        noise_level=recipe.noise_level,
        noise_probability=recipe.noise_probability,
        accumulation=training.accumulation,
    )
    order: dict[str, Any] = {
        "batch_size": training.batch_size,
        "accumulation": training.accumulation,
        "seed": training.seed,
    }
    if recipe.kind == "noise-flow":
        cells = BatchSource(data, augment=config.augment, sampling=_evenly(names), **order)
        return FlowCells(data, names, plates, noise_lines(cells, draws))
    pairs = WithinPlates(names, plates, card, across_plates=config.across_plates, seed=training.seed)
    paired = PairSource(data, pairs, count=pairs.count, augment=config.augment, **order)
    return FlowCells(data, names, plates, control_lines(paired, draws), pairs.notes)


def _evenly(names: np.ndarray) -> Tensor:
    """Return the weight of each cell, of which those of a condition sum to one: controls are many, and would fill the batches."""
    _, condition, counts = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    return torch.from_numpy(1 / counts[condition])


class WithinPlates:
    """Epoch → every control cell with a target of its plate drawn by lot, once for each condition that the plate has."""

    def __init__(self, names: np.ndarray, plates: np.ndarray, card: FlowCard, *, across_plates: bool, seed: int):
        self._sources = np.flatnonzero(names == card.network.control)
        self._targets = np.flatnonzero(np.isin(names, card.targets))
        sides = [
            Cells(torch.zeros(len(at), 0), list(plates[at]), list(names[at])) for at in (self._sources, self._targets)
        ]
        self._drawn = EpochPairs(*sides, solve=None, seed=seed, across_plates=across_plates)
        self.notes = self._drawn.notes
        self.count = sum(len(stratum.sources) for stratum in self._drawn.strata)

    def __call__(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = self._drawn(epoch)
        return self._sources[pairs.source], self._targets[pairs.target]


def fit_flow(
    network: nn.Module,
    cells: FlowCells,
    card: FlowCard,
    *,
    config: FlowFitConfig,
    run: RunDir,
    inputs: Mapping[str, Path],
    identity: Mapping[str, str],
) -> Finished:
    """Train a backbone on the velocity's loss, showing progress, and draw a grid of translated cells at the end.

    Parameters
    ----------
    inputs : what the result depends on, beside the configuration: hashed, and a checkpoint of other inputs is refused.
    identity : the settings that the result depends on.
    """
    training, device = config.training, cells.data.device
    velocity = flow_velocity(network, card).to(device)
    events = fit(
        network,
        velocity_loss(velocity, card.network.schedule.steps),
        cells.lines,
        config=training,
        run=run,
        identity={name: fingerprint(path) for name, path in inputs.items()} | dict(identity),
        device=device,
        resume=as_resume(config.resume),
        accept_changes=config.accept_changes,
    )
    return show(
        events,
        run=run,
        description=card.recipe.kind,
        total=training.steps,
        images_per_step=training.batch_size,
        on_start=lambda: begin(run, config=dump(config), seed=training.seed, inputs=inputs),
        on_sample=_drawing(velocity, cells, card, config=config, run=run),
        alarm=condition_warning,
        trackers=training.trackers,
        settings=config.model_dump(mode="json"),
        facts={"cells": len(cells.data)},
    )


def _drawing(
    velocity: NetworkVelocity, cells: FlowCells, card: FlowCard, *, config: FlowFitConfig, run: RunDir
) -> Callable[[int, dict[str, Tensor]], None]:
    """Return what draws a grid of a few control cells, the same translated to each condition, and real cells of it."""
    device = cells.data.device

    def draw_samples(step: int, ema: Mapping[str, Tensor]) -> None:
        with applied(velocity.network, ema), autocast(device, pick_precision(config.training.precision, device)):
            shown = _shown(cells, card, flow_translator(velocity, card, config.sampler))
        save_grid(shown, card.network.channels, run.samples / f"step-{step:08d}.png")

    return draw_samples


def _shown(cells: FlowCells, card: FlowCard, translator: Translator) -> dict[str, Tensor]:
    control = card.network.control
    sources = evenly(cells.names, control)
    batch = CellBatch(
        images=cells.data.batch(torch.from_numpy(sources)),
        cell_ids=tuple(map(str, sources)),
        plates=tuple(map(str, cells.plates[sources])),
        conditions=(control,) * len(sources),
        seeds=torch.arange(len(sources), device=cells.data.device),
    )
    rows = {control: batch.images}
    for name in [target for target in card.targets if target != control][:CONDITIONS]:
        with torch.inference_mode():
            rows[f"to {name}"] = translator.translate(batch, target=Condition.parse(name)).images
        rows[f"real {name}"] = cells.data.batch(torch.from_numpy(evenly(cells.names, name)))
    return rows
