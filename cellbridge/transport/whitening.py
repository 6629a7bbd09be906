"""Embeddings in which each plate's control cells have zero mean and unit covariance: what plates differ in leaves the cost.

Reference: Ando et al. 2017, "Improving phenotypic measurements in high-content imaging screens", bioRxiv 161422 (whitening on the control).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cellbridge.errors import CouplingError
from cellbridge.transport.cost import wide

Embeddings = Float[Tensor, "cell feature"]

WIDEST = 256
"""Dimensions of a whitened embedding: more cost time and add noise, not pairing."""

_CONSTANT = 1e-10
"""Variances below this share of the mean variance are constants."""


def whiten_by_plate(
    embeddings: Embeddings,
    *,
    plates: Sequence[str],
    control: Bool[Tensor, " cell"],
    components: int | None = None,
    shrinkage: float | None = None,
) -> Float[Tensor, "cell component"]:
    """Whiten each plate's cells by its own control cells, in one basis for all plates.

    y = Vᵀ(x - m_p) → (S_p)^-½ y, with V the leading components of all plates' centred controls, m_p and S_p the mean and shrunk
    covariance of the plate's controls. The symmetric root keeps the axes, so that rows of different plates can be compared.

    Parameters
    ----------
    plates : the plate of each cell.
    control : which cells are controls.
    components : how many are kept; by default all, 256 at most. 16 keep what is strongest.
    shrinkage : in [0, 1], towards the mean variance times I; by default Ledoit and Wolf's estimate of the best for each plate.

    Returns
    -------
    (cell, component), float32. Compute it once for a data set and keep it.

    Raises
    ------
    CouplingError : not finite, a plate with fewer than two control cells, or more components than there are directions.
    """
    x = _checked(embeddings, plates, control)
    names = np.asarray(plates)
    rows_of = {
        str(plate): torch.as_tensor(np.flatnonzero(names == plate), device=x.device) for plate in np.unique(names)
    }
    centred = x.clone()
    for plate, rows in rows_of.items():
        own = rows[control[rows]]
        if len(own) < 2:
            raise CouplingError(
                f"plate {plate}: {len(own)} control cell(s), expected two or more to whiten by. Leave the plate out, or add its controls."
            )
        centred[rows] -= x[own].mean(0)
    projected = centred @ _leading(centred[control], components)
    for rows in rows_of.values():
        projected[rows] = projected[rows] @ _inverse_root(projected[rows[control[rows]]], shrinkage)
    return projected.float()


def shrunk_covariance(
    centred: Embeddings, shrinkage: float | None = None
) -> tuple[Float[Tensor, "feature feature"], float]:
    """Return (1 - s) S + s mu I with mu = tr S / d, and s: given, or Ledoit and Wolf's.

    s = min(1, sum_k |x_k x_kᵀ - S|² / (n² |S - mu I|²)) in Frobenius norms.

    References
    ----------
    Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", J. Multivar. Anal. 88:365, lemma 3.2–3.5.
    """
    n, d = centred.shape
    covariance = centred.T @ centred / n
    mean_variance = covariance.diagonal().mean()
    identity = torch.eye(d, dtype=centred.dtype, device=centred.device)
    if shrinkage is None:
        distance = float((covariance - mean_variance * identity).square().sum())
        # sum_k |x_k x_kᵀ - S|² = sum_k |x_k|⁴ - n |S|²
        noise = float(centred.square().sum(1).square().sum() - n * covariance.square().sum()) / n**2
        shrinkage = min(1.0, noise / distance) if distance > 0 else 1.0
    return (1 - shrinkage) * covariance + shrinkage * mean_variance * identity, shrinkage


def _leading(controls: Tensor, components: int | None) -> Tensor:
    """Return the leading directions (feature, component) of centred controls."""
    variances, directions = torch.linalg.eigh(controls.T @ controls / len(controls))
    known = int((variances > _CONSTANT * variances.mean()).sum()) if float(variances.mean()) > 0 else 0
    kept = min(known, WIDEST) if components is None else components
    if not 1 <= kept <= min(known, WIDEST):
        raise CouplingError(
            f"{kept} components: the control cells vary in {known} directions and {WIDEST} are the most, expected 1 to {min(known, WIDEST)}."
        )
    return directions[:, -kept:].flip(1)


def _inverse_root(controls: Tensor, shrinkage: float | None) -> Tensor:
    covariance, _ = shrunk_covariance(controls, shrinkage)
    variances, directions = torch.linalg.eigh(covariance)
    floor = _CONSTANT * float(variances.mean())
    if not float(variances[0]) > floor:
        raise CouplingError(
            f"{len(controls)} control cells of a plate do not vary in all of {len(variances)} directions. Use fewer components, or more shrinkage."
        )
    return directions @ (variances.rsqrt()[:, None] * directions.T)


def _checked(embeddings: Tensor, plates: Sequence[str], control: Tensor) -> Tensor:
    if embeddings.ndim != 2 or embeddings.numel() == 0 or not len(embeddings) == len(plates) == len(control):
        raise CouplingError(
            f"embeddings of shape {tuple(embeddings.shape)} for {len(plates)} plates and {len(control)} flags, expected (cell, feature) "
            "and one of each per cell."
        )
    if not bool(torch.isfinite(embeddings).all()):
        bad = int((~torch.isfinite(embeddings).all(dim=1)).sum())
        raise CouplingError(f"{bad} of {len(embeddings)} embeddings are not finite. Leave these cells out.")
    return embeddings.detach().to(wide(embeddings.device))
