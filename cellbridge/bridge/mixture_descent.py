"""Closed-form steps that fit the mixture potential of a bridge to two unpaired samples.

The plan that is nearest in KL divergence minimises E_source[log c(x)] - E_target[log v(y)], c(x) = ∫ exp(x·y / reg) v(y) dy. With a mixture v it
is stationary where each component carries its share of the source, seen through the plan, to its share of the target, seen through v: mean and
covariance of both shares being known, that component is the closed-form bridge between two Gaussians. These steps are repeated, each damped
until the objective falls. As in EM the number of steps is small: tens, where stochastic gradients take tens of thousands.

Coordinates are such that the Gaussian bridge of the whole has P = I and reg = 1.

Reference: Korotin et al. 2024, "Light Schrödinger bridge", arXiv:2310.01174, eq. 12 (the objective), proposition 3.4 (its estimate from samples).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cellbridge.bridge.budget import Budget

_SMALLEST_STEP, _SMALLEST_GAIN = 0.02, 1e-6
_FLOOR = 1e-8
_WIDEST = 40.0
"""Of the logarithm of a weight: its exponential stays a float32."""


@dataclass(frozen=True)
class Potential:
    """log v_k(y) = a_k + log N(y; r_k, P_k), by its natural parameters P_k⁻¹ r_k and P_k⁻¹; float64."""

    log_weights: Tensor
    slopes: Tensor
    precisions: Tensor

    @property
    def covariances(self) -> Tensor:
        covariances = torch.linalg.inv(self.precisions)
        return (covariances + covariances.mT) / 2

    @property
    def offsets(self) -> Tensor:
        return torch.linalg.solve(self.precisions, self.slopes[..., None])[..., 0]

    def towards(self, other: "Potential", step: float) -> "Potential":
        """Return the potential a step of the way to another, in natural parameters."""
        slopes, precisions = (
            torch.lerp(self.slopes, other.slopes, step),
            torch.lerp(self.precisions, other.precisions, step),
        )
        return Potential(self.log_weights, slopes, precisions)

    def of_source(self, x: Tensor) -> Tensor:
        """Return log c_k(x) = a_k + x·r_k + xᵀ P_k x / 2, (n, k)."""
        factor = torch.linalg.cholesky(self.covariances).float()
        quadratic = torch.einsum("nd,kde->nke", x, factor).square().sum(-1)
        return self.log_weights.float() + x @ self.offsets.float().T + quadratic / 2

    def of_target(self, y: Tensor) -> Tensor:
        """Return log v_k(y) up to a constant, (n, k)."""
        factor = torch.linalg.cholesky(self.precisions)
        centred = torch.einsum("nd,kde->nke", y, factor.float()) - (factor.mT @ self.offsets[..., None])[..., 0].float()
        constant = self.log_weights + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return constant.float() - centred.square().sum(-1) / 2


@dataclass(frozen=True)
class State:
    """A potential and what it says of the rows: logarithms of components, (n, k), and the objective."""

    potential: Potential
    of_source: Tensor
    of_target: Tensor

    @property
    def objective(self) -> float:
        return float(self.of_source.logsumexp(1).double().mean() - self.of_target.logsumexp(1).double().mean())


def state_of(potential: Potential, x: Tensor, y: Tensor) -> State:
    """Return a potential and what it says of the rows (n, d) and (m, d)."""
    return State(potential, potential.of_source(x), potential.of_target(y))


def descend(state: State, x: Tensor, y: Tensor, *, budget: Budget, most: int, gain: float = _SMALLEST_GAIN) -> State:
    """Take damped closed-form steps until the objective no longer falls, or falls by less than `gain`."""
    step = 1.0
    for _ in range(most):
        if not budget.left:
            break
        aim = carrying(state.of_source.softmax(1), state.of_target.softmax(1), x, y)
        while True:
            moved = balanced(state_of(state.potential.towards(aim, step), x, y), None, sweeps=15)
            if moved.objective < state.objective or step < _SMALLEST_STEP:
                break
            step /= 2
        if not moved.objective < state.objective - gain:
            break
        state, step = moved, min(1.0, 1.5 * step)
    return state


def carrying(source_shares: Tensor, target_shares: Tensor, x: Tensor, y: Tensor) -> Potential:
    """Return the components that carry each share of the source to the same share of the target, as between Gaussians."""
    _, start, spread = moments(source_shares, x)
    weights, end, covariances = moments(target_shares, y)
    conditional = conditional_covariance(spread, covariances)
    precisions = torch.linalg.inv(conditional)
    precisions = (precisions + precisions.mT) / 2
    return Potential(weights.clamp_min(_FLOOR).log(), (precisions @ end[..., None])[..., 0] - start, precisions)


def moments(shares: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights (k,), means (k, d) and covariances (k, d, d), of components with few rows drawn to the pooled covariance."""
    n, d = rows.shape
    counts = shares.sum(0).clamp_min(_FLOOR)
    means = (shares.T @ rows) / counts[:, None]
    squares = torch.stack([(rows * share[:, None]).T @ rows for share in shares.T]) / counts[:, None, None]
    covariances = (squares - means[:, :, None] * means[:, None]).double()
    counts = counts.double()
    pooled = (counts[:, None, None] * covariances).sum(0) / n
    trust = (counts / (counts + d / 2))[:, None, None]
    covariances = trust * covariances + (1 - trust) * pooled
    ridge = 1e-6 * pooled.diagonal().mean() * torch.eye(d, dtype=torch.float64)
    return counts / n, means.double(), (covariances + covariances.mT) / 2 + ridge


def conditional_covariance(source: Tensor, target: Tensor) -> Tensor:
    """Return P with P + P A P = B, (k, d, d): Cov(X_1 | X_0) of the bridges from N(., A) to N(., B) at reg = 1."""
    values, basis = torch.linalg.eigh(source)
    values = values.clamp_min(1e-9 * values[..., -1:])
    root, inverse = ((basis * power[..., None, :]) @ basis.mT for power in (values.sqrt(), values.rsqrt()))
    inner, turn = torch.linalg.eigh(root @ target @ root)
    gain = 2 * inner.clamp_min(0) / ((4 * inner.clamp_min(0) + 1).sqrt() + 1)
    found = inverse @ ((turn * gain[..., None, :]) @ turn.mT) @ inverse
    smallest = 1e-9 * found.diagonal(dim1=-2, dim2=-1).amax(-1)
    return (found + found.mT) / 2 + smallest[:, None, None] * torch.eye(found.shape[-1], dtype=torch.float64)


def balanced(state: State, log_weights: Tensor | None, *, sweeps: int) -> State:
    """Move the weights until each component takes as much of the source as it gives of the target (or as `log_weights` say)."""
    source, target = ((rows - rows.amax(1, keepdim=True)).exp() for rows in (state.of_source, state.of_target))
    shift = torch.zeros(source.shape[1])
    for _ in range(sweeps):
        taken, given = (_log_shares(rows, shift) for rows in (source, target))
        shift = shift + (given if log_weights is None else log_weights.float()) - taken
        shift = (shift - shift.mean()).clamp(-_WIDEST, _WIDEST)
    potential = replace(state.potential, log_weights=state.potential.log_weights + shift.double())
    return State(potential, state.of_source + shift, state.of_target + shift)


def _log_shares(rows: Tensor, shift: Tensor) -> Tensor:
    """Return the logarithm of each component's share of rows of weights (n, k) that are multiplied by exp(shift)."""
    weights = shift.exp()
    return ((rows.T @ (rows @ weights).reciprocal()) * weights / len(rows)).clamp_min(_FLOOR).log()
