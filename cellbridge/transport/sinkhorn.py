"""The potentials of an entropic plan, by sweeps in the log domain or over a kernel that absorbs them.

The usual kernel exp(-C / reg) underflows on costs of images. A log-domain sweep never does; a kernel that contains the potentials
underflows only far from the solution, and then a log-domain sweep brings it back.

References
----------
Schmitzer 2019, "Stabilized sparse scaling algorithms for entropy regularized transport problems", arXiv:1610.06519, alg. 2 (absorption)
and sec. 3.2 (scaling of reg); Séjourné et al. 2022, "Faster unbalanced optimal transport: translation invariant Sinkhorn",
arXiv:2201.00730 (shift).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cellbridge.transport.entropic import (
    Potentials,
    Problem,
    asked_marginals,
    columns_met,
    falling_factors,
    plan_of,
    residual,
)
from cellbridge.transport.newton import FEW_STEPS, newton, newton_along_reg

Method = Literal["log", "stabilised"]

_LARGEST_LOG_SCALE = 30.0
"""Scalings of a kernel are absorbed beyond exp(±30), so that float32 keeps its room of exp(±87)."""

_LOOK_EVERY = 10
"""Sweeps between looks at the marginals."""

_SCALING = 4.0
"""By how much reg falls from one stage to the next while it comes down to its value."""

_SWEEPS_A_STAGE = 10

_FLOAT32_REACHES = 4e-7
"""Residual that sweeps over a float32 kernel get below."""

_SWEEPS_BEFORE_NEWTON = 100
"""Sweeps at the final reg; where they have not converged by then, they would take thousands more."""


@dataclass(frozen=True)
class Solution:
    """A plan (source, target) of mass at most about one, its potentials, and how far it is from the optimum.

    Parameters
    ----------
    residual : |P 1 - a exp(-f reg / rho)|_1 + |Pᵀ1 - b exp(-g reg / rho)|_1, zero at the optimum alone; balanced, the deviation of both marginals.
    iterations : sweeps over both sides.
    """

    plan: Tensor
    potentials: Potentials
    residual: float
    iterations: int


def approach(problem: Problem, *, method: Method, tolerance: float, most: int) -> tuple[Potentials, int]:
    """Bring reg down to its value in stages of a few sweeps each, the last of them at that value; return how many were used."""
    potentials, used = Potentials(torch.zeros_like(problem.log_a), torch.zeros_like(problem.log_b)), 0
    for factor in falling_factors(problem.cost, by=_SCALING):
        stage = replace(problem, cost=problem.cost / factor, tau=_tau_at(problem.tau, factor))
        potentials = Potentials(potentials.f / factor, potentials.g / factor)
        sweeps = min(_SWEEPS_A_STAGE, most - used)
        potentials, sweeps = _SWEEPS[method](stage, potentials, tolerance=tolerance / 2, most=sweeps)
        potentials, used = Potentials(potentials.f * factor, potentials.g * factor), used + sweeps
    return potentials, used


def finish(
    problem: Problem, potentials: Potentials, *, method: Method, tolerance: float, most: int, already: int = 0
) -> Solution:
    """Sweep until the marginals fit or the sweeps are used up; a balanced problem then goes on by Newton's steps.

    Parameters
    ----------
    most : sweeps and steps from here on.
    already : sweeps that led here, for the count.
    """
    sweeps = min(most, _SWEEPS_BEFORE_NEWTON) if problem.tau == 1.0 else most
    # Halved, since rounding stands between the kernel's marginals and those of the plan. The last sweep is free of it.
    potentials, used = _SWEEPS[method](problem, potentials, tolerance=tolerance / 2, most=sweeps)
    potentials = log_sweep(problem, potentials)
    off = residual(problem, potentials)
    for attempt, allowed in ((newton, FEW_STEPS), (newton_along_reg, most)) if problem.tau == 1.0 else ():
        if not off > tolerance or used >= most:
            break
        potentials, steps = attempt(problem, potentials, tolerance=tolerance, most=min(allowed, most - used))
        off, used = residual(problem, potentials), used + steps
    return Solution(plan_of(problem, potentials), potentials, off, already + used)


def log_sweep(problem: Problem, potentials: Potentials) -> Potentials:
    """Return the potentials after one sweep over both sides, in the log domain: exact whatever their size."""
    f = -problem.tau * torch.logsumexp(potentials.g + problem.log_b - problem.cost, dim=1)
    g = problem.tau * columns_met(problem, f)
    return _shifted(problem, Potentials(f, g))


def _tau_at(tau: float, factor: float) -> float:
    """Return tau at a reg that is larger by a factor, rho staying as it is."""
    return 1.0 if tau == 1.0 else 1 / (1 + factor * (1 - tau) / tau)


def _shifted(problem: Problem, potentials: Potentials) -> Potentials:
    """Shift mass between the potentials to where the unbalanced dual is largest; sweeps alone would take 1 / (1 - tau) of them."""
    if problem.tau == 1.0:
        return potentials
    rows, columns = asked_marginals(problem, potentials)
    shift = problem.tau / (1 - problem.tau) / 2 * (rows.sum() / columns.sum()).log()
    return Potentials(potentials.f + shift, potentials.g - shift)


def _log_sweeps(problem: Problem, potentials: Potentials, *, tolerance: float, most: int) -> tuple[Potentials, int]:
    used = 0
    while used < most:
        for _ in range(min(_LOOK_EVERY, most - used)):
            potentials, used = log_sweep(problem, potentials), used + 1
        if residual(problem, potentials) < tolerance:
            break
    return potentials, used


def _kernel_sweeps(problem: Problem, potentials: Potentials, *, tolerance: float, most: int) -> tuple[Potentials, int]:
    used = 0
    while used < most:
        potentials, used = log_sweep(problem, potentials), used + 1
        kernel = _Kernel(problem, potentials, dtype=torch.float32 if tolerance >= _FLOAT32_REACHES else torch.float64)
        while used < most:
            sweeps = min(_LOOK_EVERY, most - used)
            found, used = kernel.sweep(sweeps), used + sweeps
            if found is None:
                break
            potentials, error, extreme = found
            if error < tolerance:
                return potentials, used
            if extreme:
                break
    return potentials, used


_SWEEPS = {"log": _log_sweeps, "stabilised": _kernel_sweeps}


class _Kernel:
    """The plan of given potentials as a matrix, and scalings of its rows and columns, kept as logarithms."""

    def __init__(self, problem: Problem, potentials: Potentials, *, dtype: torch.dtype):
        self._problem, self._from = problem, potentials
        self._matrix = plan_of(problem, potentials).to(dtype)
        self._log_u, self._log_v = torch.zeros_like(potentials.f), torch.zeros_like(potentials.g)

    def sweep(self, times: int) -> tuple[Potentials, float, bool] | None:
        """Sweep over both sides; return the potentials, their residual, and whether they should be absorbed; None where the scalings gave out."""
        problem, start, tau = self._problem, self._from, self._problem.tau
        log_u, log_v = self._log_u, self._log_v
        for _ in range(times):
            log_u = -tau * (self._times(log_v) - problem.log_a) - (1 - tau) * start.f
            log_v = -tau * (self._times(log_u, transposed=True) - problem.log_b) - (1 - tau) * start.g
        found = _shifted(problem, Potentials(start.f + log_u, start.g + log_v))
        log_u, log_v = found.f - start.f, found.g - start.g
        rows, columns = asked_marginals(problem, found)
        off_rows = (self._times(log_v) + log_u).exp() - rows
        off_columns = (self._times(log_u, transposed=True) + log_v).exp() - columns
        error = float(off_rows.abs().sum() + off_columns.abs().sum())
        if not math.isfinite(error):
            return None
        self._log_u, self._log_v = log_u, log_v
        return found, error, float(torch.cat([log_u, log_v]).abs().max()) > _LARGEST_LOG_SCALE

    def _times(self, log_scale: Tensor, *, transposed: bool = False) -> Tensor:
        scale = log_scale.exp().to(self._matrix.dtype)
        product = scale @ self._matrix if transposed else self._matrix @ scale
        return product.to(log_scale.dtype).log()
