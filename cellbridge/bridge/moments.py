"""Mean and covariance of a sample that may have few rows for its columns."""

import torch
from torch import Tensor

from cellbridge.errors import NumericalError


def second_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and covariance (d, d), float64, the latter drawn towards its diagonal average as far as the rows are few.

    Parameters
    ----------
    rows : (n, d), n ≥ 2.

    Raises
    ------
    NumericalError : the rows do not vary at all.

    References
    ----------
    Chen et al. 2010, "Shrinkage algorithms for MMSE covariance estimation", IEEE Trans. Signal Process. 58, eq. 23 (oracle approximating).
    """
    rows = rows.double()
    n, d = rows.shape
    covariance = torch.cov(rows.T).reshape(d, d)
    level = float(covariance.trace()) / d
    if not level > 0:
        raise NumericalError(f"all {n} rows are the same, so that there is nothing to bridge. Check the input.")
    squares = float(covariance.square().mean())
    shrinkage = min(1.0, (squares + level**2) / ((n + 1) * (squares - level**2 / d))) if squares > level**2 / d else 1.0
    return rows.mean(0), torch.lerp(covariance, level * torch.eye(d, dtype=torch.float64), shrinkage)
