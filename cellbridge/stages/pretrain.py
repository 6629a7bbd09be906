"""`cellbridge pretrain`: the base diffusion model, on the control cells of the training plates by default."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cellbridge.conditions import Condition, resolve
from cellbridge.config import NetworkConfig, ScheduleConfig, Section, SolverConfig, TrainingConfig, binding, dump
from cellbridge.data.store import StoreInfo, describe
from cellbridge.errors import StoreError
from cellbridge.runs import RunDir, begin, fingerprint

_NOT_BINDING = {"store", "training", "sampler", "resume", "device"}


class Config(Section):
    """Settings of `pretrain`."""

    store: Path
    conditions: Literal["control", "all"] | tuple[str, ...] = "control"
    plates: tuple[str, ...] | None = None
    """Train on these plates only; None takes every plate of the split."""
    split: str | None = "train"
    network: NetworkConfig = NetworkConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    sampler: SolverConfig = SolverConfig(steps=13)
    """How the sample grids are drawn."""
    condition_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the images whose condition is hidden, which trains the unconditional row."""
    augment: bool = True
    resume: str = "auto"
    init_from: Path | None = None
    device: str = "auto"


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Train the base and publish it as a diffusers folder under `out/model`.

    Raises
    ------
    ConditionError, StoreError : a condition or plate that the store does not hold.
    """
    info = describe(config.store)
    names = [condition.name for condition in _conditions(config, info)]

    from cellbridge import assembly
    from cellbridge.data.dataset import BatchSource, CellData
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    store = open_store(config.store)
    rows = store.select(split=config.split, conditions=names, plates=config.plates)
    if len(rows) == 0:
        raise StoreError(f"{config.store}: no cell of {names} in split {config.split!r} on these plates to train on.")
    run_dir = RunDir(out)
    inputs = {"store": config.store}
    inputs_sha256 = {name: fingerprint(path) for name, path in inputs.items()}
    conditions = assembly.base_rows(names)
    network = assembly.build_network(
        config.network,
        channels=len(info.channels),
        size_px=info.size_px,
        conditions=len(conditions),
        seed=config.training.seed,
    ).to(device)
    if config.init_from is not None:
        assembly.load_base_weights(network, config.init_from)
    source = BatchSource(
        CellData.load(store, rows, labels=assembly.labels_of(store.condition_names[rows], conditions), device=device),
        batch_size=config.training.batch_size,
        accumulation=config.training.accumulation,
        seed=config.training.seed,
        augment=config.augment,
    )
    finished = assembly.fit_denoiser(
        network,
        source,
        schedule=config.schedule,
        training=config.training,
        sampler=config.sampler,
        condition_dropout=config.condition_dropout,
        conditions=conditions,
        channels=info.channels,
        device=device,
        run=run_dir,
        resume=config.resume,
        on_start=lambda: begin(run_dir, config=dump(config), seed=config.training.seed, inputs=inputs),
        identity=inputs_sha256 | binding(config, exclude=_NOT_BINDING),
        shown=names,
        description="pretrain",
    )
    card = assembly.ModelCard(
        kind="base",
        channels=info.channels,
        size_px=info.size_px,
        conditions=conditions,
        network=config.network,
        schedule=config.schedule,
        plates=tuple(sorted(set(store.plates[rows]))),
        store_sha256=inputs_sha256["store"],
    )
    assembly.publish_base(run_dir, network, ema=finished.ema, card=card)
    parameters = sum(p.numel() for p in network.parameters())
    return {"model": str(run_dir.model), "cells": len(rows), "parameters": parameters, "sha256": fingerprint(out)}


def _conditions(config: Config, info: StoreInfo) -> list[Condition]:
    control = resolve(info.control, info.conditions)
    if config.conditions == "control":
        return [control]
    if config.conditions == "all":
        return [control, *(c for c in info.conditions if c != control)]
    wanted = [resolve(text, info.conditions, aliases=info.aliases) for text in config.conditions]
    return [control, *(c for c in wanted if c != control)]
