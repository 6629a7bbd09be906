"""Mean and covariance of features that arrive in batches, and the Fréchet distance between two such summaries.

References
----------
Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", arXiv:1706.08500 (the distance); Chan, Golub and LeVeque 1983,
"Algorithms for computing the sample variance", Am. Stat. 37:242 (merging).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, eigvalsh, svdvals
from torch import Tensor

Matrix = NDArray[np.float64]
Rows = NDArray[Any] | Tensor
"""Features (n, feature), of any float type and on the host; computed with in float64."""

_CHUNK = 4096
"""Rows that are held in float64 at once, beside what is kept."""


def float_rows(features: Rows) -> Matrix:
    """Return features as float64 (n, feature).

    Raises
    ------
    ValueError : they are no table of finite numbers.
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"features of shape {rows.shape}: expected (n, feature)")
    if not np.isfinite(rows).all():
        raise ValueError("features that are not finite: check the extractor and the images' range")
    return rows


class Moments:
    """The number, mean and covariance of features, from batches in any order.

    Up to as many rows as features the rows themselves are kept, and beyond that the sum of squares about the mean: whichever is smaller,
    so that neither memory nor the distance's cost ever exceeds that of a feature × feature matrix, whatever n is.
    """

    def __init__(self, features: Rows | None = None):
        self.n = 0
        self._mean: Matrix | None = None
        self._rows: list[Matrix] | None = []
        self._scatter: Matrix | None = None
        if features is not None:
            self.add(features)

    def add(self, batch: Rows) -> "Moments":
        """Take a batch (n, feature) in, and return itself."""
        for start in range(0, len(batch), _CHUNK):
            rows = float_rows(batch[start : start + _CHUNK])
            mean = rows.mean(axis=0)
            self._take(len(rows), mean, rows, partial(_about, rows, mean))
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Take in what another has seen, and return itself."""
        if other.n:
            rows = None if other._rows is None else np.concatenate(other._rows)
            self._take(other.n, other.mean, rows, other._about_mean)
        return self

    @property
    def mean(self) -> Matrix:
        """(feature,)."""
        if self._mean is None:
            raise ValueError("no features were added: there is no mean")
        return self._mean

    @property
    def covariance(self) -> Matrix:
        """(feature, feature), divided by n - 1."""
        self._require_two()
        if self._scatter is not None:
            return self._scatter / (self.n - 1)
        root = self.root()
        return root.T @ root

    @property
    def low_rank(self) -> bool:
        """Whether there are no more rows than features, so that the covariance has a root of few rows."""
        return self._scatter is None

    @property
    def trace(self) -> float:
        """Return the trace of the covariance."""
        self._require_two()
        if self._scatter is not None:
            return float(np.trace(self._scatter)) / (self.n - 1)
        return float((self.root() ** 2).sum())

    def root(self) -> Matrix:
        """Return R (min(n, feature), feature) with RᵀR = covariance."""
        self._require_two()
        if self._scatter is None:
            assert self._rows is not None
            return (np.concatenate(self._rows) - self.mean) / np.sqrt(self.n - 1)
        values, vectors = eigh(self._scatter / (self.n - 1))
        return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T

    def _take(self, n: int, mean: Matrix, rows: Matrix | None, about_mean: Callable[[], Matrix]) -> None:
        """Take in n rows of a known mean: the rows themselves, or the sum of squares about their mean."""
        if self._mean is not None and len(mean) != len(self._mean):
            raise ValueError(f"{len(mean)} features after {len(self._mean)}: one extractor makes all batches")
        together = self.n + n
        if self._rows is not None and rows is not None and together <= len(mean):
            self._rows.append(rows.copy())
        else:
            scatter = self._about_mean() if self.n else np.zeros((len(mean), len(mean)))
            scatter += about_mean()
            gap = mean - (mean if self._mean is None else self._mean)
            scatter += np.outer(gap, gap * (self.n * n / together))
            self._scatter, self._rows = scatter, None
        before = 0.0 if self._mean is None else self._mean * (self.n / together)
        self._mean, self.n = before + mean * (n / together), together

    def _about_mean(self) -> Matrix:
        """Return the sum of squares about the mean, (feature, feature)."""
        if self._scatter is not None:
            return self._scatter
        assert self._rows is not None
        return _about(np.concatenate(self._rows), self.mean)

    def _require_two(self) -> None:
        if self.n < 2:
            raise ValueError(f"{self.n} image(s): a covariance needs two or more")


def _about(rows: Matrix, mean: Matrix) -> Matrix:
    centred = rows - mean
    return np.asarray(centred.T @ centred)


def frechet(features_1: Rows, features_2: Rows) -> float:
    """Return the Fréchet distance of two sets of features, (n, feature) and (m, feature).

    |mu_1 - mu_2|² + tr(S_1 + S_2 - 2 (S_1 S_2)^½), covariances divided by n - 1. Exact, and never below -1e-6 of the traces.

    Raises
    ------
    ValueError : fewer than two rows on a side, or features that are not finite.

    References
    ----------
    Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    return frechet_of_moments(Moments(features_1), Moments(features_2))


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance of two summaries."""
    gap = a.mean - b.mean
    return float(gap @ gap) + a.trace + b.trace - 2 * trace_of_root(a, b)


def trace_of_root(a: Moments, b: Moments) -> float:
    """Return tr (S_a S_b)^½ without forming the product's square root.

    With S = RᵀR, the eigenvalues of S_a S_b other than 0 are those of R_a S_b R_aᵀ = (R_a R_bᵀ)(R_a R_bᵀ)ᵀ: where both sides have few
    rows the trace is the nuclear norm of R_a R_bᵀ (n_a × n_b), else it comes from the eigenvalues of a symmetric matrix no larger than
    the smaller rank.
    """
    if a.low_rank and b.low_rank:
        return float(svdvals(a.root() @ b.root().T).sum())
    small, large = (b, a) if b.low_rank else (a, b)
    return root_against(small.root(), large.covariance)


def root_against(root: Matrix, covariance: Matrix) -> float:
    """Return tr (RᵀR S)^½ for a root R (rank, feature) and a covariance S (feature, feature)."""
    product = root @ covariance @ root.T
    values = eigvalsh((product + product.T) / 2)
    return float(np.sqrt(np.clip(values, 0, None)).sum())
