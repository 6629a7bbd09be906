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
        shares, means, _ = self._components(source, torch.zeros(len(source)))
        mean = torch.einsum("nk,nkd->nd", shares, means)
        apart = (means - mean[:, None]) * shares.sqrt()[..., None]
        return Conditionals(mean, torch.einsum("nk,kde->nde", shares, self.covariances) + apart.mT @ apart)

    def mean(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        _require_forward(direction)
        shares, means, _ = self._components(x, s)
        return torch.einsum("nk,nkd->nd", shares, means).to(x)

    def draw(self, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        """Return an exact draw of the endpoint, so that a simulation of a single step reaches the target's distribution."""
        _require_forward(direction)
        shares, means, spreads = self._components(x, s)
        rows = torch.arange(len(x))
        chosen = (shares.cumsum(-1) < chance.uniform.to(shares)[:, None]).sum(-1).clamp_max(shares.shape[-1] - 1)
        along_axes = spreads[rows, chosen] * chance.end.to(shares)
        turned = (self.bases[chosen] @ along_axes[..., None])[..., 0]
        return (means[rows, chosen] + turned).to(x)

    def _components(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return shares (n, k), means (n, k, d) and standard deviations along the bases (n, k, d) of X_1 given X_s = x.

        Along each axis of P_k, with ahead = reg (1 - s) and total = ahead + s p: variance p ahead / total, mean (ahead r + p x) / total,
        log weight (2 r x - s r² + x² (p (1 + s) / reg - s)) / (2 total) - log(total) / 2, up to what all components share.
        """
        s = s.to(self.values)[:, None, None]
        x, p, ahead = x.to(self.values), self.values, self.reg * (1 - s)
        rotated = torch.einsum("nd,kde->nke", x, self.bases)
        offsets = torch.einsum("kd,kde->ke", self.offsets, self.bases)
        total = ahead + s * p
        means = torch.einsum("nke,kde->nkd", (ahead * offsets + p * rotated) / total, self.bases)
        quadratic = 2 * offsets * rotated - s * offsets.square() + rotated.square() * (p * (1 + s) / self.reg - s)
        logits = self.log_weights + 0.5 * (quadratic / total - total.log()).sum(-1)
        return logits.softmax(-1), means, (p * ahead / total).sqrt()


def _require_forward(direction: Direction) -> None:
    if direction != "forward":
        raise ModelError(
            "a mixture potential knows its bridge from source to target only. Fit one the other way round."
        )
