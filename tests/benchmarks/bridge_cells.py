"""One measurement: a solver on a pair, its plan held against the true one. Kept as one JSON file each, so that a run can go on."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bridge_pairs import Pair, make_pair
from bridge_peers import Carry, fit_lightsb, fit_sb_cfm, fit_sf2m
from torch import Generator, Tensor

from cellbridge.bridge.budget import Budget
from cellbridge.config import BridgeConfig
from cellbridge.metrics.plans import (
    Conditionals,
    conditional_energy,
    conditional_uvp,
    cost_ratio,
    marginal_uvp,
    mean_uvp,
    precision_residual,
    variance_ratio,
)
from cellbridge.runs import write_json
from cellbridge.runtime import derive_seed, generator
from cellbridge.vectors import fit_vectors

_SOURCES, _DRAWS, _FOR_ENERGY, _FOR_MARGINALS = 50, 400, 20, 10_000


@dataclass(frozen=True)
class Cell:
    """What is measured, and with how much.

    Parameters
    ----------
    kind : of pair: gaussian, mixture or curved.
    solver : neural, mixture, sf2m, sb_cfm, lightsb, or a null row: floor, independent, identity.
    seconds : of the fit, on the processor.
    """

    kind: str
    dimension: int
    reg: float
    seed: int
    solver: str
    points: int
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.kind}-d{self.dimension}-reg{self.reg:g}-seed{self.seed}-{self.solver}-n{self.points}-{self.seconds:g}s"


def measured(cell: Cell, folder: Path | None) -> dict[str, Any]:
    """Measure a cell, or read what an earlier run measured."""
    path = None if folder is None else folder / f"{cell.name}.json"
    if path is not None and path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    found = _measure(cell)
    if path is not None:
        write_json(path, found)
    return found


def _measure(cell: Cell) -> dict[str, Any]:
    pair = make_pair(cell.kind, cell.dimension, reg=cell.reg, seed=cell.seed)
    data = generator("cpu", "data", cell.kind, cell.dimension, cell.seed)
    source, target = pair.source(cell.points, data), pair.target(cell.points, data)
    carries, facts = _SOLVERS[cell.solver](cell, pair, source, target)
    rows = {name: _judged(cell, pair, carry) for name, carry in carries.items()}
    best = min(rows, key=lambda name: rows[name]["conditional_uvp"])
    return {**rows[best], "variant": best, "variants": rows, "facts": facts}


def _judged(cell: Cell, pair: Pair, carry: Carry) -> dict[str, float]:
    """Judge on sources that every solver shares."""
    chance = generator("cpu", "judge", cell.kind, cell.dimension, cell.seed)
    sources = pair.source(_SOURCES, chance)
    many = sources.repeat_interleave(_DRAWS, 0)
    truth, exact = pair.conditionals(sources), pair.carried(many, chance).view(_SOURCES, _DRAWS, -1)
    start = pair.source(_FOR_MARGINALS, chance)
    true_cost = float((start - pair.carried(start, chance)).square().sum(1).mean() / 2)
    draws, end = carry(many, chance).double().view(_SOURCES, _DRAWS, -1), carry(start, chance).double()
    return _figures(pair, draws, truth, exact) | {
        "marginal_uvp": marginal_uvp(end, pair.mean, pair.covariance),
        "cost_ratio": cost_ratio(start, end, true_cost=true_cost),
        "precision_residual": precision_residual(start, end, reg=cell.reg),
    }


def _figures(pair: Pair, draws: Tensor, truth: Conditionals, exact: Tensor) -> dict[str, float]:
    total = float(pair.covariance.trace())
    return {
        "conditional_uvp": conditional_uvp(draws, truth, target_variance=total),
        "floor": conditional_uvp(exact, truth, target_variance=total),
        "mean_uvp": mean_uvp(draws.mean(1), truth.means, target_variance=total),
        "variance_ratio": variance_ratio(draws, truth),
        "conditional_energy": conditional_energy(draws[:_FOR_ENERGY], exact[:_FOR_ENERGY]),
    }


Fitted = tuple[dict[str, Carry], dict[str, Any]]


def _ours(cell: Cell, pair: Pair, source: Tensor, target: Tensor) -> Fitted:
    config = BridgeConfig(solver=cell.solver, budget_seconds=cell.seconds)  # type: ignore[arg-type]
    bridge = fit_vectors(source.numpy(), target.numpy(), reg=cell.reg, seed=cell.seed, config=config)

    def carry(x: Tensor, chance: Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=chance))
        return torch.from_numpy(bridge.translate(x.numpy(), seed=seed, batch_size=4096))

    return {cell.solver: carry}, bridge.facts


def _peer(fit: Callable[..., Any]) -> Callable[[Cell, Pair, Tensor, Tensor], Fitted]:
    def run(cell: Cell, pair: Pair, source: Tensor, target: Tensor) -> Fitted:
        seed = derive_seed(cell.solver, cell.seed) % 2**31
        found = fit(source, target, reg=cell.reg, seed=seed, budget=Budget(cell.seconds))
        return (found if isinstance(found, dict) else {cell.solver: found}), {}

    return run


def _floor(cell: Cell, pair: Pair, source: Tensor, target: Tensor) -> Fitted:
    return {"floor": pair.carried}, {}


def _independent(cell: Cell, pair: Pair, source: Tensor, target: Tensor) -> Fitted:
    return {"independent": lambda x, chance: target[torch.randint(len(target), (len(x),), generator=chance)]}, {}


def _identity(cell: Cell, pair: Pair, source: Tensor, target: Tensor) -> Fitted:
    # The residual needs a joint covariance that can be inverted.
    return {"identity": lambda x, chance: x + 1e-6 * torch.randn(x.shape, generator=chance)}, {}


_SOLVERS: dict[str, Callable[[Cell, Pair, Tensor, Tensor], Fitted]] = {
    "neural": _ours,
    "mixture": _ours,
    "sf2m": _peer(fit_sf2m),
    "sb_cfm": _peer(fit_sb_cfm),
    "lightsb": _peer(fit_lightsb),
    "floor": _floor,
    "independent": _independent,
    "identity": _identity,
}
SOLVERS = tuple(_SOLVERS)
