"""Gaussians on grids: their entropic plan is known in closed form, and a grid adds no sampling error."""

import numpy as np
import torch
from scipy.linalg import sqrtm


def gaussian_grid(mean, covariance, *, points, reach=6.0):
    """Return nodes (point, d) and weights that sum to one; the trapezoidal rule is exact to many digits for Gaussians."""
    scale = np.sqrt(np.diag(covariance))
    axes = [m + s * np.linspace(-reach, reach, points) for m, s in zip(mean, scale, strict=True)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(mean))
    away = nodes - mean
    weights = np.exp(-0.5 * np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away))
    kept = weights > 1e-12
    weights = weights[kept] / weights[kept].sum()
    return torch.as_tensor(nodes[kept]), torch.as_tensor(weights)


def entropic_cross_covariance(a, b, reg):
    """Return Cov(X_0, X_1) = ½ (A^½ D A^-½ - reg I), D = (4 A^½ B A^½ + reg² I)^½ (Janati et al. 2020, arXiv:2006.02572, thm. 1)."""
    root = np.real(sqrtm(a))
    middle = np.real(sqrtm(4 * root @ b @ root + reg**2 * np.eye(len(a))))
    return 0.5 * (root @ middle @ np.linalg.inv(root) - reg * np.eye(len(a)))
