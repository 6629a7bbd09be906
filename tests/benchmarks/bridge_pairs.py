"""Pairs of distributions whose Schrödinger bridge is known: Gaussian, mixture and curved, in any dimension."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.integrate import batch_chances, simulate, times
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.metrics.plans import Conditionals
from cellbridge.runtime import generator

_FOR_MOMENTS = 50_000


class Pair(ABC):
    """A source, a target, and the plan between them, float64."""

    reg: float
    mean: Tensor
    covariance: Tensor
    """Of the target."""

    @abstractmethod
    def source(self, count: int, chance: Generator) -> Tensor:
        """Draw (count, d)."""

    @abstractmethod
    def carried(self, source: Tensor, chance: Generator) -> Tensor:
        """Draw X_1 given each source, (n, d)."""

    @abstractmethod
    def conditionals(self, source: Tensor) -> Conditionals:
        """Return mean and covariance of X_1 given each source."""

    def target(self, count: int, chance: Generator) -> Tensor:
        """Draw the target, independent of any source that is known."""
        return self.carried(self.source(count, chance), chance)


class GaussianPair(Pair):
    """Two correlated Gaussians: eigenvalues exp(U(-1, 1)), random axes, means N(0, I)."""

    def __init__(self, dimension: int, *, reg: float, seed: int):
        chance = generator("cpu", "gaussian pair", dimension, seed)
        covariances = _covariance(dimension, chance), _covariance(dimension, chance)
        means = torch.randn(2, dimension, generator=chance, dtype=torch.float64)
        self.reg = reg
        self._bridge = gaussian_bridge(means[0], covariances[0], means[1], covariances[1], reg=reg)
        self.mean, self.covariance = means[1], covariances[1]

    def source(self, count: int, chance: Generator) -> Tensor:
        factor = torch.linalg.cholesky(self._bridge.source_covariance)
        return self._bridge.source_mean + _normal(count, len(factor), chance) @ factor.T

    def carried(self, source: Tensor, chance: Generator) -> Tensor:
        mean, covariance = self._bridge.conditional(source)
        return mean + _normal(*source.shape, chance) @ torch.linalg.cholesky(covariance).T

    def conditionals(self, source: Tensor) -> Conditionals:
        mean, covariance = self._bridge.conditional(source)
        return Conditionals(mean, covariance.expand(len(mean), -1, -1))


class PotentialPair(Pair):
    """A standard normal or a curved source, and the target that a mixture potential of five correlated components makes of it.

    The curved source is a thick arc of 240° in two of its dimensions, which are turned at random.
    """

    def __init__(self, dimension: int, *, reg: float, seed: int, curved: bool):
        chance = generator("cpu", "potential pair", dimension, seed)
        self.reg, self._curved = reg, curved
        centres = _normal(5, dimension, chance)
        centres = 2.5 * (dimension / 2) ** 0.25 * centres / centres.norm(dim=1, keepdim=True)
        covariances = torch.stack([0.3 * _covariance(dimension, chance) for _ in range(5)])
        weights = 0.3 * torch.randn(5, generator=chance)
        self._turn = torch.linalg.qr(_normal(dimension, dimension, chance))[0]
        self._bridge = MixtureBridge.of_potential(weights, centres, covariances, reg=reg)
        # A part at a time: covariances of all at once would take gigabytes at d = 64.
        parts = [self._moments(part) for part in self.source(_FOR_MOMENTS, chance).split(1000)]
        means = torch.cat([means for means, _ in parts])
        self.mean = means.mean(0)
        self.covariance = torch.stack([spread for _, spread in parts]).mean(0) + torch.cov(means.T)

    def _moments(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the conditional means, and the mean of the conditional covariances."""
        known = self._bridge.conditionals(source)
        return known.means, known.covariances.mean(0)

    def source(self, count: int, chance: Generator) -> Tensor:
        rows = _normal(count, len(self._turn), chance)
        if not self._curved:
            return rows
        angle = 4 / 3 * math.pi * torch.rand(count, generator=chance, dtype=torch.float64)
        rows = 0.35 * rows
        rows[:, 0] += 2 * angle.cos()
        rows[:, 1] += 2 * angle.sin()
        return rows @ self._turn

    def carried(self, source: Tensor, chance: Generator) -> Tensor:
        return simulate(self._bridge, source, reg=self.reg, chances=batch_chances(source, chance), grid=times(1))

    def conditionals(self, source: Tensor) -> Conditionals:
        return self._bridge.conditionals(source)


def make_pair(kind: str, dimension: int, *, reg: float, seed: int) -> Pair:
    """Return the pair of a kind: gaussian, mixture or curved."""
    if kind == "gaussian":
        return GaussianPair(dimension, reg=reg, seed=seed)
    return PotentialPair(dimension, reg=reg, seed=seed, curved=kind == "curved")


def _covariance(dimension: int, chance: Generator) -> Tensor:
    basis = torch.linalg.qr(_normal(dimension, dimension, chance))[0]
    values = torch.exp(2 * torch.rand(dimension, generator=chance, dtype=torch.float64) - 1)
    return (basis * values) @ basis.T


def _normal(count: int, dimension: int, chance: Generator) -> Tensor:
    return torch.randn(count, dimension, generator=chance, dtype=torch.float64)
