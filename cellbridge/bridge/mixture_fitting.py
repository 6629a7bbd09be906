"""Fit the potential of a mixture bridge to two unpaired samples, with as many components as held-out rows bear out.

The objective has local minima: components that divide the data wrongly stay so. The fit therefore begins with too many, and again and again merges
the two whose merging costs least, with a few closed-form steps after each merging; held-out rows say where to stop. That path is walked on some
of the rows, and the best few of its stations are finished on all of them. Neither side has to be clustered for this.

All happens in coordinates in which the Gaussian bridge of the whole has P = I and reg = 1, whatever the scales of the data.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.mixture_descent import Potential, State, balanced, carrying, descend, moments, state_of
from cellbridge.bridge.mixture_merging import MOST_PAIRS, merged
from cellbridge.bridge.moments import second_moments

COMPONENTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24)
_MOST_STEPS, _STEPS_A_STATION, _FINALISTS = 60, 4, 3
_COARSE = 1e-4
"""What a step on the path has to gain for another to follow."""
_MOST_HELD_OUT = 2000
_TOLERATED = 0.25
"""Standard errors of the held-out objective by which fewer components may be worse."""
_WALKED = 4000
"""Rows on which the path is walked, or 100 a column where that is more."""
_ROWS_A_COMPONENT = 20
"""At least, or two a column where that is more."""


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

    def bridge(self, found: Potential) -> MixtureBridge:
        """Return the bridge of a potential in the coordinates of the data."""
        turn, covariances = self.turn, found.covariances
        start = turn.T @ self.source_mean / self.reg
        whole = turn @ covariances @ turn.T
        offsets = self.target_mean + found.offsets @ turn.T - (covariances @ start) @ turn.T
        weights = found.log_weights - found.offsets @ start + 0.5 * (covariances @ start) @ start
        return MixtureBridge(weights, offsets, (whole + whole.mT) / 2, reg=self.reg)


@dataclass(frozen=True)
class _Judged:
    """A station of the path: a potential, and what it says of the held-out rows."""

    potential: Potential
    held_out: State

    @property
    def components(self) -> int:
        return len(self.potential.log_weights)

    @property
    def objective(self) -> float:
        return self.held_out.objective


def fit_mixture(
    source: Tensor,
    target: Tensor,
    *,
    reg: float,
    seed: int,
    budget: Budget,
    components: tuple[int, ...] = COMPONENTS,
) -> MixtureFit:
    """Fit with each number of components, and keep the smallest that none beats by more than a quarter of a standard error on held-out rows.

    Parameters
    ----------
    source, target : (n, d) and (m, d), unpaired.
    reg : squared volatility, in squared units of the data.
    seed : of the rows held out, and of the first centres.
    budget : at least one number of components is fitted, whatever it says.
    components : numbers to try, rising; those for which the rows are too few are left out, the largest also for want of time.

    Raises
    ------
    NumericalError : a covariance that is singular.
    """
    rng = np.random.default_rng(seed)
    (train_x, held_x), (train_y, held_y) = (_held_out(rows, rng) for rows in (source, target))
    coordinates = _coordinates(train_x, train_y, reg=reg)
    x, held_x = coordinates.source(train_x), coordinates.source(held_x)
    y, held_y = coordinates.target(train_y), coordinates.target(held_y)
    d = x.shape[1]
    usable = [k for k in components if k * max(_ROWS_A_COMPONENT, 2 * d) <= min(len(x), len(y))] or [components[0]]
    few = max(_WALKED, 100 * d)
    path = _walked(x[:few], y[:few], usable, (held_x, held_y), rng=rng, budget=budget.part(0.6))
    scores = {station.components: station.objective for station in path}
    finalists = sorted(path, key=lambda station: station.objective)[:_FINALISTS]
    finished = [station for station in path if station.components == 1]
    for place, station in enumerate(finalists):
        if station.components > 1:
            share = budget.part(0.8 / (len(finalists) - place))
            found = descend(state_of(station.potential, x, y), x, y, budget=share, most=_MOST_STEPS).potential
            finished.append(_judged(found, held_x, held_y))
    scores |= {station.components: station.objective for station in finished}
    best = _smallest_that_stands(finished)
    everything = coordinates.source(source), coordinates.target(target)
    final = descend(state_of(best.potential, *everything), *everything, budget=budget.part(0.9), most=5)
    return MixtureFit(coordinates.bridge(final.potential), best.components, dict(sorted(scores.items())))


def _walked(
    x: Tensor,
    y: Tensor,
    numbers: list[int],
    held_out: tuple[Tensor, Tensor],
    *,
    rng: np.random.Generator,
    budget: Budget,
) -> list[_Judged]:
    """Merge from the largest number that there is time for down to the smallest; return a station for each of them."""
    stations = [_judged(_single(x.shape[1]), *held_out)] if numbers[0] == 1 else []
    several = [count for count in numbers if count > 1]
    if not several or (stations and not budget.left):
        return stations
    state = _begun(x, y, several, rng=rng, budget=budget)
    while True:
        count = len(state.potential.log_weights)
        station = count in several
        state = descend(state, x, y, budget=budget, most=_STEPS_A_STATION if station else 1, gain=_COARSE)
        if station:
            stations.append(_judged(state.potential, *held_out))
        if count == several[0] or not budget.left:
            return stations
        state = merged(state, x, y)


def _begun(x: Tensor, y: Tensor, numbers: list[int], *, rng: np.random.Generator, budget: Budget) -> State:
    """Return the first state of the path, of the largest number that there is time for (the smallest, if for none)."""
    state = _first(x, y, numbers[-1], rng=rng)
    began = time.process_time()
    carrying(state.of_source.softmax(1), state.of_target.softmax(1), x, y)
    balanced(state_of(state.potential, x, y), None, sweeps=15)
    each = (time.process_time() - began) / numbers[-1]
    # A step costs in proportion to the components, a merger about as much as a step, a station some six of them.
    mergers = {k: sum(2 * n + MOST_PAIRS for n in range(k + 1)) for k in numbers}
    stations = {k: sum(6 * n for n in numbers if n <= k) for k in numbers}
    affordable = [k for k in numbers if each * (mergers[k] + stations[k]) <= budget.left]
    if affordable != numbers:
        state = _first(x, y, max(affordable, default=numbers[0]), rng=rng)
    return descend(state, x, y, budget=budget, most=2 * _STEPS_A_STATION, gain=_COARSE)


def fit_reversed(found: MixtureFit, source: Tensor, target: Tensor, *, reg: float, budget: Budget) -> MixtureFit:
    """Fit the bridge from target to source, with the components that the bridge from source to target divides the rows into.

    Parameters
    ----------
    found : the bridge from source to target.
    """
    shares = found.bridge.shares_of_target(target).float(), found.bridge.shares_of_source(source).float()
    coordinates = _coordinates(target, source, reg=reg)
    rows = coordinates.source(target), coordinates.target(source)
    state = balanced(state_of(carrying(*shares, *rows), *rows), None, sweeps=30)
    final = descend(state, *rows, budget=budget, most=_MOST_STEPS)
    return MixtureFit(coordinates.bridge(final.potential), found.components, {})


def _held_out(rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(rng.permutation(len(rows)))
    held = min(_MOST_HELD_OUT, max(1, len(rows) // 10))
    return rows[order[held:]], rows[order[:held]]


def _coordinates(source: Tensor, target: Tensor, *, reg: float) -> _Coordinates:
    gaussian = gaussian_bridge(*second_moments(source), *second_moments(target), reg=reg)
    values, basis = torch.linalg.eigh(gaussian.conditional(gaussian.source_mean[None])[1])
    turn = basis * values.clamp_min(1e-9 * float(values[-1])).sqrt()
    return _Coordinates(gaussian.source_mean, gaussian.target_mean, turn, reg)


def _judged(potential: Potential, x: Tensor, y: Tensor) -> _Judged:
    return _Judged(potential, state_of(potential, x, y))


def _smallest_that_stands(stations: list[_Judged]) -> _Judged:
    """Return the one of the fewest components that the best does not beat by more than `_TOLERATED`."""
    best = min(stations, key=lambda station: station.objective)
    standing = [station for station in stations if not _beats(best.held_out, station.held_out)]
    return min(standing, key=lambda station: station.components)


def _beats(new: State, old: State) -> bool:
    """Say whether the held-out objective fell by more than `_TOLERATED`, row by row."""
    gains = [
        getattr(old, side).logsumexp(1).double() - getattr(new, side).logsumexp(1).double()
        for side in ("of_source", "of_target")
    ]
    error = sum(float(gain.var()) / len(gain) for gain in gains) ** 0.5
    return float(gains[0].mean() - gains[1].mean()) > _TOLERATED * error


def _single(dimension: int) -> Potential:
    """Return the Gaussian bridge of the whole."""
    eye = torch.eye(dimension, dtype=torch.float64)
    return Potential(eye.new_zeros(1), eye.new_zeros(1, dimension), eye[None])


def _first(x: Tensor, y: Tensor, count: int, *, rng: np.random.Generator) -> State:
    """Start from clusters of the target, and of the source as the Gaussian bridge carries it into them."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=1, max_iter=20, random_state=int(rng.integers(2**31))).fit(y.numpy())
    shares = torch.nn.functional.one_hot(torch.from_numpy(found.labels_).long(), count).float()
    weights, means, covariances = moments(shares, y)
    clusters = Potential(
        weights.log(), torch.linalg.solve(covariances, means[..., None])[..., 0], torch.linalg.inv(covariances)
    )
    carried = x + torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
    potential = carrying(clusters.of_target(carried).softmax(1), shares, x, y)
    return balanced(state_of(potential, x, y), weights.log(), sweeps=30)
