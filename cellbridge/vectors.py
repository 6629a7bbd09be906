"""Schrödinger bridges between two unpaired samples of vectors: embeddings, profiles, CellProfiler features.

    bridge = fit_vectors(source, target, reg=1.0, seed=0)
    translated = bridge.translate(source, seed=0)

Two solvers stand beside each other. `mixture` fits a Gaussian-mixture potential and samples its plan exactly, in one step. `neural` puts a
network on two such potentials, one for either direction, trains it by iterative Markovian fitting, and keeps it as far as it helps on
held-out rows. `auto` fits both and takes the better by held-out energy distance plus how far the plan is from what optimality asks for whatever
the marginals, Cov(X_1 | X_0) = reg ∂E[X_1 | X_0] / ∂X_0. The residual of -I / reg in the joint precision, which says the same of Gaussians and
little of others, is told beside it. Where no network was kept, both are one plan, and the mixture draws it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.drift import Endpoint, EndpointDrift
from cellbridge.bridge.gaussian import Direction, gaussian_bridge
from cellbridge.bridge.integrate import flow, row_chances, simulate, times
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.potential import PotentialPreconditioning
from cellbridge.bridge.preconditioning import GaussianPreconditioning
from cellbridge.bridging.vector_solvers import Solvers
from cellbridge.config import BridgeConfig
from cellbridge.errors import CouplingError, ModelError
from cellbridge.networks.perceptron import BridgePerceptron
from cellbridge.runtime import derive_seed

Vectors = NDArray[np.float32]
"""(n, d), one row per cell, well or profile."""

_FEWEST = 20


@dataclass(frozen=True)
class Scaling:
    """Both sides centred, and divided by one number: the plan stays the same at reg / scale².

    Parameters
    ----------
    source_mean, target_mean : (d,), float64.
    scale : root mean square deviation of both sides, over all columns.
    varies : (2, d), bool: which columns of the source and of the target are not constant. A constant one stays what it is.
    """

    source_mean: Tensor
    target_mean: Tensor
    scale: float
    varies: Tensor

    def apply(self, rows: Tensor, mean: Tensor) -> Tensor:
        """Return centred and scaled rows, float32."""
        return ((rows.double() - mean) / self.scale).float()


@dataclass(frozen=True)
class VectorBridge:
    """A fitted bridge between vectors.

    Parameters
    ----------
    model : in scaled coordinates.
    solver : which one made it: `mixture` or `neural`.
    reg : squared volatility in squared units of the data, as the user gave it.
    steps : of a simulation; an exact one takes a single step, whatever this says.
    facts : what the fit found, plain JSON values.
    """

    model: Endpoint
    solver: Literal["mixture", "neural"]
    scaling: Scaling
    reg: float
    steps: int
    facts: dict[str, Any]

    @property
    def dimension(self) -> int:
        return len(self.scaling.source_mean)

    @property
    def is_exact(self) -> bool:
        """Whether one step draws the plan: a mixture, or a network of which nothing was kept."""
        return self.solver == "mixture" or self.facts["network_kept_at_step"] == 0

    def translate(
        self,
        rows: Vectors,
        *,
        seed: int,
        direction: Direction = "forward",
        method: Literal["sde", "ode"] = "sde",
        batch_size: int = 8192,
    ) -> Vectors:
        """Carry rows to the other side, each a function of itself, its number and the seed, whatever the batch size.

        Parameters
        ----------
        direction : `backward` needs the neural solver.
        method : `ode` follows the probability flow, which has the right marginal and no conditional spread (neural only).

        Raises
        ------
        CouplingError : the rows are no finite (n, d) array of the bridge's d.
        ModelError : the solver does not know this direction or method.
        """
        if self.solver == "mixture" and (direction != "forward" or method != "sde"):
            raise ModelError(
                f"a bridge of solver mixture was asked to go {direction} by {method}; it goes forward by sde. Fit one with solver neural."
            )
        whole = _require_vectors(rows, "input")
        if whole.shape[1] != self.dimension:
            raise CouplingError(f"input: {whole.shape[1]} columns, but the bridge was fitted to {self.dimension}.")
        ends = (self.scaling.source_mean, self.scaling.target_mean)
        start, end = ends if direction == "forward" else ends[::-1]
        free = self.scaling.varies[1 if direction == "forward" else 0]
        scaled, parts = self.scaling.apply(whole, start), []
        for first in range(0, len(scaled), batch_size):
            part = scaled[first : first + batch_size]
            moved = self._move(part, first, seed=seed, direction=direction, method=method)
            parts.append(torch.where(free, moved.double() * self.scaling.scale, 0.0) + end)
        result: Vectors = torch.cat(parts).float().numpy() if parts else np.empty(rows.shape, np.float32)
        return result

    def _move(
        self, part: Tensor, first: int, *, seed: int, direction: Direction, method: Literal["sde", "ode"]
    ) -> Tensor:
        if method == "ode":
            return flow(self.model, part, direction=direction, grid=times(self.steps))
        seeds = torch.tensor([derive_seed("translate", seed, first + row) for row in range(len(part))])
        grid = times(1 if self.is_exact else self.steps)
        chances = row_chances(seeds, (part.shape[1],))
        return simulate(self.model, part, reg=self.facts["scaled_reg"], chances=chances, direction=direction, grid=grid)


def fit_vectors(
    source: Vectors, target: Vectors, *, reg: float, seed: int = 0, config: BridgeConfig | None = None
) -> VectorBridge:
    """Fit the Schrödinger bridge between two unpaired samples.

    min E |x - y|² / 2 + reg KL(plan | source ⊗ target), its plan seen as a process of volatility sqrt(reg).

    Parameters
    ----------
    source, target : (n, d) and (m, d), finite; 20 rows or more on either side.
    reg : > 0, in squared units of the data.
    seed : of every random choice.
    config : solver, budget in processor seconds, sizes.

    Raises
    ------
    CouplingError : arrays that are no such samples, or a `reg` that is not positive.
    NumericalError : a side that does not vary, or a loss that is not finite.
    """
    settings = config or BridgeConfig()
    if not (np.isfinite(reg) and reg > 0):
        raise CouplingError(f"reg = {reg}: expected a positive, finite number, in squared units of the data.")
    sides = [_require_vectors(rows, name) for rows, name in ((source, "source"), (target, "target"))]
    if sides[0].shape[1] != sides[1].shape[1]:
        raise CouplingError(
            f"source has {sides[0].shape[1]} columns and target {sides[1].shape[1]}; both need the same columns in the same order."
        )
    budget = Budget(settings.budget_seconds)
    scaling = _scaling(*sides)
    scaled = scaling.apply(sides[0], scaling.source_mean), scaling.apply(sides[1], scaling.target_mean)
    fit = Solvers(*scaled, reg=reg / scaling.scale**2, seed=seed, config=settings)
    model, solver, facts = {"mixture": fit.mixture, "neural": fit.neural, "auto": fit.auto}[settings.solver](budget)
    facts |= {"scaled_reg": fit.reg, "n_source": len(source), "n_target": len(target)}
    facts |= {"processor_seconds": round(settings.budget_seconds - budget.left, 2)}
    return VectorBridge(model, solver, scaling, reg, settings.steps, facts)


def empty_model(
    solver: str, dimension: int, *, reg: float, components: tuple[int, ...], width: int
) -> MixtureBridge | EndpointDrift:
    """Return a model of given sizes whose weights are still to be loaded.

    Parameters
    ----------
    components : of the forward potential, and for `neural` of the backward one.
    """
    eye = torch.eye(dimension, dtype=torch.float64)
    bridges = [
        MixtureBridge(torch.zeros(k), torch.zeros(k, dimension), eye.expand(k, -1, -1), reg=reg) for k in components
    ]
    if solver == "mixture":
        return bridges[0]
    zero = torch.zeros(dimension, dtype=torch.float64)
    gaussian = GaussianPreconditioning(gaussian_bridge(zero, eye, zero, eye, reg=reg))
    return EndpointDrift(
        BridgePerceptron(dimension, width=width), PotentialPreconditioning(bridges[0], bridges[1], gaussian)
    )


def _scaling(source: Tensor, target: Tensor) -> Scaling:
    means = [rows.double().mean(0) for rows in (source, target)]
    squares = sum(
        float((rows.double() - mean).square().mean()) for rows, mean in zip((source, target), means, strict=True)
    )
    varies = torch.stack([(rows != rows[:1]).any(0) for rows in (source, target)])
    return Scaling(means[0], means[1], (squares / 2) ** 0.5 or 1.0, varies)


def _require_vectors(rows: Vectors, name: str) -> Tensor:
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind not in "fiu":
        raise CouplingError(f"{name}: found {rows.dtype} of shape {rows.shape}, expected numbers of shape (n, d).")
    if name != "input" and len(rows) < _FEWEST:
        raise CouplingError(f"{name}: {len(rows)} rows are too few to fit a bridge to; give {_FEWEST} or more.")
    bad = ~np.isfinite(rows)
    if bad.any():
        row, column = (int(index[0]) for index in np.nonzero(bad))
        raise CouplingError(
            f"{name}: {int(bad.sum())} values are not finite, the first in row {row}, column {column}. Remove or impute them."
        )
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float64))
