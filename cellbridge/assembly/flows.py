"""Flows, the peers' way: their networks, started from a base or afresh, their directories, and the translators over them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cellbridge.adapters import lora
from cellbridge.assembly.bases import Base, build_network, build_schedule, condition_table
from cellbridge.assembly.cards import CARD, ModelCard, model_directory
from cellbridge.assembly.translating import most_steps
from cellbridge.baselines.flow import ControlFlow, GuidedVelocity, NetworkVelocity, NoiseFlow, Velocity
from cellbridge.bridge.integrate import times
from cellbridge.conditions import Condition
from cellbridge.config import FlowRecipe, NetworkConfig, Section, SolverConfig
from cellbridge.errors import CheckpointError, ConfigError, ModelError
from cellbridge.networks.conditioning import ConditionedBackbone
from cellbridge.networks.initialisation import OUTPUT_LAYERS, silence
from cellbridge.networks.stored import load_weights, save_conditioning, stock
from cellbridge.networks.unet import require_same_keys
from cellbridge.runs import RunDir, fingerprint, publish_model, read_manifest, write_text

PLATE_DROPOUT = 0.15
"""Share of the images that each label is hidden from where a flow from noise brings its own tokens, as in Jones et al.'s code."""

_UNUSED = (
    "eta",
    "variance",
    "runge_kutta",
    "fixed_point",
    "start_noise",
    "guidance_interval",
    "guidance_rescale",
    "guidance_by_distance",
    "weaker",
    "classifier",
    "threshold",
)


class FlowCard(Section):
    """What a flow's directory says of itself (`cellbridge.json`)."""

    kind: Literal["flow"] = "flow"
    recipe: FlowRecipe
    targets: tuple[str, ...]
    """The conditions that it was trained towards."""
    network: ModelCard
    """The backbone, its rows and plates as a base's; the schedule gives the units of its time."""
    base_sha256: str | None = None


@dataclass(frozen=True)
class FittedFlow:
    """A trained flow, what it was trained on, and its hash."""

    velocity: NetworkVelocity
    card: FlowCard
    sha256: str


def flow_network_config(recipe: FlowRecipe, network: NetworkConfig) -> NetworkConfig:
    """Return the network of a flow: conditions are louder than a base's, and from noise it is also told the plate, by one more token.

    What the network has other than by default stays.
    """
    conditioning, plain = network.conditioning, NetworkConfig()
    if recipe.kind == "control-flow" or "plate" in conditioning.parts:
        return network.louder()
    told: dict[str, Any] = {"tokens": (*conditioning.parts, "plate")}
    if conditioning.token_dropout == plain.conditioning.token_dropout:
        told["token_dropout"] = PLATE_DROPOUT
    return network.louder().model_copy(update={"conditioning": conditioning.model_copy(update=told)})


def build_flow_network(
    card: FlowCard, *, seed: int, base: Base | None = None, init_from: Path | None = None
) -> nn.Module:
    """Build a flow's backbone: afresh with its last layer at zero, or with the weights of a base or of another flow.

    From a base everything is taken that both have, the rows of conditions by name; those that it does not know are drawn. The last layer
    stays the base's where the flow starts from noise and the base predicts v, which makes it the base's own probability flow, and else
    starts at zero.

    Raises
    ------
    ModelError : a weight of the base has no place, or one is missing.
    """
    network = build_network(card.network, seed=seed)
    if init_from is not None:
        load_weights(network, model_directory(init_from, "flow"))
        return network
    if base is not None:
        _take_weights(network, base, card)
    if base is None or not _keeps_last_layer(base, card.recipe):
        silence(network)
    return network


def _keeps_last_layer(base: Base, recipe: FlowRecipe) -> bool:
    schedule = base.card.schedule
    return recipe.kind == "noise-flow" and schedule.prediction == "v" and schedule.variance == "fixed"


def _take_weights(network: nn.Module, base: Base, card: FlowCard) -> None:
    """Copy the base's backbone, but for a last layer that is to say nothing, and rows of conditions that the base does not know."""
    own, given = (dict(_backbone(part).state_dict()) for part in (network, base.network))
    if not _keeps_last_layer(base, card.recipe):
        given |= {name: own[name] for name in own if name.split(".")[0] in OUTPUT_LAYERS}
    own_rows, given_rows = (weights.pop("class_embedding.weight", None) for weights in (own, given))
    require_same_keys(given, own, source="the base")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])
        if own_rows is not None and given_rows is not None:
            for name in set(base.card.conditions) & set(card.network.conditions):
                own_rows[card.network.conditions.index(name)] = given_rows[base.card.conditions.index(name)]


def _backbone(network: nn.Module) -> nn.Module:
    return network.backbone if isinstance(network, ConditionedBackbone) else network


def flow_velocity(network: nn.Module, card: FlowCard) -> NetworkVelocity:
    """Return a flow's velocity over its network."""
    source: Literal["control", "noise"] = "control" if card.recipe.kind == "control-flow" else "noise"
    return NetworkVelocity(network, build_schedule(card.network.schedule), source=source)


