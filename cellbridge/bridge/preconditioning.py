"""What a network that predicts an endpoint is given and asked: inputs and outputs of unit variance at all times, volatilities and scales.

Of a pair (X_0, X_1) with known second moments the best linear guess of an endpoint from X_s, and what it leaves unexplained, are known in
closed form. The network is asked for what is left, in its own standard deviations, so that zero is the linear guess and not nothing.

References
----------
Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", arXiv:2206.00364, sec. 5 (the principle).
De Bortoli et al. 2024, "Schrödinger bridge flow for unpaired data translation", arXiv:2409.09347, app. (for bridges).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from cellbridge.bridge.gaussian import Direction, GaussianBridge
from cellbridge.bridge.path import along


@dataclass(frozen=True)
class Chance:
    """The randomness of one step.

    Parameters
    ----------
    end, path : standard normal, like the state: for the endpoint that is drawn, and for the way towards it.
    uniform : (batch,), in [0, 1), for a choice.
    """

    end: Tensor
    path: Tensor
    uniform: Tensor


class Preconditioning(ABC, nn.Module):
    """Turns a point of the bridge into a network's input, and the network's output into an endpoint.

    `forward` predicts the target from X_s, `backward` the source. All times are bridge times s ∈ [0, 1], (batch,).
    """

    @abstractmethod
    def inputs(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        """Return x with unit variance."""

    @abstractmethod
    def endpoint(self, output: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        """Return guess + standard deviation × output."""

    @abstractmethod
    def target(self, endpoint: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        """Return what the output is to be for an endpoint: the inverse of `endpoint` in its first argument."""

    def draw(self, output: Tensor, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        """Return an endpoint drawn around that of an output, with the spread that the guess has."""
        return self.endpoint(output + chance.end, x, s, direction)


@final
class AxisPreconditioning(Preconditioning):
    """Second moments of each axis (channel, or coordinate) by itself, of whatever coupling the pairs come from.

    Parameters
    ----------
    means, variances : (2, axis), of source and target.
    cross : (axis,), Cov(X_0, X_1) of the coupling on each axis: 0 for independent pairs.
    reg : squared volatility of the reference process.
    """

    means: Tensor
    variances: Tensor
    cross: Tensor

    def __init__(self, means: Tensor, variances: Tensor, cross: Tensor, *, reg: float):
        super().__init__()
        self.reg = reg
        self.register_buffer("means", means.float())
        self.register_buffer("variances", variances.float())
        self.register_buffer("cross", cross.float())

    def inputs(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        mean, variance, _ = self._moments(x, s, direction)
        return (x - mean) * variance.rsqrt()

    def endpoint(self, output: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        guess, spread = self._guess(x, s, direction)
        return guess + spread * output

    def target(self, endpoint: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        guess, spread = self._guess(x, s, direction)
        return (endpoint - guess) / spread.clamp_min(1e-12)

    def _guess(self, x: Tensor, s: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
        end = 1 if direction == "forward" else 0
        mean, variance, with_end = self._moments(x, s, direction)
        gain = with_end / variance
        left = (self._axes(self.variances[end], x) - gain * with_end).clamp_min(0)
        return self._axes(self.means[end], x) + gain * (x - mean), left.sqrt()

    def _moments(self, x: Tensor, s: Tensor, direction: Direction) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and variance of X_s, and its covariance with the endpoint."""
        s = along(s, x)
        (mean_0, mean_1), (a, b) = ([self._axes(row, x) for row in rows] for rows in (self.means, self.variances))
        c = self._axes(self.cross, x)
        variance = (1 - s) ** 2 * a + s**2 * b + s * (1 - s) * (2 * c + self.reg)
        with_end = s * b + (1 - s) * c if direction == "forward" else (1 - s) * a + s * c
        return torch.lerp(mean_0, mean_1, s), variance.clamp_min(1e-12), with_end

    @staticmethod
    def _axes(values: Tensor, x: Tensor) -> Tensor:
        return values.view(1, -1, *(1,) * (x.ndim - 2))


@final
class GaussianPreconditioning(Preconditioning):
    """The whole closed form of a Gaussian bridge, for vectors: with a network that says zero, it is that bridge, exactly.

    In the eigenbasis of Cov(X_1 | X_0) = Q diag(p) Qᵀ, X_1 | X_s has the variances p reg (1-s) / (reg (1-s) + s p) and the means
    (p x + (1-s)(reg m_1 - p m_0)) / (reg (1-s) + s p), axis by axis. The network sees and is asked these axes; the two directions have
    a basis each.
    """

    mean: Tensor
    bases: Tensor
    left: Tensor
    ends: Tensor
    spreads: Tensor

    def __init__(self, bridge: GaussianBridge):
        super().__init__()
        self.reg = bridge.reg
        bases, left, ends, spreads = [], [], [], []
        for way in (bridge, bridge.reversed()):
            values, basis = torch.linalg.eigh(way.conditional(way.source_mean[None])[1])
            bases.append(basis)
            left.append(values.clamp_min(1e-9 * float(values[-1])))
            ends.append(torch.stack([way.source_mean @ basis, way.target_mean @ basis]))
            parts = (way.source_covariance, way.target_covariance, way.cross)
            spreads.append(torch.stack([(basis * (part @ basis)).sum(0) for part in parts]))
        for name, values in (("bases", bases), ("left", left), ("ends", ends), ("spreads", spreads)):
            self.register_buffer(name, torch.stack(values).float())

    def inputs(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        way, elapsed = self._way(s, direction)
        a, b, c = self.spreads[way]
        start, end = self.ends[way]
        variance = (1 - elapsed) ** 2 * a + elapsed**2 * b + elapsed * (1 - elapsed) * (2 * c + self.reg)
        return (x @ self.bases[way] - torch.lerp(start, end, elapsed)) * variance.rsqrt()

    def endpoint(self, output: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        return self._guess(x, s, direction) + self.scaled(output, s, direction)

    def target(self, endpoint: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        return self.unscaled(endpoint - self._guess(x, s, direction), s, direction)

    def scaled(self, output: Tensor, s: Tensor, direction: Direction) -> Tensor:
        """Return an output in units of the data, on the axes of the data."""
        way, elapsed = self._way(s, direction)
        return (output * self._spread(elapsed, way)) @ self.bases[way].T

    def unscaled(self, difference: Tensor, s: Tensor, direction: Direction) -> Tensor:
        """Return the inverse of `scaled`."""
        way, elapsed = self._way(s, direction)
        return (difference @ self.bases[way]) / self._spread(elapsed, way).clamp_min(1e-12)

    def _guess(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        way, elapsed = self._way(s, direction)
        p, (start, end) = self.left[way], self.ends[way]
        rotated = p * (x @ self.bases[way]) + (1 - elapsed) * (self.reg * end - p * start)
        return (rotated / (self.reg * (1 - elapsed) + elapsed * p)) @ self.bases[way].T

    def _spread(self, elapsed: Tensor, way: int) -> Tensor:
        p, ahead = self.left[way], self.reg * (1 - elapsed)
        return (p * ahead / (ahead + elapsed * p)).sqrt()

    @staticmethod
    def _way(s: Tensor, direction: Direction) -> tuple[int, Tensor]:
        return (0, s[:, None]) if direction == "forward" else (1, 1 - s[:, None])
