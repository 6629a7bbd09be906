"""Couplings of sources and targets: exact, entropic and unbalanced, with marginals that are checked.

A solver that has not converged is an error here. The published practice, a uniform plan in its place, is random pairing.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cellbridge.errors import CouplingError, NumericalError
from cellbridge.transport.cost import Cost, full_precision, spread, wide
from cellbridge.transport.entropic import Problem, plan_of
from cellbridge.transport.sinkhorn import Method, Solution, approach, finish

Plan = Float[Tensor, "source target"]
Weights = Float[Tensor, " row"]

SHARP = 0.1
"""Relative entropy under which a plan is replaced by the exact coupling, from which it hardly differs."""

TOLERANCE = 1e-6
"""Largest deviation of both marginals together, in L1."""

_ROUNDING = 0.05
"""Largest error of an exponent, cost / reg, by the rounding of the cost."""


_OPTIMAL = 1
"""POT's code for a network simplex that has reached the optimum."""


@dataclass(frozen=True)
class Coupling:
    """Which share of each source goes to which target.

    Parameters
    ----------
    plan : (source, target), float64, sums to one; None for a permutation.
    permutation : (source,), int64: the one target of each source; None for a plan.
    relative_entropy : (H(plan) - H(a)) / H(b) by the plan's marginals a and b: 0 where each source has one target, 1 for independent pairs.
    retained_mass : what an unbalanced problem transports; 1 where both marginals are met.
    marginal_error : |plan 1 - a|_1 + |planᵀ1 - b|_1; unbalanced, from the marginals that the optimum asks for.
    cost : mean cost of a pair.
    iterations : sweeps and Newton steps; 0 for exact solvers.
    method : the solver that was used.
    """

    plan: Plan | None
    permutation: Int[Tensor, " source"] | None
    relative_entropy: float
    retained_mass: float
    marginal_error: float
    cost: float
    iterations: int
    method: Literal["assignment", "emd", "log", "stabilised"]


def couple(
    cost: Cost,
    *,
    reg: float | None = None,
    reg_unit: Literal["cost", "spread"] = "cost",
    method: Literal["auto", "exact", "log", "stabilised"] = "auto",
    tau: float = 1.0,
    a: Weights | None = None,
    b: Weights | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = 5000,
) -> Coupling:
    """Couple sources with targets at least cost, or at least cost plus reg times the plan's information.

    Parameters
    ----------
    cost : (source, target); ½|x - y|² makes reg the σ² of the reference process.
    reg : regularisation; needed by every method but `exact`.
    reg_unit : `spread` takes reg as a share of the costs' standard deviation.
    method : `auto` is `exact` where the plan's relative entropy would be under 0.1, else `stabilised`.
    tau : rho / (rho + reg); below one, sources and targets that lie far off keep some of their mass.
    a, b : weights of sources and targets, each summing to one; uniform by default.
    max_iterations : sweeps and Newton steps before giving up.

    Raises
    ------
    CouplingError : costs, weights or settings that cannot be coupled, or costs too coarsely rounded for reg.
    NumericalError : the solver has not converged.
    """
    _check_cost(cost)
    a, b = _weights(a, len(cost), cost, "a"), _weights(b, cost.shape[1], cost, "b")
    if not 0 < tau <= 1:
        raise CouplingError(f"tau = {tau:g}, expected a number in (0, 1]; 1 meets both marginals.")
    if method == "exact":
        if tau < 1:
            raise CouplingError(
                f'tau = {tau:g} with method "exact": only an entropic coupling can be unbalanced. Use "stabilised".'
            )
        return exact(cost, a=a, b=b)
    reg = _check_reg(reg, cost, reg_unit)
    with full_precision(cost.device):
        problem = Problem(cost.detach().to(a.dtype) / reg, a.log(), b.log(), tau)
        sweeps: Method = "log" if method == "log" else "stabilised"
        potentials, used = approach(problem, method=sweeps, tolerance=tolerance, most=max_iterations)
        if method == "auto" and tau == 1.0 and relative_entropy(plan_of(problem, potentials)) < SHARP:
            return exact(cost, a=a, b=b, reduced=problem.cost - potentials.f[:, None] - potentials.g)
        most = max_iterations - used
        solution = finish(problem, potentials, method=sweeps, tolerance=tolerance, most=most, already=used)
    return _judged(solution, cost, reg=reg, tau=tau, method=sweeps, tolerance=tolerance)


