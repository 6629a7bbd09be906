"""`cellbridge fit-baseline --kind control-flow|noise-flow --condition X`: a peer's recipe, on the network and the engine of the bridge."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cellbridge import processes
from cellbridge.conditions import resolve
from cellbridge.config import FlowFitConfig, FlowKind, FlowRecipe, NetworkConfig, ScheduleConfig
from cellbridge.data.store import describe
from cellbridge.errors import ConditionError, ConfigError, StoreError
from cellbridge.outputs import require_directory
from cellbridge.runs import RunDir, fingerprint
from cellbridge.settings import binding

_NOT_BINDING = ("training", "sampler", "resume", "accept_changes", "device")
"""Settings that a resumed training may change, or that the engine compares by itself."""

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from cellbridge.assembly import Base
    from cellbridge.assembly.flows import FlowCard
    from cellbridge.data.store import Store, StoreInfo


class Config(FlowFitConfig):
    """Settings of `fit-baseline`."""

    kind: FlowKind
    base: Path | None = None
    """A run of `pretrain` whose network and weights the flow starts from; None builds `network` afresh."""
    conditions: tuple[str, ...] = Field(min_length=1)
    """The conditions to learn. A flow from noise learns the control besides; one from control cells does where it is named: the way
    from control cells to others."""
    network: NetworkConfig = NetworkConfig()
    """Of a flow without a base."""


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Train the flow and publish it under `out/model`; of several processes the main one does the latter.

    Raises
    ------
    ConditionError, StoreError : a condition or plate that the store does not hold, or no cell to train on.
    CouplingError : control cells and targets share no plate, or hardly any cells.
    ModelError : base and store differ in channels or size.
    """
    require_directory(out)
    _refuse(config)
    config = config.model_copy(update={"training": processes.shared(config.training)})
    info = describe(config.store)
    recipe = config.flow.recipe(config.kind)
    targets = _targets(config, info)

    from cellbridge import assembly, flow_fitting
    from cellbridge.assembly import flows
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    flows.require_flow_solver(config.sampler)
    base = None if config.base is None else assembly.load_base(config.base, device=device)
    if base is not None:
        assembly.check_fit(base.card, info)
    store = open_store(config.store)
    rows = _rows(config, store, targets)
    card = _card(config, info, recipe, targets=targets, base=base, plates=store.plates[rows])
    network = flows.build_flow_network(card, seed=config.training.seed, base=base, init_from=config.init_from)
    given = {"store": config.store, **({} if config.base is None else {"base": config.base})}
    finished = flow_fitting.fit_flow(
        network.to(device),
        flow_fitting.flow_cells(store, rows, card, config=config, device=device),
        card,
        config=config,
        run=RunDir(out),
        inputs=given | assembly.starting_weights(config.init_from, "flow"),
        identity=binding(config, exclude={*given, "init_from", *_NOT_BINDING}),
    )
    if not processes.is_main():
        return {}
    flows.publish_flow(RunDir(out), network, ema=finished.ema, card=card)
    return _summary(out, card, store.condition_names[rows], network)


def _summary(out: Path, card: "FlowCard", names: "np.ndarray", network: "nn.Module") -> dict[str, Any]:
    """Return what was trained, on the cells of these conditions."""
    return {
        "model": str(RunDir(out).model),
        "kind": card.recipe.kind,
        "conditions": list(card.targets),
        "cells": len(names),
        "of each": {str(name): int((names == name).sum()) for name in dict.fromkeys(names)},
        "parameters": sum(p.numel() for p in network.parameters()),
        "sha256": fingerprint(out),
    }


def _refuse(config: Config) -> None:
    """Raise ConfigError where two settings say the same thing."""
    if config.base is not None and "network" in config.model_fields_set:
        raise ConfigError("network is the base's where one is given. Leave network out, or base.")
    if config.base is not None and config.init_from is not None:
        raise ConfigError("base and init_from both give the weights to start from. Leave one out.")


def _targets(config: Config, info: "StoreInfo") -> list[str]:
    """Return the conditions that are learnt: with the control in front for a flow from noise."""
    named = [resolve(text, info.conditions, aliases=info.aliases).name for text in config.conditions]
    found = [info.control, *named] if config.kind == "noise-flow" else named
    if set(found) == {info.control}:
        raise ConditionError(f'"{info.control}" is the control. Name a treated condition, too.')
    return list(dict.fromkeys(found))


def _rows(config: Config, store: "Store", targets: list[str]) -> "np.ndarray":
    """Return the rows of control cells and targets.

    Raises
    ------
    StoreError : there is no cell of one of them.
    """
    names = list(dict.fromkeys([store.info.control, *targets]))
    rows = store.select(split=config.split, conditions=names, plates=config.plates)
    missing = sorted(set(names) - set(store.condition_names[rows]))
    if missing:
        raise StoreError(
            f'{config.store}: no cell of "{missing[0]}" in split {config.split!r} on these plates to train on.'
        )
    return rows


def _card(
    config: Config,
    info: "StoreInfo",
    recipe: FlowRecipe,
    *,
    targets: list[str],
    base: "Base | None",
    plates: "np.ndarray",
) -> "FlowCard":
    from cellbridge import assembly
    from cellbridge.assembly import flows

    others = [name for name in targets if name != info.control]
    network = config.network if base is None else base.card.network
    schedule = ScheduleConfig() if base is None else base.card.schedule.model_copy(update={"variance": "fixed"})
    seen = {*plates, *(() if base is None else base.card.plates)}
    if config.init_from is not None:
        seen |= {*flows.flow_card_in(assembly.model_directory(config.init_from, "flow")).network.plates}
    model = assembly.ModelCard(
        kind="base",
        channels=info.channels,
        size_px=info.size_px,
        conditions=("", info.control, *others),
        network=flows.flow_network_config(recipe, network),
        schedule=schedule,
        plates=tuple(sorted(map(str, seen))),
        store_sha256=fingerprint(config.store),
    )
    return flows.FlowCard(
        recipe=recipe, targets=tuple(targets), network=model, base_sha256=None if base is None else base.sha256
    )
