"""Newton's method for a balanced entropic plan, where sweeps would take thousands."""

from dataclasses import replace

import torch
from torch import Tensor

from cellbridge.transport.entropic import Potentials, Problem, columns_met, falling_factors, plan_of

FEW_STEPS = 20
"""Steps after which Newton's method may be taken to have begun too far off."""

_MOST_LAST_STEPS = 50

_CLOSE = 1e-3
"""Residual at which reg may fall on."""

_RIDGE = 1e-12
"""What is added to the Hessian, relative to its diagonal: parts of a plan that hardly exchange mass leave it singular in float64."""


def newton(problem: Problem, potentials: Potentials, *, tolerance: float, most: int) -> tuple[Potentials, int]:
    """Maximise the balanced semi-dual F(f) = <a, f> + <b, g(f)>, g by half a sweep, by Newton's steps that never lower it.

    grad F = a - P 1;  -grad² F = diag(P 1) - P diag(1 / b) Pᵀ, singular along constants. Sweeps converge at a rate that tends to one as reg
    falls, a few Newton steps of a Cholesky factor each converge at any reg.

    References
    ----------
    Brauer et al. 2017, "A Sinkhorn-Newton method for entropic optimal transport", arXiv:1710.06635; Cuturi & Peyré 2018, "Semidual
    regularized optimal transport", arXiv:1811.05527.
    """
    potentials = Potentials(potentials.f, columns_met(problem, potentials.f))
    value, steps = _semi_dual(problem, potentials), 0
    while steps < most:
        plan, steps = plan_of(problem, potentials), steps + 1
        rows = plan.sum(1)
        gradient = problem.log_a.exp() - rows
        if float(gradient.abs().sum()) < tolerance / 2:
            break
        direction = _newton_direction(plan, rows, gradient, problem.log_b)
        found = _ascend(problem, potentials, direction, value, slope=float(gradient @ direction))
        if found is None:
            break
        potentials, value = found
    return potentials, steps


def newton_along_reg(
    problem: Problem, potentials: Potentials, *, tolerance: float, most: int
) -> tuple[Potentials, int]:
    """Follow the solution from where reg is of the order of the costs down to its value, halving it: three to five Newton steps each.

    Where Newton's method does not converge from the potentials that sweeps have left, at a reg of some 1e-4 of the costs, this does.

    Parameters
    ----------
    potentials : what to return should no step be left; the path begins anew.
    """
    followed, used = Potentials(torch.zeros_like(potentials.f), potentials.g), 0
    for factor in falling_factors(problem.cost, by=2.0):
        start = Potentials(followed.f / factor, followed.g / factor)
        stage, last = replace(problem, cost=problem.cost / factor), factor == 1
        allowed = min(most - used, _MOST_LAST_STEPS if last else FEW_STEPS)
        followed, steps = newton(stage, start, tolerance=tolerance if last else _CLOSE, most=allowed)
        followed, used = Potentials(followed.f * factor, followed.g * factor), used + steps
        if used >= most:
            break
    else:
        return followed, used
    return potentials, used


def _newton_direction(plan: Tensor, rows: Tensor, gradient: Tensor, log_b: Tensor) -> Tensor:
    scaled = plan * (-log_b / 2).exp()
    hessian = torch.addmm(torch.outer(rows, rows), scaled, scaled.T, alpha=-1)  # the outer product lifts the constants
    diagonal = hessian.diagonal()
    diagonal += rows * (1 + _RIDGE)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        return gradient / rows.clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.cholesky_solve(gradient[:, None], factor)[:, 0]


def _ascend(
    problem: Problem, start: Potentials, direction: Tensor, value: float, *, slope: float
) -> tuple[Potentials, float] | None:
    """Return the first of halved steps that raises the semi-dual enough; None where rounding leaves nothing to gain."""
    step = 1.0
    for _ in range(40):
        f = start.f + step * direction
        found = Potentials(f, columns_met(problem, f))
        reached = _semi_dual(problem, found)
        if reached >= value + 1e-4 * step * slope - 1e-14 * abs(value):
            return found, reached
        step /= 2
    return None


def _semi_dual(problem: Problem, potentials: Potentials) -> float:
    return float(problem.log_a.exp() @ potentials.f + problem.log_b.exp() @ potentials.g)
