"""`cellbridge fit-bridge --condition X`: one bridge between the control and some conditions, coupled plate by plate, over a base."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cellbridge import processes
from cellbridge.conditions import resolve
from cellbridge.config import BridgeFitConfig, NetworkConfig, ScheduleConfig
from cellbridge.data.store import describe
from cellbridge.errors import ConditionError, ConfigError, StoreError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.runs import RunDir, fingerprint, write_json
from cellbridge.settings import Seed

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cellbridge.assembly import Base
    from cellbridge.assembly.bridges import BridgeCard
    from cellbridge.bridge.images import ImageBridge
    from cellbridge.bridging.cells import BridgeCells
    from cellbridge.data.store import Store, StoreInfo


class Config(BridgeFitConfig):
    """Settings of `fit-bridge`."""

    base: Path | None = None
    """A run of `pretrain` whose network and weights the bridge starts from; needed by every `bridge.train` but scratch."""
    conditions: tuple[str, ...] = Field(min_length=1)
    """The conditions at the other end from the control: one network learns all."""
    network: NetworkConfig = NetworkConfig()
    """Of a bridge without a base."""
    seed: Seed | None = None
    """The same as training.seed, if given."""


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Fit the bridge and publish it under `out/model`; of several processes the main one does the latter.

    Raises
    ------
    ConditionError, StoreError : a condition or plate that the store does not hold, or no cell to train on.
    ConfigError : settings that contradict each other, or rounds that too few cells are held out to judge.
    CouplingError : control cells and a condition share no plate, or hardly any cells.
    NumericalError : a coupling that does not converge, or a loss that is not finite.
    ModelError : base and store differ in channels or size.
    """
    require_directory(out)
    require_apart(out, [path for path in (config.store, config.base) if path is not None])
    config = _settled(config)
    info = describe(config.store)
    conditions = _conditions(config, info)

    from cellbridge.assembly import bridges
    from cellbridge.bridging import fitting, judging, rounds
    from cellbridge.bridging.cells import bridge_cells
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    base = _base(config, info, device)
    store = open_store(config.store)
    rows = _rows(config, store, conditions)
    cells = bridge_cells(store, rows, conditions, config=config, device=device)
    if config.bridge.imf_rounds:
        judging.require_judges(cells.cells, cells.judge, conditions)
    card = _card(config, info, cells, conditions=conditions, base=base, plates=store.plates[rows])
    bridge = _bridge(config, cells, card, base=base, device=device)
    inputs = _inputs(config)
    finished, said = fitting.fit_bridge(
        bridge, cells, card, config=config, run=RunDir(out), inputs=inputs, facts=_facts(cells, bridge)
    )
    ema, taken = rounds.refine(bridge, cells, card, finished.ema, said, config=config, run=RunDir(out), inputs=inputs)
    if not processes.is_main():
        return {}
    kept = sum(one["kept"] for one in taken)
    card = card.model_copy(update={"coupling": card.coupling + "+imf"}) if kept else card
    write_json(RunDir(out).metrics, {"held_out": said, "notes": list(cells.notes), "imf_rounds": taken})
    bridges.publish_bridge(RunDir(out), bridge, ema=ema, card=card)
    return _summary(out, cells, bridge, card, said=said) | ({"imf rounds kept": kept} if taken else {})


def _settled(config: Config) -> Config:
    """Return the configuration as it will be run.

    Raises
    ------
    ConfigError : settings that contradict each other.
    """
    if config.base is None and config.bridge.train != "scratch":
        raise ConfigError(
            f"bridge.train = {config.bridge.train} trains the weights of a base. Give --base, or set bridge.train: scratch."
        )
    if config.base is not None and "network" in config.model_fields_set:
        raise ConfigError("network is the base's where one is given. Leave network out, or base.")
    if config.bridge.imf_rounds and not config.bridge.held_out:
        raise ConfigError(
            "bridge.imf_rounds are kept only if held-out cells say so, and bridge.held_out is 0. Set held_out: 0.1, or leave the rounds out."
        )
    if config.bridge.imf_rounds and processes.count() > 1:
        raise ConfigError("bridge.imf_rounds simulates in one process. Run it in one, or leave it out.")
    training = processes.shared(config.training)
    if config.seed is not None:
        training = training.model_copy(update={"seed": config.seed})
    return config.model_copy(update={"training": training})


def _base(config: Config, info: "StoreInfo", device: "torch.device") -> "Base | None":
    """Return the base that the bridge starts from, if any; raise ModelError where it does not fit the store."""
    from cellbridge import assembly

    if config.base is None:
        return None
    base = assembly.load_base(config.base, device=device)
    assembly.check_fit(base.card, info)
    return base


