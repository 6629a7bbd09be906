"""Bridges whose potential is a Gaussian mixture: any source, and all conditionals in closed form.

The plan's conditional is π(y | x) ∝ exp(x·y / reg) v(y) with v(y) = Σ_k exp(a_k) N(y; r_k, P_k), which makes it a mixture of
N(r_k + P_k x / reg, P_k) with log weights a_k + x·r_k / reg + xᵀ P_k x / (2 reg²). The P_k are whole covariances: with one component it is
the bridge between Gaussians.

References
----------
Korotin et al. 2024, "Light Schrödinger bridge", arXiv:2310.01174, propositions 3.2 and 3.3 (there with diagonal P_k).
Gushchin et al. 2023, arXiv:2306.10161, proposition 3.3 (pairs with a known plan).
"""

from typing import final

import torch
from torch import Tensor, nn

from cellbridge.bridge.drift import Endpoint
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.preconditioning import Chance
from cellbridge.errors import ModelError
from cellbridge.metrics.plans import Conditionals


@final
class MixtureBridge(Endpoint, nn.Module):
    """The bridge of a mixture potential, from a source to a target.

    Parameters
    ----------
    log_weights : (component,), a_k.
    offsets : (component, d), r_k.
    covariances : (component, d, d), P_k.
    reg : squared volatility, in squared units of the data.

    All is kept and computed in float64; `.float()` halves the work where a network comes on top.
    """

    log_weights: Tensor
    offsets: Tensor
    values: Tensor
    bases: Tensor

    def __init__(self, log_weights: Tensor, offsets: Tensor, covariances: Tensor, *, reg: float):
        super().__init__()
        self.reg = reg
        values, bases = torch.linalg.eigh(covariances.double())
        self.register_buffer("log_weights", log_weights.double())
        self.register_buffer("offsets", offsets.double())
        self.register_buffer("values", values)
        self.register_buffer("bases", bases)

    @classmethod
    def of_potential(cls, log_weights: Tensor, means: Tensor, covariances: Tensor, *, reg: float) -> "MixtureBridge":
        """Return the bridge with π(y | x) ∝ exp(-|x - y|² / (2 reg)) Σ_k w_k N(y; μ_k, Σ_k).

        P_k = (I / reg + Σ_k⁻¹)⁻¹ and r_k = P_k Σ_k⁻¹ μ_k.
        """
        means, covariances = means.double(), covariances.double()
        eye = torch.eye(means.shape[-1], dtype=torch.float64)
        total = covariances + reg * eye
        conditional = reg * torch.linalg.solve(total, covariances)
        offsets = reg * torch.linalg.solve(total, means[..., None])[..., 0]
        # log of ∫ exp(-|y|² / (2 reg)) N(y; μ, Σ) dy, up to a constant.
        whitened = (means * torch.linalg.solve(total, means[..., None])[..., 0]).sum(-1)
        weights = log_weights.double() - (whitened + torch.linalg.slogdet(total)[1]) / 2
        return cls(weights, offsets, (conditional + conditional.mT) / 2, reg=reg)

    @property
    def covariances(self) -> Tensor:
        """P_k, (component, d, d)."""
        return (self.bases * self.values[:, None, :]) @ self.bases.mT

    def conditionals(self, source: Tensor) -> Conditionals:
        """Return mean and covariance of X_1 given each source, (source, d)."""
        shares, along_axes, _ = self._components(source, torch.zeros(len(source)))
        means = torch.einsum("nke,kde->nkd", along_axes, self.bases)
        mean = torch.einsum("nk,nkd->nd", shares, means)
        apart = (means - mean[:, None]) * shares.sqrt()[..., None]
        return Conditionals(mean, torch.einsum("nk,kde->nde", shares, self.covariances) + apart.mT @ apart)

    def shares_of_source(self, source: Tensor) -> Tensor:
        """Return how much each component carries of each source, (n, k), which sums to one."""
        return self._components(source, torch.zeros(len(source)))[0]

    def shares_of_target(self, target: Tensor) -> Tensor:
        """Return how much each component gives of each target, (n, k), which sums to one: exp(a_k) N(y; r_k, P_k) / v(y)."""
        rotated = self._rotated(target.to(self.values)) - torch.einsum("kd,kde->ke", self.offsets, self.bases)
        logits = self.log_weights - 0.5 * (rotated.square() / self.values + self.values.log()).sum(-1)
        return logits.softmax(-1)

    def mean(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        _require_forward(direction)
        shares, means, _ = self._components(x, s)
        weighted = (shares[..., None] * means).flatten(1)
        return (weighted @ self.bases.mT.reshape(-1, x.shape[1])).to(x)

    def draw(self, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        """Return an exact draw of the endpoint, so that a simulation of a single step reaches the target's distribution."""
        _require_forward(direction)
        shares, means, spreads = self._components(x, s)
        rows = torch.arange(len(x), device=x.device)
        chosen = (shares.cumsum(-1) < chance.uniform.to(shares)[:, None]).sum(-1).clamp_max(shares.shape[-1] - 1)
        along_axes = means[rows, chosen] + spreads.expand_as(means)[rows, chosen] * chance.end.to(shares)
        drawn = torch.empty_like(along_axes)
        for component in chosen.unique().tolist():
            of_it = chosen == component
            drawn[of_it] = along_axes[of_it] @ self.bases[component].T
        return drawn.to(x)

    def _components(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return shares (n, k), and means (n, k, d) and standard deviations (n or 1, k, d) of X_1 given X_s = x, both along the bases.

        Along each axis of P_k, with ahead = reg (1 - s) and total = ahead + s p: variance p ahead / total, mean (ahead r + p x) / total,
        log weight (2 r x - s r² + x² (p (1 + s) / reg - s)) / (2 total) - log(total) / 2, up to what all components share.
        """
        if len(s) > 1 and bool((s == s[0]).all()):
            s = s[:1]  # all else that depends on time alone is then computed once
        s = s.to(self.values)[:, None, None]
        p, ahead = self.values, self.reg * (1 - s)
        rotated = self._rotated(x.to(self.values))
        offsets = torch.einsum("kd,kde->ke", self.offsets, self.bases)
        total = ahead + s * p
        inverse = total.reciprocal()
        means = (ahead * offsets * inverse) + (p * inverse) * rotated
        curved = (0.5 * inverse * (p * (1 + s) / self.reg - s)) * rotated
        constant = self.log_weights - 0.5 * (s * offsets.square() * inverse + total.log()).sum(-1)
        logits = constant + (rotated * (curved + offsets * inverse)).sum(-1)
        return logits.softmax(-1), means, (p * ahead * inverse).sqrt()

    def _rotated(self, x: Tensor) -> Tensor:
        """Return rows along the axes of each component, (n, k, d)."""
        k, d = self.values.shape
        return (x @ self.bases.permute(1, 0, 2).reshape(d, k * d)).view(len(x), k, d)


def _require_forward(direction: Direction) -> None:
    if direction != "forward":
        raise ModelError(
            "a mixture potential knows its bridge from source to target only. Fit one the other way round."
        )
