"""The best linear guess of a bridge's endpoint, for images: whole covariances on their leading modes, one variance a channel on the rest.

With pairs of known second moments, E[X_1 | X_s] is guessed linearly without any training, and what that leaves is known too. A network
that adds nothing to it is a bridge already: for Gaussian images of independent pairs, their Markovian projection, which is nearly optimal.

Instead of pairs that are given, the guess can be that of the optimal plan between Gaussians of these moments, at every volatility: the
closed-form Schrödinger bridge, from which pairs can be drawn, too.

References
----------
Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, proposition 2.
Bunne et al. 2023, "The Schrödinger bridge between Gaussian measures has a closed form", arXiv:2202.05722, theorem 3.
"""

from dataclasses import dataclass, fields
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cellbridge.bridge.path import along
from cellbridge.transport.cost import full_precision
from cellbridge.typing import Images, Labels, Times

_SMALL = 1e-12
_JITTER = 1e-6
"""Of the mean variance of the modes, added to it."""


@dataclass(frozen=True)
class Moments:
    """Second moments of the pairs of each condition.

    Parameters
    ----------
    means : (condition, 2, channel, y, x), the mean image of source and target.
    modes : (mode, channel, y, x), orthonormal images, shared by all; there may be none.
    covariances : (condition, 2, mode, mode), of source and target.
    cross : (condition, mode, mode), Cov(X_0, X_1); 0 for independent pairs.
    rest : (condition, 2, channel), variance of a pixel beside the modes.
    rest_cross : (condition, channel), covariance of a source's and its target's pixel beside the modes.
    """

    means: Tensor
    modes: Tensor
    covariances: Tensor
    cross: Tensor
    rest: Tensor
    rest_cross: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Where:
    """Where on which bridge each image of a batch is.

    Parameters
    ----------
    elapsed : (batch,), share of the way that lies behind: s forward, 1 - s backward.
    forward : (batch,), the direction.
    conditions : (batch,), int64: which condition is at the other end from the control.
    reg : (batch,), squared volatility of the reference process.
    """

    elapsed: Times
    forward: Bool[Tensor, " batch"]
    conditions: Labels
    reg: Float[Tensor, " batch"]


@dataclass(frozen=True)
class Ends:
    """Means (batch, channel, y, x) and pixel variances (batch, channel, 1, 1) of start and end."""

    start: Tensor
    end: Tensor
    start_variance: Tensor
    end_variance: Tensor