def _conditions(config: Config, info: "StoreInfo") -> tuple[str, ...]:
    found = [resolve(text, info.conditions, aliases=info.aliases).name for text in config.conditions]
    if info.control in found:
        raise ConditionError(f'"{info.control}" is the control, where every bridge starts. Name treated conditions.')
    return tuple(dict.fromkeys(found))


def _rows(config: Config, store: "Store", conditions: tuple[str, ...]) -> "np.ndarray":
    """Return the rows of control and treated cells; raise StoreError where there is no cell of one of them."""
    names = [store.info.control, *conditions]
    rows = store.select(split=config.split, conditions=names, plates=config.plates)
    found = set(store.condition_names[rows])
    missing = [name for name in names if name not in found]
    if missing:
        raise StoreError(
            f'{config.store}: no cell of "{missing[0]}" in split {config.split!r} on these plates to train on.'
        )
    return rows


def _inputs(config: Config) -> dict[str, Path]:
    from cellbridge.runs import MANIFEST

    given = {"store": config.store, **({} if config.base is None else {"base": config.base})}
    if config.init_from is not None:
        from cellbridge.assembly.bridges import bridge_directory

        given["init_from"] = bridge_directory(config.init_from) / MANIFEST
    return given


def _card(
    config: Config,
    info: "StoreInfo",
    cells: "BridgeCells",
    *,
    conditions: tuple[str, ...],
    base: "Base | None",
    plates: "np.ndarray",
) -> "BridgeCard":
    from cellbridge.assembly.bridges import BridgeCard, read_bridge_card
    from cellbridge.bridging.cells import pixel_std

    image_std = pixel_std(cells.cells)
    low, high = ((share * image_std) ** 2 for share in config.bridge.sigma_range)
    seen = {*plates, *(() if base is None else base.card.plates)}
    if config.init_from is not None:
        seen |= {*read_bridge_card(config.init_from).plates}
    return BridgeCard(
        channels=info.channels,
        size_px=info.size_px,
        control=info.control,
        conditions=conditions,
        network=(config.network if base is None else base.card.network).louder(),
        schedule=ScheduleConfig() if base is None else base.card.schedule.model_copy(update={"variance": "fixed"}),
        clock=config.bridge.clock,
        reg=(low, high),
        image_std=image_std,
        coupling=config.bridge.coupling,
        align=config.bridge.align,
        plates=tuple(sorted(map(str, seen))),
        store_sha256=fingerprint(config.store),
        base_sha256=None if base is None else base.sha256,
    )


def _bridge(
    config: Config, cells: "BridgeCells", card: "BridgeCard", *, base: "Base | None", device: "torch.device"
) -> "ImageBridge":
    from cellbridge.assembly import bridges
    from cellbridge.bridging.cells import bridge_moments

    moments = bridge_moments(cells, card.conditions, config=config)
    given = None if config.bridge.train == "scratch" else base
    bridge = bridges.build_bridge(card, moments, seed=config.training.seed, base=given)
    if config.init_from is not None:
        bridges.start_from(bridge, card, config.init_from)
    if config.bridge.train == "lora":
        bridges.adapt_bridge(bridge, config.adapter, seed=config.training.seed)
    return bridge.to(device)


def _facts(cells: "BridgeCells", bridge: "ImageBridge") -> dict[str, float]:
    return {
        "cells": float(len(cells.cells.data)),
        "pairs_of_an_epoch": float(cells.train.count),
        "held_out_cells": float(len(cells.judge)),
        "trained_parameters": float(sum(p.numel() for p in bridge.network.parameters() if p.requires_grad)),
    }


def _summary(
    out: Path, cells: "BridgeCells", bridge: "ImageBridge", card: "BridgeCard", *, said: dict[str, float]
) -> dict[str, Any]:
    names = cells.cells.names
    sigma = " to ".join(f"{reg**0.5 / card.image_std:g}" for reg in dict.fromkeys(card.reg))
    return {
        "model": str(RunDir(out).model),
        "conditions": list(card.conditions),
        "coupling": card.coupling,
        "sigma_rel": sigma,
        "cells": {str(name): int((names == name).sum()) for name in dict.fromkeys(names)},
        "trainable parameters": sum(p.numel() for p in bridge.network.parameters() if p.requires_grad),
        **{name.replace("_", " "): round(value, 4) + 0.0 for name, value in said.items()},
        **({"notes": list(cells.notes)} if cells.notes else {}),
        "sha256": fingerprint(out),
    }