def exact(cost: Cost, *, a: Weights, b: Weights, reduced: Cost | None = None) -> Coupling:
    """Return a coupling of least cost: an assignment for as many sources as targets of equal weight, else a network simplex.

    Both solvers work on the CPU; the coupling returns to the cost's device.

    Parameters
    ----------
    reduced : the costs in any unit, less some number for each source and each target, which changes no assignment. By an entropic plan's
        potentials, near the dual optimum, the assignment takes a tenth of the time; by default the minima of rows and columns, half of it.

    Raises
    ------
    NumericalError : the network simplex has stopped before the optimum, or its marginals are wrong.
    """
    from scipy.optimize import linear_sum_assignment

    n, m = cost.shape
    matrix = np.ascontiguousarray(cost.detach().cpu().double().numpy())
    if n == m and bool((a == a[0]).all()) and bool((b == b[0]).all()):
        rows, columns = linear_sum_assignment(
            _less_minima(matrix) if reduced is None else reduced.cpu().double().numpy()
        )
        permutation = torch.as_tensor(columns, dtype=torch.int64, device=cost.device)
        return Coupling(None, permutation, 0.0, 1.0, 0.0, float(matrix[rows, columns].mean()), 0, "assignment")
    plan = torch.as_tensor(_network_simplex(matrix, a, b), dtype=a.dtype, device=cost.device)
    error = float((plan.sum(1) - a).abs().sum() + (plan.sum(0) - b).abs().sum())
    if not error <= TOLERANCE:
        raise NumericalError(f"exact coupling of {n} and {m}: marginals are off by {error:.1e}. Check the weights.")
    total = float((plan * cost).sum())
    return Coupling(plan, None, relative_entropy(plan), 1.0, error, total, 0, "emd")


def relative_entropy(plan: Plan) -> float:
    """Return (H(P) - H(P 1)) / H(Pᵀ1) of a plan of any mass: what is left open of the target once the source is known, in [0, 1]."""
    whole = plan / plan.sum()
    targets = _entropy(whole.sum(0))
    left = _entropy(whole) - _entropy(whole.sum(1))
    return min(1.0, max(0.0, left / targets)) if targets > 0 else 0.0


def _less_minima(matrix: np.ndarray) -> np.ndarray:
    less = matrix - matrix.min(axis=1, keepdims=True)
    return less - less.min(axis=0)


def _entropy(mass: Tensor) -> float:
    return -float(torch.xlogy(mass, mass).sum())


def _network_simplex(matrix: np.ndarray, a: Tensor, b: Tensor) -> np.ndarray:
    import ot

    # POT's default of 100,000 stops some per cent above the optimum, with a warning, from a few thousand rows on.
    most = max(1_000_000, 100 * matrix.size)
    weights = [side.cpu().double().numpy() for side in (a, b)]
    plan, log = ot.emd(*weights, matrix, numItermax=most, log=True)
    if log["result_code"] != _OPTIMAL:
        raise NumericalError(
            f"exact coupling of {matrix.shape[0]} and {matrix.shape[1]}: {log['warning']} Couple fewer rows at a time."
        )
    return plan


def _judged(solution: Solution, cost: Cost, *, reg: float, tau: float, method: Method, tolerance: float) -> Coupling:
    """Return the solution as a coupling that sums to one, if it has converged."""
    mass = float(solution.plan.sum())
    if not (solution.residual <= tolerance and mass > 0):
        raise NumericalError(
            f"entropic coupling ({method}): marginals are off by {solution.residual:.1e} after {solution.iterations} iterations at "
            f'reg = {reg:.3g}, tau = {tau:g}; expected at most {tolerance:.0e}. Use a larger reg, more iterations, or method "exact".'
        )
    plan = solution.plan / mass
    mean = float((plan * cost).sum())
    retained = 1.0 if tau == 1.0 else mass
    return Coupling(plan, None, relative_entropy(plan), retained, solution.residual, mean, solution.iterations, method)


def _check_cost(cost: Cost) -> None:
    if cost.ndim != 2 or cost.numel() == 0 or not cost.is_floating_point():
        raise CouplingError(
            f"a cost of shape {tuple(cost.shape)} and type {cost.dtype}: expected (source, target) with a row or more on each side."
        )
    if not bool(torch.isfinite(cost).all()):
        bad = int((~torch.isfinite(cost)).sum())
        raise CouplingError(
            f"{bad} of {cost.numel()} costs are not finite. Leave out the images or features that are not."
        )


def _check_reg(reg: float | None, cost: Cost, unit: str) -> float:
    if reg is None or not (math.isfinite(reg) and reg > 0):
        raise CouplingError(f'reg = {reg}, expected a positive number; without regularisation use method "exact".')
    scale = spread(cost) if unit == "spread" else 1.0
    if scale == 0:
        raise CouplingError(
            'all costs are equal, so that reg has no spread to be a share of. Use reg_unit "cost", or check the features.'
        )
    reg *= scale
    largest = float(cost.abs().max())
    rounding = torch.finfo(cost.dtype).eps * largest / reg
    if rounding > _ROUNDING:
        raise CouplingError(
            f"costs up to {largest:.3g} in {cost.dtype} are rounded by {rounding:.2g} of reg = {reg:.3g}. "
            'Compute them with dtype=torch.float64, use a larger reg, or method "exact".'
        )
    return reg


def _weights(given: Weights | None, count: int, cost: Cost, name: str) -> Weights:
    if given is None:
        return torch.full((count,), 1 / count, dtype=wide(cost.device), device=cost.device)
    weights = given.detach().to(cost.device, wide(cost.device))
    total = float(weights.sum())
    if weights.shape != (count,) or not bool((weights > 0).all()) or not abs(total - 1) <= TOLERANCE:
        raise CouplingError(
            f"weights {name} of shape {tuple(weights.shape)} sum to {total:.6g}, expected {count} positive numbers that sum to one. "
            "Leave out rows without weight."
        )
    return weights / total
