"""Each method of `translate`, from its settings to a translator, with what is known of the models behind it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from cellbridge import assembly
from cellbridge.assembly import Base, Model
from cellbridge.assembly.bridges import load_bridge, require_bridge_fits
from cellbridge.baselines.flow import ControlFlow
from cellbridge.conditions import Condition
from cellbridge.config import SolverConfig, prior_run
from cellbridge.data.store import StoreInfo
from cellbridge.diffusion.prior import XTPrior
from cellbridge.errors import ConditionError, ConfigError, did_you_mean
from cellbridge.runs import fingerprint
from cellbridge.translating.settings import Config, Method
from cellbridge.translators.schroedinger import CALLS_A_STEP, Schroedinger
from cellbridge.translators.translator import Translator

_STRENGTH = 0.5
"""Of SDEdit, where it is not said."""
_NO_ADAPTER = 'no model of "{}" was given: run `cellbridge finetune --condition "{}"` and pass its run as --adapter.'
_NO_BRIDGE = (
    'no bridge leads to or from "{}": run `cellbridge fit-bridge --condition "{}"` and pass its run as --bridge.'
)
_NO_FLOW = 'the flow was not trained on "{}": name it to `cellbridge fit-baseline --condition`.'
_IDENTITY = (
    "the cells as they are, by definition: no leg of the bridge is run. What a way there and back leaves of a cell, a translation of the "
    "result says (--source X --target CONTROL, then evaluate's round_trip)"
)


@dataclass(frozen=True)
class Asked:
    """From which condition to which; without targets, to every one but the source that is modelled."""

    source: Condition
    targets: Sequence[Condition]


@dataclass(frozen=True)
class Opened:
    """A method that is ready.

    Parameters
    ----------
    translator, targets : what translates, and to what.
    inputs : name → hash of each model behind it.
    trained_on : model → the plates it has seen, for `evaluate` to hold against those it judges on.
    calls, steps : of the network for a cell and a target, at most, and of the solver that makes them.
    inverted, solver : the source's model, where cells are inverted under it, and the solver that does it.
    attributes : what else the store says of the method. notes : what the summary says of it.
    """

    translator: Translator
    targets: Sequence[Condition]
    inputs: Mapping[str, Any]
    trained_on: Mapping[str, list[str]]
    calls: int
    steps: int
    inverted: Model | None = None
    solver: SolverConfig | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def open_method(config: Config, info: StoreInfo, asked: Asked, *, device: torch.device) -> Opened:
    """Load the models of a method and build its translator.

    Raises
    ------
    ConditionError : the source or a target is not modelled, or a prior or guide does not know it.
    ConfigError : a strength that the models do not reach, or fewer calls than the fewest steps take.
    ModelError : models that do not belong together, or do not fit the store. CheckpointError : a run without a finished model.
    """
    return METHODS[config.method](config, info, asked, device)


def _open_with_base(config: Config, info: StoreInfo, asked: Asked, device: torch.device) -> Opened:
    """Open DDIB and SDEdit, which ask a base and adapters over it."""
    assert config.base is not None
    base = assembly.with_smiles(assembly.load_base(config.base, device=device), config.smiles)
    assembly.check_fit(base.card, info)
    models = assembly.load_models(base, config.adapters, asked=asked.targets)
    targets, guides = _choose(asked, tuple(models), missing=_NO_ADAPTER), assembly.load_guides(config.solver, base)
    ddib = config.method == "ddib"
    strength = None if ddib else _STRENGTH if config.strength is None else config.strength
    solver, calls = assembly.solver_within(
        config.solver,
        config.nfe,
        base.schedule,
        inverting=ddib and config.x_T == "inverted",
        share=strength,
    )
    chosen: dict[str, Any] = {"source": asked.source, "solver": solver, "targets": targets, "guides": guides}
    if ddib:
        chosen["x_T"] = _origin(config, base, models, targets)
    translator = assembly.build_translator(
        "ddib" if ddib else "sdedit", models, strength=strength, name=config.name, **chosen
    )
    behind = [*([asked.source] if ddib else []), *targets]
    return Opened(
        translator,
        targets,
        inputs={
            "base": base.sha256,
            "adapters": [fingerprint(path) for path in config.adapters],
            **{name: fingerprint(path) for name, path in config.solver.guides.items()},
            **_of_prior(config, fingerprint, "prior"),
        },
        trained_on=_trained_on(config, base, models, behind, targets) | guides.plates,
        calls=calls,
        steps=solver.steps,
        inverted=models[asked.source] if ddib else None,
        solver=solver,
        attributes=_about_noise(config, base) | ({} if strength is None else {"strength": strength}),
    )


def _choose(asked: Asked, offered: Sequence[Condition], *, missing: str) -> list[Condition]:
    """Return the targets that were asked for, each once, or else every condition on offer but the source.

    Parameters
    ----------
    missing : what to say of a target that is not on offer, with "{}" for its name.

    Raises
    ------
    ConditionError : a target is not on offer, or there is none.
    """
    targets = list(dict.fromkeys(asked.targets)) or [c for c in offered if c != asked.source]
    for target in targets:
        _require_offered(target, offered, missing=missing)
    if not targets:
        raise ConditionError("no target: give the run of `cellbridge finetune` as --adapter, or name a --target.")
    return targets


def _require_offered(condition: Condition, offered: Sequence[Condition], *, missing: str) -> None:
    if condition not in offered:
        known = did_you_mean(condition.name, [one.name for one in offered])
        raise ConditionError(missing.replace("{}", condition.name) + known)


def _origin(
    config: Config, base: Base, models: Mapping[Condition, Model], targets: list[Condition]
) -> Literal["inverted", "fresh"] | Mapping[Condition, XTPrior]:
    """Return where x_T comes from: a word, or the prior of every target."""
    prior = prior_run(config.x_T)
    if prior is None:
        return "fresh" if config.x_T == "fresh" else "inverted"
    hashes = assembly.model_hashes(base, config.adapters, targets)
    return assembly.load_priors(prior, base=base, models=hashes)


def _trained_on(
    config: Config,
    base: Base,
    models: Mapping[Condition, Model],
    behind: Sequence[Condition],
    targets: Sequence[Condition],
) -> dict[str, list[str]]:
    used = {c.name: models[c].card for c in behind if c in targets or models[c].card is not base.card}
    seen = {"base": list(base.card.plates), **{name: list(card.plates) for name, card in used.items()}}
    prior = prior_run(config.x_T)
    fitted = {} if prior is None else assembly.prior_plates(prior, targets)
    return seen | {name: sorted({*seen[name], *plates}) for name, plates in fitted.items()}


def _about_noise(config: Config, base: Base) -> dict[str, Any]:
    last = torch.tensor([base.schedule.noisiest], dtype=torch.float64)
    kind = _of_prior(config, lambda prior: assembly.read_prior_card(prior).prior, "prior_kind")
    return {"alpha_T": float(base.schedule.alpha(last))} | kind


def _of_prior(config: Config, of: Callable[..., Any], key: str) -> dict[str, Any]:
    """Return what is to be said of the prior under a key; nothing where there is none."""
    prior = prior_run(config.x_T)
    return {} if prior is None else {key: of(prior)}


def _open_bridge(config: Config, info: StoreInfo, asked: Asked, device: torch.device) -> Opened:
    """Open bridges between images that share a control."""
    bridges = [load_bridge(path, device=device) for path in config.bridge]
    for bridge in bridges:
        require_bridge_fits(bridge.card, info)
    joined = assembly.join_bridges(bridges, config.bridge, sigma_rel=config.strength)
    chosen = config.bridge_solver
    offered = [joined.control, *joined.spans]
    _require_offered(asked.source, offered, missing=_NO_BRIDGE)
    targets = _choose(asked, offered, missing=_NO_BRIDGE)
    legs = max(joined.legs(asked.source, target) for target in targets)
    steps = chosen.steps
    if config.nfe is not None and legs:
        steps = assembly.most_steps(config.nfe, lambda n: legs * n * CALLS_A_STEP[chosen.flow], fewest=1)
    translator = Schroedinger(
        joined.spans,
        joined.control,
        way=chosen.flow,
        steps=steps,
        grid=chosen.grid,
        step=chosen.step,
        name=config.name or joined.name,
    )
    own = [target.name for target in targets if target == asked.source]
    return Opened(
        translator,
        targets,
        inputs={"bridge": [bridge.sha256 for bridge in bridges]},
        trained_on={"bridge": sorted({plate for bridge in bridges for plate in bridge.card.plates})},
        calls=translator.calls(legs=legs),
        steps=steps,
        attributes={"strength": joined.sigma_rel, "reg": joined.regs, **({"own_condition": "identity"} if own else {})},
        notes={f"{own[0]} to itself": _IDENTITY} if own else {},
    )


def _open_flow(config: Config, info: StoreInfo, asked: Asked, device: torch.device) -> Opened:
    """Open a flow from control cells or from noise."""
    assert config.baseline is not None
    flow = assembly.load_flow(config.baseline, device=device)
    card = flow.card
    assembly.check_fit(card.network, info)
    translator, solver, calls = assembly.flow_translator_within(
        flow, config.solver, config.nfe, strength=config.strength, name=config.name
    )
    level = translator.noise_level if isinstance(translator, ControlFlow) else None
    if config.samples_per_cell > 1 and level == 0:
        raise ConfigError(
            f"samples_per_cell = {config.samples_per_cell}: all draws of a cell are equal, as no noise is added. Set a strength."
        )
    if config.trajectories and level is None:
        raise ConfigError("trajectories begin at cells, and noise-flow makes new ones. Leave them out.")
    if level is not None and asked.source.name != card.network.control:
        raise ConditionError(f'control-flow starts from {card.network.control} alone, not from "{asked.source.name}".')
    return Opened(
        translator,
        _choose(asked, [Condition.parse(name) for name in card.targets], missing=_NO_FLOW),
        inputs={"baseline": flow.sha256},
        trained_on={"flow": list(card.network.plates)},
        calls=calls,
        steps=solver.steps,
        attributes={} if level is None else {"strength": level},
    )


METHODS: dict[Method, Callable[[Config, StoreInfo, Asked, torch.device], Opened]] = {
    "bridge": _open_bridge,
    "ddib": _open_with_base,
    "flow": _open_flow,
    "sdedit": _open_with_base,
}