@final
class LinearGuess(nn.Module):
    """The guess as a function of where an image is on which bridge."""

    means: Tensor
    modes: Tensor
    covariances: Tensor
    cross: Tensor
    rest: Tensor
    rest_cross: Tensor
    powers: Tensor
    """(channel, mode, mode): how much of a mode, and of two together, a channel's mean pixel sees."""
    variances: Tensor
    """(condition, 2, channel), of a pixel, modes and rest together."""
    shared: Tensor
    """(condition, channel), Cov(X_0, X_1) of a pixel."""
    freedom: Tensor
    """(channel,), the share of a channel's dimensions that is beside the modes."""
    _left: Tensor
    _values: Tensor
    _right: Tensor

    def __init__(self, moments: Moments, *, optimal: bool = False):
        super().__init__()
        self.optimal = optimal
        for name, values in moments.tensors().items():
            self.register_buffer(name, values.float())
        by_channel = self.modes.flatten(2)
        powers = torch.einsum("icp,jcp->cij", by_channel, by_channel) / max(by_channel.shape[2], 1)
        self.register_buffer("powers", powers, persistent=False)
        freedom = (1 - powers.diagonal(dim1=1, dim2=2).sum(1)).clamp_min(_SMALL)
        self.register_buffer("freedom", freedom, persistent=False)
        seen = torch.einsum("cij,kdij->kdc", powers, self.covariances)
        self.register_buffer("variances", seen + self.rest, persistent=False)
        shared = torch.einsum("cij,kij->kc", powers, self.cross) + self.rest_cross
        self.register_buffer("shared", shared, persistent=False)
        left, values, right = _optimal_parts(self.covariances)
        self.register_buffer("_left", left, persistent=False)
        self.register_buffer("_values", values, persistent=False)
        self.register_buffer("_right", right, persistent=False)

    def ends(self, where: Where) -> Ends:
        """Return means and variances of where the bridges start and end."""
        first, last = (~where.forward).long(), where.forward.long()
        c = where.conditions
        variances = (self.variances[c, side][..., None, None] for side in (first, last))
        return Ends(self.means[c, first], self.means[c, last], *variances)

    def mean(self, where: Where) -> Images:
        """Return the mean of X_s."""
        ends = self.ends(where)
        return torch.lerp(ends.start, ends.end, along(where.elapsed, ends.start).expand_as(ends.start))

    def variance(self, where: Where) -> Tensor:
        """Return the variance of a pixel of X_s by channel: (batch, channel, 1, 1)."""
        ends = self.ends(where)
        # Of the optimal plan, that of equal correlations: it scales what the network sees, and nothing depends on it being exact.
        shared = (
            (ends.start_variance * ends.end_variance).sqrt()
            if self.optimal
            else self.shared[where.conditions][..., None, None]
        )
        e, reg = along(where.elapsed, ends.start), along(where.reg, ends.start)
        variance = (1 - e) ** 2 * ends.start_variance + e**2 * ends.end_variance + e * (1 - e) * (2 * shared + reg)
        return variance.clamp_min(_SMALL)

    def forward(self, x: Images, where: Where) -> tuple[Images, Tensor]:
        """Return the guess of the end, and by channel the standard deviation of what it leaves open: (batch, channel, 1, 1)."""
        with full_precision(x.device):
            off = x.float() - self.mean(where)
            end, (gain, left) = self.ends(where).end, self._of_rest(where)
            if not len(self.modes):
                return end + gain * off, left.sqrt()
            basis = self.modes.flatten(1)
            z = off.flatten(1) @ basis.T
            matrix, left_of_modes, _ = self._of_modes(where)
            rest = off - (z @ basis).view_as(off)
            known = (matrix @ z[..., None])[..., 0] @ basis
            return end + gain * rest + known.view_as(off), (left + left_of_modes).sqrt()

    def _of_rest(self, where: Where) -> tuple[Tensor, Tensor]:
        """Return gain and variance left beside the modes, (batch, channel, 1, 1)."""
        c = where.conditions
        a = (self.rest[c, (~where.forward).long()] / self.freedom)[..., None, None]
        b = (self.rest[c, where.forward.long()] / self.freedom)[..., None, None]
        e, reg = along(where.elapsed, a), along(where.reg, a)
        if self.optimal:
            cross = ((4 * a * b + reg**2).sqrt() - reg) / 2
        else:
            cross = (self.rest_cross[c] / self.freedom)[..., None, None]
        variance = ((1 - e) ** 2 * a + e**2 * b + e * (1 - e) * (2 * cross + reg)).clamp_min(_SMALL)
        # Var(end) - Cov² / variance, without the cancellation near the end.
        left = (1 - e) * ((1 - e) * (a * b - cross**2).clamp_min(0) + e * reg * b) / variance
        return (e * b + (1 - e) * cross) / variance, left * self.freedom[:, None, None]

    def _of_modes(self, where: Where) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as `_of_each`, computed once where all images are at one time on one bridge, as in translations."""
        keys = torch.stack([where.elapsed, where.forward.float(), where.conditions.float(), where.reg])
        n = len(where.elapsed)
        if n < 2 or not bool((keys == keys[:, :1]).all()):
            return self._of_each(where)
        one = Where(where.elapsed[:1], where.forward[:1], where.conditions[:1], where.reg[:1])
        matrix, seen, left = (part.expand(n, *part.shape[1:]) for part in self._of_each(one))
        return matrix, seen, left

    def _of_each(self, where: Where) -> tuple[Tensor, Tensor, Tensor]:
        """Return the matrix that guesses the end's modes, the variance left by channel (batch, channel, 1, 1), and the whole covariance left."""
        c = where.conditions
        a, b = (self.covariances[c, side.long()] for side in (~where.forward, where.forward))
        cross = self._cross(where)
        e, reg = where.elapsed[:, None, None], where.reg[:, None, None]
        eye = torch.eye(len(self.modes), dtype=a.dtype, device=a.device)
        jitter = _JITTER * (a.diagonal(dim1=1, dim2=2).mean(1) + b.diagonal(dim1=1, dim2=2).mean(1))[:, None, None]
        variance = (1 - e) ** 2 * a + e**2 * b + e * (1 - e) * (cross + cross.mT) + (e * (1 - e) * reg + jitter) * eye
        with_end = e * b + (1 - e) * cross.mT
        matrix = torch.cholesky_solve(with_end.mT, torch.linalg.cholesky(variance)).mT
        left = b - matrix @ with_end.mT
        seen = torch.einsum("cij,nij->nc", self.powers, left).clamp_min(0)
        return matrix, seen[..., None, None], left

    def _cross(self, where: Where) -> Tensor:
        """Return Cov(start, end) of the modes: (batch, mode, mode)."""
        c, reg = where.conditions, where.reg[:, None]
        cross = self.cross[c]
        if self.optimal:
            roots = (self._values[c] + reg**2).sqrt()
            eye = torch.eye(len(self.modes), dtype=cross.dtype, device=cross.device)
            cross = ((self._left[c] * roots[:, None]) @ self._right[c] - reg[..., None] * eye) / 2
        return torch.where(where.forward[:, None, None], cross, cross.mT)

    def draw(self, x: Images, where: Where, *, noise: Images) -> Images:
        """Draw the end that a Gaussian of these moments has, given X_s = x.

        Parameters
        ----------
        noise : standard normal, like x.
        """
        with full_precision(x.device):
            guess, _ = self(x, where)
            _, left = self._of_rest(where)
            scale = (left / self.freedom[:, None, None]).sqrt()
            if not len(self.modes):
                return guess + scale * noise
            basis = self.modes.flatten(1)
            z = noise.flatten(1) @ basis.T
            rest = noise - (z @ basis).view_as(noise)
            open_modes = self._of_modes(where)[2]
            values, vectors = torch.linalg.eigh((open_modes + open_modes.mT) / 2)
            drawn = (vectors @ (values.clamp_min(0).sqrt() * z)[..., None])[..., 0] @ basis
            return guess + scale * rest + drawn.view_as(x)


def _optimal_parts(covariances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return L, v and R of Cov(X_0, X_1) = (L diag(v + reg²)^½ R - reg I) / 2, the optimal plan between Gaussians, by condition.

    C = (A^½ (4 A^½ B A^½ + reg² I)^½ A^-½ - reg I) / 2.
    """
    a, b = covariances[:, 0].double(), covariances[:, 1].double()
    values, basis = torch.linalg.eigh(a)
    floor = _JITTER * values.mean(1, keepdim=True).clamp_min(_SMALL) if values.shape[1] else values
    values = torch.maximum(values, floor)
    root, inverse = ((basis * values[:, None] ** power) @ basis.mT for power in (0.5, -0.5))
    inner, vectors = torch.linalg.eigh(4 * root @ b @ root)
    return (root @ vectors).float(), inner.clamp_min(0).float(), (vectors.mT @ inverse).float()
