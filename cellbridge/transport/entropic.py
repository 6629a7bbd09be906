"""Entropic optimal transport in units of reg: the problem, its dual potentials, and the plan that they stand for.

    min_P <P, C> + reg KL(P | a bᵀ) + rho KL(P 1 | a) + rho KL(Pᵀ1 | b),    P_ij = a_i b_j exp(f_i + g_j - C_ij / reg)

with tau = rho / (rho + reg); tau = 1 is the balanced problem, where both marginals are met.

References
----------
Cuturi 2013, "Sinkhorn distances", arXiv:1306.0895; Chizat et al. 2018, "Scaling algorithms for unbalanced optimal transport problems",
arXiv:1607.05816.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A coupling problem in units of reg, in float64.

    Parameters
    ----------
    cost : (source, target), C / reg.
    log_a, log_b : logarithms of the marginals, each of which sums to one.
    tau : rho / (rho + reg) in (0, 1].
    """

    cost: Tensor
    log_a: Tensor
    log_b: Tensor
    tau: float = 1.0


@dataclass(frozen=True)
class Potentials:
    """f of the sources and g of the targets, in units of reg."""

    f: Tensor
    g: Tensor


def plan_of(problem: Problem, potentials: Potentials) -> Tensor:
    """Return a_i b_j exp(f_i + g_j - C_ij / reg)."""
    row, column = potentials.f + problem.log_a, potentials.g + problem.log_b
    return (row[:, None] + column - problem.cost).exp_()


def residual(problem: Problem, potentials: Potentials) -> float:
    """Return how far the plan's marginals are from those that its potentials ask for, in L1."""
    plan = plan_of(problem, potentials)
    rows, columns = asked_marginals(problem, potentials)
    return float((plan.sum(1) - rows).abs().sum() + (plan.sum(0) - columns).abs().sum())


def asked_marginals(problem: Problem, potentials: Potentials) -> tuple[Tensor, Tensor]:
    """Return the marginals that the potentials ask for: a exp(-f reg / rho) and b exp(-g reg / rho); balanced, a and b."""
    slack = (1 - problem.tau) / problem.tau
    return (problem.log_a - slack * potentials.f).exp(), (problem.log_b - slack * potentials.g).exp()


def columns_met(problem: Problem, f: Tensor) -> Tensor:
    """Return the g with which a plan has b as its second marginal, computed in the log domain."""
    return -torch.logsumexp((f + problem.log_a)[:, None] - problem.cost, dim=0)


def falling_factors(cost: Tensor, *, by: float) -> list[float]:
    """Return factors on reg, from where costs (in units of reg) are of the order of 10 of it down to 1, each lower `by` that much."""
    spread = float(cost.max() - cost.min())
    count = max(0, math.ceil(math.log(max(spread, 1.0) / 10, by)))
    return [by**power for power in range(count, -1, -1)]
