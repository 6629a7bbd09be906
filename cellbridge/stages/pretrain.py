"""`cellbridge pretrain`: the base diffusion model, on the control cells of the training plates by default."""

from pathlib import Path
from typing import Any, Literal

from cellbridge import processes
from cellbridge.conditions import Condition, resolve
from cellbridge.config import DenoiserFitConfig, NetworkConfig, ScheduleConfig
from cellbridge.data.store import StoreInfo, describe
from cellbridge.errors import StoreError
from cellbridge.outputs import require_directory
from cellbridge.runs import RunDir, fingerprint


class Config(DenoiserFitConfig):
    """Settings of `pretrain`."""

    conditions: Literal["control", "all"] | tuple[str, ...] = "control"
    network: NetworkConfig = NetworkConfig()
    schedule: ScheduleConfig = ScheduleConfig()


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Train the base and publish it as a diffusers folder under `out/model`; of several processes the main one does the latter.

    Raises
    ------
    ConditionError, StoreError : a condition or plate that the store does not hold.
    """
    require_directory(out)
    config = config.model_copy(update={"training": processes.shared(config.training)})
    config.objective.require_fit(config.schedule)
    info = describe(config.store)
    names = [condition.name for condition in _conditions(config, info)]

    from cellbridge import assembly, fitting
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    store = open_store(config.store)
    rows = store.select(split=config.split, conditions=names, plates=config.plates)
    if len(rows) == 0:
        raise StoreError(f"{config.store}: no cell of {names} in split {config.split!r} on these plates to train on.")
    card = assembly.ModelCard(
        kind="base",
        channels=info.channels,
        size_px=info.size_px,
        conditions=assembly.base_rows(names),
        network=config.network,
        schedule=config.schedule,
        plates=tuple(sorted({*store.plates[rows], *assembly.inherited_plates(config.init_from)})),
        store_sha256=fingerprint(config.store),
    )
    network = assembly.build_network(card, seed=config.training.seed, init_from=config.init_from).to(device)
    known_plates = assembly.condition_table(card).plates
    finished = fitting.fit_denoiser(
        network,
        fitting.batch_source(store, rows, config, conditions=card.conditions, device=device, plates=known_plates),
        card,
        config=config,
        run=RunDir(out),
        inputs={"store": config.store, **assembly.starting_weights(config.init_from, "base")},
        shown=names,
        description="pretrain",
    )
    if not processes.is_main():
        return {}
    assembly.publish_base(RunDir(out), network, ema=finished.ema, card=card)
    parameters = sum(p.numel() for p in network.parameters())
    return {"model": str(RunDir(out).model), "cells": len(rows), "parameters": parameters, "sha256": fingerprint(out)}


def _conditions(config: Config, info: StoreInfo) -> list[Condition]:
    control = resolve(info.control, info.conditions)
    if config.conditions == "control":
        return [control]
    if config.conditions == "all":
        return list(dict.fromkeys([control, *info.conditions]))
    wanted = [resolve(text, info.conditions, aliases=info.aliases) for text in config.conditions]
    return list(dict.fromkeys([control, *wanted]))