def flow_translator(
    velocity: NetworkVelocity,
    card: FlowCard,
    solver: SolverConfig,
    *,
    strength: float | None = None,
    name: str | None = None,
) -> ControlFlow | NoiseFlow:
    """Build the translator of a flow.

    Parameters
    ----------
    solver : its steps, order, grid (uniform, or quadratic in the time that is left) and guidance_scale, the recipe's if not given.
    strength : standard deviation of the noise that is added to control cells, the recipe's if None.
    name : what results call it; the recipe's if None.

    Raises
    ------
    ConfigError : a setting that a flow has no use for.
    """
    require_flow_solver(solver)
    recipe = card.recipe
    guided: Velocity = GuidedVelocity(velocity, _scale(card, solver), rows=len(card.network.conditions))
    rows = {Condition.parse(target): card.network.row(target) for target in card.targets}
    grid = times(solver.steps, grid="uniform" if solver.grid == "uniform" else "quadratic")
    if recipe.kind == "control-flow":
        return ControlFlow(
            guided,
            rows,
            control=Condition.parse(card.network.control),
            noise_level=recipe.noise_level if strength is None else strength,
            grid=grid,
            order=solver.order,
            name=name or recipe.kind,
        )
    if strength is not None:
        raise ConfigError(f"strength = {strength:g}: noise-flow starts from noise alone. Leave it out.")
    table = condition_table(card.network)
    return NoiseFlow(guided, rows, table=table, grid=grid, order=solver.order, name=name or recipe.kind)


def flow_translator_within(
    flow: FittedFlow, solver: SolverConfig, nfe: int | None, *, strength: float | None = None, name: str | None = None
) -> tuple[ControlFlow | NoiseFlow, SolverConfig, int]:
    """Return a flow's translator with the most steps that cost no more calls of the network for a cell, its solver, and how many these are.

    Parameters
    ----------
    nfe : calls of the network, for guidance as well; None keeps the solver's own steps.

    Raises
    ------
    ConfigError : one step costs more, or as `flow_translator`.
    """
    of_step = solver.order * (1 if _scale(flow.card, solver) in (0, 1) else 2)
    if nfe is not None:
        solver = solver.model_copy(update={"steps": most_steps(nfe, lambda steps: of_step * steps, fewest=1)})
    translator = flow_translator(flow.velocity, flow.card, solver, strength=strength, name=name)
    return translator, solver, of_step * solver.steps


def _scale(card: FlowCard, solver: SolverConfig) -> float:
    """Return the guidance scale that was asked for, or else the recipe's."""
    return solver.guidance_scale if "guidance_scale" in solver.model_fields_set else card.recipe.guidance_scale


def require_flow_solver(solver: SolverConfig) -> None:
    """Raise ConfigError where the solver has a setting that would do nothing."""
    default = SolverConfig()
    found = [name for name in _UNUSED if getattr(solver, name) != getattr(default, name)]
    if solver.method != "flow":
        found.append("method")
    if solver.grid == "log_snr":
        found.append("grid")
    if "guidance_from" in solver.model_fields_set and solver.guidance_from == "control":
        found.append("guidance_from")
    if found:
        raise ConfigError(
            f"solver.{found[0]} = {getattr(solver, found[0])} does nothing for a flow, which has steps, order, grid (uniform or quadratic) and "
            "guidance_scale (from no condition). Leave it out."
        )


def publish_flow(run: RunDir, network: nn.Module, *, ema: Mapping[str, Tensor], card: FlowCard) -> None:
    """Publish the averaged weights: the diffusers backbone as `unet/`, what conditions it beside that, and the card."""
    require_same_keys(dict(ema), dict(lora.trainable(network)), source="averaged weights")
    network.load_state_dict(dict(ema), strict=False)
    with publish_model(run, manifest={"kind": card.kind}) as directory:
        backbone: Any = stock(network)
        backbone.save_pretrained(directory / "unet", safe_serialization=True)
        save_conditioning(network, directory)
        write_text(directory / CARD, card.model_dump_json(indent=2) + "\n")


def read_flow_card(path: Path) -> FlowCard:
    """Read the card of a `fit-baseline` run.

    Raises
    ------
    CheckpointError : the run has no finished model. ModelError : it is no flow.
    """
    directory = RunDir(path).require_model()
    found = read_manifest(directory).get("kind")
    if found != "flow":
        raise ModelError(f"{directory}: holds a model of kind {found}, expected flow. Give a run of `fit-baseline`.")
    return flow_card_in(directory)


def flow_card_in(directory: Path) -> FlowCard:
    """Read the card of a flow's model directory."""
    try:
        return FlowCard.model_validate(json.loads((directory / CARD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: holds no {CARD}; it was not made by cellbridge.") from None
    except (ValueError, ValidationError) as error:
        raise ModelError(f"{directory / CARD}: is not a flow's card ({str(error).splitlines()[0]}).") from None


def load_flow(path: Path, *, device: torch.device | str = "cpu") -> FittedFlow:
    """Open a `fit-baseline` run's model.

    Raises
    ------
    CheckpointError : the run has no finished model. ModelError : it is no flow, or its weights and card do not fit together.
    """
    card = read_flow_card(path)
    network = build_network(card.network, seed=0)
    load_weights(network, RunDir(path).model)
    velocity = flow_velocity(network, card).to(device).eval().requires_grad_(False)
    return FittedFlow(velocity, card, fingerprint(path))
