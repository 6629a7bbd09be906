"""Models of conditions → a translator, and how many network calls it may cost."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellbridge.assembly.bases import Model
from cellbridge.assembly.bridges import Bridge
from cellbridge.assembly.solving import (
    NO_GUIDES,
    Guides,
    build_inversion,
    build_sampler,
    guided_model,
    require_times_within,
)
from cellbridge.conditions import Condition
from cellbridge.config import SolverConfig
from cellbridge.diffusion.part_way import part_of
from cellbridge.diffusion.prior import XTPrior
from cellbridge.diffusion.samplers import asked_times
from cellbridge.diffusion.schedule import Schedule
from cellbridge.errors import ConditionError, ConfigError, ModelError, did_you_mean
from cellbridge.translators.ddib import Ddib
from cellbridge.translators.schroedinger import Schroedinger, Span
from cellbridge.translators.sdedit import Sdedit
from cellbridge.translators.translator import Translator

_SPAN_NAMES = {"independent": "bridge matching", "ot": "OT-coupled bridge", "gaussian": "Gaussian-coupled bridge"}
"""Coupling → what results call a bridge that was fitted to it."""

TRANSLATORS = {"bridge": Schroedinger, "ddib": Ddib, "sdedit": Sdedit}


def build_translator(
    method: Literal["ddib", "sdedit"],
    models: Mapping[Condition, Model],
    *,
    source: Condition,
    solver: SolverConfig,
    x_T: Literal["inverted", "fresh"] | Mapping[Condition, XTPrior] = "inverted",
    strength: float | None = None,
    targets: Collection[Condition] | None = None,
    guides: Guides = NO_GUIDES,
    name: str | None = None,
) -> Translator:
    """Build a translator from the source to every condition that has a model, or to the targets alone.

    Parameters
    ----------
    x_T : of DDIB, which asks the source's model. strength : of SDEdit.
    name : what results call it; its own name if None.

    Raises
    ------
    ConditionError : nothing models the source, or a guide does not know a target. ConfigError : the strength is out of range.
    """
    chosen = {
        condition: (guided_model(model, solver, guides), model.row)
        for condition, model in models.items()
        if targets is None or condition in targets
    }
    sampler = build_sampler(solver)
    if method == "sdedit":
        assert strength is not None
        return Sdedit(chosen, strength=strength, sampler=sampler, name=name or Sdedit.name)
    if source not in models:
        raise ConditionError(
            f'no model of the source "{source.name}" was given: pass its adapter, from `cellbridge finetune --condition '
            f'"{source.name}"`, as --adapter as well.{did_you_mean(source.name, [c.name for c in models])}'
        )
    model, inversion = models[source], build_inversion(solver)
    return Ddib(
        model.denoiser, model.row, chosen, inversion=inversion, sampler=sampler, x_T=x_T, name=name or Ddib.name
    )


def solver_within(
    solver: SolverConfig, nfe: int | None, schedule: Schedule, *, inverting: bool, share: float | None
) -> tuple[SolverConfig, int]:
    """Return a solver with the most steps that cost no more calls of the network for a cell, and how many these are.

    Parameters
    ----------
    nfe : calls of the network that is asked for a condition, for guidance as well; None keeps the solver's own steps. A guiding
        classifier is not counted.
    inverting : whether the cell is inverted first.
    share : of the schedule that is solved, of SDEdit; None is all of it.

    Raises
    ------
    ConfigError : the fewest steps cost more, or guidance_interval lies where the solver never asks.
    """
    if share == 0:
        return solver, 0
    used = schedule if share is None else part_of(schedule, share)
    if solver.guidance_interval is not None:
        require_times_within(solver, used)

    def cost(steps: int) -> int:
        tried = solver.model_copy(update={"steps": steps})
        inversion = build_inversion(tried).network_calls if inverting else 0
        return inversion + _sampling_calls(tried, used)

    if nfe is None:
        return solver, cost(solver.steps)
    fewest = 4 if solver.runge_kutta else 1 if solver.grid == "uniform" and solver.method != "pndm" else 2
    steps = most_steps(nfe, cost, fewest=fewest)
    return solver.model_copy(update={"steps": steps}), cost(steps)


def most_steps(nfe: int, cost: Callable[[int], int], *, fewest: int) -> int:
    """Return the largest number of steps that costs at most `nfe` calls; `cost` rises with the steps.

    Raises
    ------
    ConfigError : the fewest steps cost more.
    """
    if cost(fewest) > nfe:
        raise ConfigError(
            f"nfe = {nfe}: the fewest steps, {fewest}, cost {cost(fewest)} calls of the network. Raise it."
        )
    low, high = fewest, max(nfe, fewest) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= nfe else (low, middle)
    return low


def _sampling_calls(solver: SolverConfig, schedule: Schedule) -> int:
    """Return how often a solver's sampling asks the network for one image; guidance asks twice wherever it guides."""
    sampler = build_sampler(solver)
    alone = solver.guidance_scale == 0 and solver.weaker is None and not solver.guidance_by_distance
    if solver.guidance_scale == 1 or alone:
        return sampler.network_calls
    if solver.guidance_interval is None:
        return 2 * sampler.network_calls
    low, high = solver.guidance_interval
    return sampler.network_calls + sum(low <= t <= high for t in asked_times(sampler, schedule))


@dataclass(frozen=True)
class JoinedBridges:
    """Bridges of one control as one.

    Parameters
    ----------
    spans : condition → what lies between the control and it.
    sigma_rel, regs : volatility over the pixels' standard deviation, and squared volatility, of each bridge.
    name : what results call them.
    """

    spans: Mapping[Condition, Span]
    control: Condition
    sigma_rel: list[float]
    regs: list[float]
    name: str

    def legs(self, source: Condition, target: Condition) -> int:
        """Return how many legs the way has: none to the cells' own condition, and two where it leads through the control."""
        return 0 if source == target else sum(condition != self.control for condition in (source, target))


def join_bridges(bridges: Sequence[Bridge], paths: Sequence[Path], *, sigma_rel: float | None) -> JoinedBridges:
    """Put bridges side by side, all at one volatility over the pixels' standard deviation, or each at the middle of its own.

    Raises
    ------
    ModelError : two lead to one condition, or they start from different controls. ConfigError : one was not trained at the volatility.
    """
    spans: dict[Condition, Span] = {}
    of: dict[Condition, Path] = {}
    regs = [bridge.middle_reg if sigma_rel is None else bridge.reg_of(sigma_rel) for bridge in bridges]
    for bridge, path, reg in zip(bridges, paths, regs, strict=True):
        if bridge.control != bridges[0].control:
            raise ModelError(
                f'{path}: starts from the control "{bridge.control.name}", and {paths[0]} from "{bridges[0].control.name}". Give bridges of one.'
            )
        for condition, endpoint in bridge.at(reg).items():
            if condition in spans:
                raise ModelError(f"{of[condition]} and {path}: both lead to {condition.name}. Give one of them.")
            spans[condition], of[condition] = Span(endpoint, reg), path
    shares = [math.sqrt(reg) / bridge.image_std for reg, bridge in zip(regs, bridges, strict=True)]
    names = {bridge_name(bridge.card.coupling) for bridge in bridges}
    return JoinedBridges(spans, bridges[0].control, shares, regs, names.pop() if len(names) == 1 else Schroedinger.name)


def bridge_name(coupling: str) -> str:
    """Return what results call a bridge that was fitted to a coupling, such as `ot` or `ot+imf`."""
    pairs, *refined = coupling.split("+")
    return " + ".join([_SPAN_NAMES.get(pairs, Schroedinger.name), *(word.upper() for word in refined)])
