"""Fit the potential of a mixture bridge to two unpaired samples, in closed-form steps.

The plan that is nearest in KL divergence minimises E_source[log c(x)] - E_target[log v(y)], c(x) = ∫ exp(x·y / reg) v(y) dy. With a mixture v it
is stationary where each component carries its share of the source, seen through the plan, to its share of the target, seen through v: mean and
covariance of both shares being known, that component is the closed-form bridge between two Gaussians. These steps are repeated, each damped
until the objective falls. As in EM the number of steps is small: tens, where stochastic gradients take tens of thousands.

All happens in coordinates in which the Gaussian bridge of the whole has P = I and reg = 1, whatever the scales of the data.

References
----------
Korotin et al. 2024, "Light Schrödinger bridge", arXiv:2310.01174, eq. 12 (the objective), proposition 3.4 (its estimate from samples).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.moments import second_moments

COMPONENTS = (1, 4, 8, 16)
_MOST_STEPS, _SMALLEST_STEP, _SMALLEST_GAIN = 60, 0.02, 1e-6
_MOST_HELD_OUT = 2000
_CLUSTERED = 4000
"""Rows among which the first centres are sought."""
_FLOOR = 1e-8


@dataclass(frozen=True)
class MixtureFit:
    """A fitted bridge, how many components it has, and the held-out objective (lower is better) of each number that was tried."""

    bridge: MixtureBridge
    components: int
    held_out: dict[int, float]


@dataclass(frozen=True)
class _Coordinates:
    """x' = Tᵀ (x - m_0) / reg and y' = T⁻¹ (y - m_1), with T Tᵀ = Cov(X_1 | X_0) of the Gaussian bridge, so that x'·y' is x·y / reg."""

    source_mean: Tensor
    target_mean: Tensor
    turn: Tensor
    reg: float

    def source(self, x: Tensor) -> Tensor:
        return ((x.double() - self.source_mean) @ self.turn / self.reg).float()

    def target(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.turn, (y.double() - self.target_mean).T).T.float()

    def bridge(self, found: "_Potential") -> MixtureBridge:
        """Return the bridge of a potential in the coordinates of the data."""
        turn, covariances = self.turn, found.covariances
        start = turn.T @ self.source_mean / self.reg
        whole = turn @ covariances @ turn.T
        offsets = self.target_mean + found.offsets @ turn.T - (covariances @ start) @ turn.T
        weights = found.log_weights - found.offsets @ start + 0.5 * (covariances @ start) @ start
        return MixtureBridge(weights, offsets, (whole + whole.mT) / 2, reg=self.reg)


@dataclass(frozen=True)
class _Potential:
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

    def towards(self, other: "_Potential", step: float) -> "_Potential":
        """Return the potential a step of the way to another, in natural parameters."""
        slopes, precisions = (
            torch.lerp(self.slopes, other.slopes, step),
            torch.lerp(self.precisions, other.precisions, step),
        )
        return _Potential(self.log_weights, slopes, precisions)

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
class _State:
    """A potential and what it says of the rows: logarithms of components, (n, k), and the objective."""

    potential: _Potential
    of_source: Tensor
    of_target: Tensor

    @property
    def objective(self) -> float:
        return float(self.of_source.logsumexp(1).double().mean() - self.of_target.logsumexp(1).double().mean())


def fit_mixture(
    source: Tensor,
    target: Tensor,
    *,
    reg: float,
    seed: int,
    budget: Budget,
    components: tuple[int, ...] = COMPONENTS,
) -> MixtureFit:
    """Fit with each number of components, and keep the smallest that no larger one beats by more than a standard error on held-out rows.

    Parameters
    ----------
    source, target : (n, d) and (m, d), unpaired.
    reg : squared volatility, in squared units of the data.
    seed : of the rows held out, and of the first centres.
    budget : at least one number of components is fitted, whatever it says.
    components : numbers to try, rising; those for which the rows are too few are left out.

    Raises
    ------
    NumericalError : a covariance that is singular.
    """
    rng = np.random.default_rng(seed)
    (train_x, held_x), (train_y, held_y) = (_held_out(rows, rng) for rows in (source, target))
    coordinates = _coordinates(train_x, train_y, reg=reg)
    x, y, held_x, held_y = (
        to(rows)
        for to, rows in zip(
            (coordinates.source, coordinates.target) * 2, (train_x, train_y, held_x, held_y), strict=True
        )
    )
    usable = [k for k in components if k == components[0] or k * max(20, 2 * x.shape[1]) <= min(len(x), len(y))]
    best: tuple[int, _Potential, _State] | None = None
    scores: dict[int, float] = {}
    failures = 0
    for place, count in enumerate(usable):
        if best is not None and (budget.left < 0.05 * budget.seconds or failures == 2):
            break
        found = _fitted(x, y, count, rng=rng, budget=budget.part(0.9 * count / sum(usable[place:])))
        judged = _state(found, held_x, held_y)
        scores[count] = judged.objective
        if best is None or _beats(judged, best[2]):
            best, failures = (count, found, judged), 0
        else:
            failures += 1
    assert best is not None
    count, found, _ = best
    everything = coordinates.source(source), coordinates.target(target)
    final = _descend(_state(found, *everything), *everything, budget=budget.part(0.9), most=5)
    return MixtureFit(coordinates.bridge(final.potential), count, scores)


def _held_out(rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(rng.permutation(len(rows)))
    held = min(_MOST_HELD_OUT, max(1, len(rows) // 10))
    return rows[order[held:]], rows[order[:held]]


def _coordinates(source: Tensor, target: Tensor, *, reg: float) -> _Coordinates:
    gaussian = gaussian_bridge(*second_moments(source), *second_moments(target), reg=reg)
    values, basis = torch.linalg.eigh(gaussian.conditional(gaussian.source_mean[None])[1])
    turn = basis * values.clamp_min(1e-9 * float(values[-1])).sqrt()
    return _Coordinates(gaussian.source_mean, gaussian.target_mean, turn, reg)


def _beats(new: _State, old: _State) -> bool:
    """Say whether the held-out objective fell by more than its standard error, row by row."""
    gains = [
        getattr(old, side).logsumexp(1).double() - getattr(new, side).logsumexp(1).double()
        for side in ("of_source", "of_target")
    ]
    error = sum(float(gain.var()) / len(gain) for gain in gains) ** 0.5
    return float(gains[0].mean() - gains[1].mean()) > error


def _fitted(x: Tensor, y: Tensor, count: int, *, rng: np.random.Generator, budget: Budget) -> _Potential:
    if count == 1:
        return _Potential(
            torch.zeros(1).double(), torch.zeros(1, x.shape[1]).double(), torch.eye(x.shape[1])[None].double()
        )
    return _descend(_first(x, y, count, rng=rng), x, y, budget=budget, most=_MOST_STEPS).potential


def _first(x: Tensor, y: Tensor, count: int, *, rng: np.random.Generator) -> _State:
    """Start from clusters of the target, and of the source as the Gaussian bridge carries it into them."""
    from sklearn.cluster import KMeans

    rows = rng.choice(len(y), min(_CLUSTERED, len(y)), replace=False)
    found = KMeans(count, n_init=1, max_iter=20, random_state=int(rng.integers(2**31))).fit(y[rows].numpy())
    labels = torch.from_numpy(found.predict(y.numpy())).long()
    shares = torch.nn.functional.one_hot(labels, count).float()
    weights, means, covariances = _moments(shares, y)
    clusters = _Potential(
        weights.log(), torch.linalg.solve(covariances, means[..., None])[..., 0], torch.linalg.inv(covariances)
    )
    carried = x + torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
    potential = _carrying(clusters.of_target(carried).softmax(1), shares, x, y)
    return _balanced(_state(potential, x, y), weights.log(), sweeps=30)


def _descend(state: _State, x: Tensor, y: Tensor, *, budget: Budget, most: int) -> _State:
    """Take damped closed-form steps until the objective no longer falls."""
    step = 1.0
    for _ in range(most):
        if not budget.left:
            break
        aim = _carrying(state.of_source.softmax(1), state.of_target.softmax(1), x, y)
        while True:
            moved = _balanced(_state(state.potential.towards(aim, step), x, y), None, sweeps=15)
            if moved.objective < state.objective or step < _SMALLEST_STEP:
                break
            step /= 2
        if not moved.objective < state.objective - _SMALLEST_GAIN:
            break
        state, step = moved, min(1.0, 1.5 * step)
    return state


def _carrying(source_shares: Tensor, target_shares: Tensor, x: Tensor, y: Tensor) -> _Potential:
    """Return the components that carry each share of the source to the same share of the target, as between Gaussians."""
    _, start, spread = _moments(source_shares, x)
    weights, end, covariances = _moments(target_shares, y)
    conditional = _conditional_covariance(spread, covariances)
    precisions = torch.linalg.inv(conditional)
    precisions = (precisions + precisions.mT) / 2
    return _Potential(weights.clamp_min(_FLOOR).log(), (precisions @ end[..., None])[..., 0] - start, precisions)


def _moments(shares: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _conditional_covariance(source: Tensor, target: Tensor) -> Tensor:
    """Return P with P + P A P = B, (k, d, d): Cov(X_1 | X_0) of the bridges from N(., A) to N(., B) at reg = 1."""
    values, basis = torch.linalg.eigh(source)
    values = values.clamp_min(1e-9 * values[..., -1:])
    root, inverse = ((basis * power[..., None, :]) @ basis.mT for power in (values.sqrt(), values.rsqrt()))
    inner, turn = torch.linalg.eigh(root @ target @ root)
    gain = 2 * inner.clamp_min(0) / ((4 * inner.clamp_min(0) + 1).sqrt() + 1)
    found = inverse @ ((turn * gain[..., None, :]) @ turn.mT) @ inverse
    smallest = 1e-9 * found.diagonal(dim1=-2, dim2=-1).amax(-1)
    return (found + found.mT) / 2 + smallest[:, None, None] * torch.eye(found.shape[-1], dtype=torch.float64)


def _state(potential: _Potential, x: Tensor, y: Tensor) -> _State:
    return _State(potential, potential.of_source(x), potential.of_target(y))


def _balanced(state: _State, log_weights: Tensor | None, *, sweeps: int) -> _State:
    """Move the weights until each component takes as much of the source as it gives of the target (or as `log_weights` say)."""
    shift = torch.zeros(state.of_source.shape[1])
    for _ in range(sweeps):
        taken = (state.of_source + shift).softmax(1).mean(0).clamp_min(_FLOOR).log()
        given = (state.of_target + shift).softmax(1).mean(0).clamp_min(_FLOOR).log()
        shift = shift + (given if log_weights is None else log_weights.float()) - taken
    shift = shift - shift.mean()
    potential = replace(state.potential, log_weights=state.potential.log_weights + shift.double())
    return _State(potential, state.of_source + shift, state.of_target + shift)
