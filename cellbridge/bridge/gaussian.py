"""The Schrödinger bridge between two Gaussians in closed form.

Reference: Bunne et al. 2023, "The Schrödinger bridge between Gaussian measures has a closed form", arXiv:2202.05722, theorem 3; Janati et
al. 2020, "Entropic optimal transport between unbalanced Gaussian measures has a closed form", arXiv:2006.02572 (the plan).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cellbridge.errors import NumericalError

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class GaussianBridge:
    """The bridge N(source_mean, source_covariance) → N(target_mean, target_covariance) of dX = sqrt(reg) dW on s ∈ [0, 1].

    Its plan minimises E |x - y|² / 2 + reg KL(plan | source ⊗ target); the off-diagonal block of its precision is -I / reg.

    Parameters
    ----------
    source_mean, target_mean : (d,).
    source_covariance, target_covariance : (d, d), positive definite.
    reg : squared volatility, in squared units of the data.
    cross : (d, d), Cov(X_0, X_1).
    """

    source_mean: Tensor
    source_covariance: Tensor
    target_mean: Tensor
    target_covariance: Tensor
    reg: float
    cross: Tensor

    def reversed(self) -> "GaussianBridge":
        """Return the bridge that is run from the target to the source."""
        return GaussianBridge(
            self.target_mean,
            self.target_covariance,
            self.source_mean,
            self.source_covariance,
            self.reg,
            self.cross.T,
        )

    def conditional(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (batch, d) and covariance (d, d) of X_1 given X_0 = source, (batch, d)."""
        gain = torch.linalg.solve(self.source_covariance, self.cross).T
        mean = self.target_mean + (source - self.source_mean) @ gain.T
        return mean, _symmetric(self.target_covariance - gain @ self.cross)

    def marginal(self, s: float) -> tuple[Tensor, Tensor]:
        """Return mean (d,) and covariance (d, d) of X_s: (1-s)² A + s² B + s(1-s)(C + Cᵀ + reg I)."""
        mean = torch.lerp(self.source_mean, self.target_mean, s)
        between = self.cross + self.cross.T + self.reg * torch.eye(len(mean), dtype=mean.dtype)
        return mean, (1 - s) ** 2 * self.source_covariance + s**2 * self.target_covariance + s * (1 - s) * between

    def score(self, x: Tensor, s: float) -> Tensor:
        """Return the gradient of log p_s at x, (batch, d)."""
        mean, covariance = self.marginal(s)
        return -torch.linalg.solve(covariance, (x - mean).T).T

    def drift(self, x: Tensor, s: float) -> Tensor:
        """Return the forward drift u(x, s) = m_1 - m_0 + G_s Σ_s⁻¹ (x - m_s), G_s = s B + (1-s) Cᵀ - (1-s) A - s C - reg s I."""
        transposed = (
            s * self.target_covariance
            + (1 - s) * (self.cross.T - self.source_covariance)
            - s * (self.cross + self.reg * torch.eye(len(self.cross), dtype=self.cross.dtype))
        )
        return self.target_mean - self.source_mean - self.score(x, s) @ transposed.T

    def backward_drift(self, x: Tensor, s: float) -> Tensor:
        """Return the drift of the process run back in time, -u + reg score."""
        return self.reg * self.score(x, s) - self.drift(x, s)

    def probability_flow(self, x: Tensor, s: float) -> Tensor:
        """Return the velocity u - (reg / 2) score, whose ODE has the same marginals."""
        return self.drift(x, s) - self.reg / 2 * self.score(x, s)


def gaussian_bridge(
    source_mean: Tensor, source_covariance: Tensor, target_mean: Tensor, target_covariance: Tensor, *, reg: float
) -> GaussianBridge:
    """Solve the bridge between two Gaussians.

    C = (A^½ D A^-½ - reg I) / 2 with D = (4 A^½ B A^½ + reg² I)^½.

    Parameters
    ----------
    source_mean, target_mean : (d,).
    source_covariance, target_covariance : (d, d), A and B; symmetric, positive definite. All is computed in float64.
    reg : > 0.

    Raises
    ------
    NumericalError : a covariance is not positive definite.
    """
    mean_0, A, mean_1, B = (v.double() for v in (source_mean, source_covariance, target_mean, target_covariance))
    values, vectors = torch.linalg.eigh(A)
    smallest = min(float(values[0]), float(torch.linalg.eigvalsh(B)[0]))
    if not smallest > 0:
        raise NumericalError(
            f"a covariance has the eigenvalue {smallest:.3g}, expected positive ones. Remove constant or duplicate columns."
        )
    root = (vectors * values.sqrt()) @ vectors.T
    inverse_root = (vectors * values.rsqrt()) @ vectors.T
    inner, basis = torch.linalg.eigh(_symmetric(root @ B @ root))
    # (D - reg I) / 2 without the difference of nearly equal numbers where reg is large.
    gain = 2 * inner.clamp_min(0) / ((4 * inner.clamp_min(0) + reg**2).sqrt() + reg)
    cross = root @ ((basis * gain) @ basis.T) @ inverse_root
    return GaussianBridge(mean_0, A, mean_1, B, reg, cross)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
