"""How near a learned plan between two samples is to a known one, and to being optimal at all.

All percentages are of unexplained variance (UVP): a squared Bures-Wasserstein distance over half the target's total variance. Marginals
alone say little: a deterministic map has a fine marginal and no conditional spread, so conditionals are judged beside them, and every
figure beside that of the same number of exact draws (the sampling floor), of the independent and of the identity plan.

References
----------
Gushchin et al. 2023, "Building the bridge of Schrödinger: a continuous entropic optimal transport benchmark", arXiv:2306.10161, sec. 5.
Székely & Rizzo 2013, "Energy statistics", J. Stat. Plan. Inference 143, eq. 2.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditionals:
    """What is known of X_1 given each of some sources.

    Parameters
    ----------
    means : (source, d).
    covariances : (source, d, d).
    """

    means: Tensor
    covariances: Tensor

    @classmethod
    def of_draws(cls, draws: Tensor) -> "Conditionals":
        """Estimate both from (source, draw, d), in float64."""
        draws = draws.double()
        means = draws.mean(1)
        centred = draws - means[:, None]
        return cls(means, centred.mT @ centred / (draws.shape[1] - 1))


def bures_squared(first: Conditionals, second: Conditionals) -> Tensor:
    """Return the squared Bures-Wasserstein distance of each pair of Gaussians, (source,).

    |m_1 - m_2|² + tr(S_1 + S_2 - 2 (S_1^½ S_2 S_1^½)^½).
    """
    values, vectors = torch.linalg.eigh(first.covariances.double())
    root = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    inner = root @ second.covariances.double() @ root
    shared = torch.linalg.eigvalsh((inner + inner.mT) / 2).clamp_min(0).sqrt().sum(-1)
    traces = sum(each.covariances.double().diagonal(dim1=-2, dim2=-1).sum(-1) for each in (first, second))
    return (first.means - second.means).double().square().sum(-1) + traces - 2 * shared


def conditional_uvp(draws: Tensor, truth: Conditionals, *, target_variance: float) -> float:
    """Return the mean over sources of the distance between learned and true conditionals, in %.

    Parameters
    ----------
    draws : (source, draw, d), of X_1 given each source.
    target_variance : total variance (trace) of the target.
    """
    return _percent(bures_squared(Conditionals.of_draws(draws), truth).mean(), target_variance)


def marginal_uvp(samples: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """Return the distance between the Gaussians of samples (n, d) and of the target, in %."""
    truth = Conditionals(mean.double()[None], covariance.double()[None])
    return _percent(bures_squared(Conditionals.of_draws(samples[None]), truth)[0], float(covariance.trace()))


def mean_uvp(means: Tensor, truth: Tensor, *, target_variance: float) -> float:
    """Return the mean squared error of conditional means (source, d), in % of half the target's variance."""
    return _percent((means - truth).double().square().sum(-1).mean(), target_variance)


def variance_ratio(draws: Tensor, truth: Conditionals) -> float:
    """Return the total conditional variance over the true one: 1 at best, 0 for a deterministic map."""
    learned = draws.double().var(1).sum(-1).mean()
    return float(learned / truth.covariances.double().diagonal(dim1=-2, dim2=-1).sum(-1).mean())


def cost_ratio(source: Tensor, translated: Tensor, *, true_cost: float) -> float:
    """Return the plan's mean cost |x - y|² / 2, from pairs (n, d), over that of the true plan."""
    return float((source - translated).double().square().sum(-1).mean() / 2 / true_cost)


def conditional_energy(draws: Tensor, truth: Tensor) -> float:
    """Return the mean over sources of the energy distance between learned and true draws, (source, draw, d) each.

    It sees what second moments miss, such as modes. Unbiased: it can be slightly negative.
    """
    return float(torch.stack([_energy(ours, theirs) for ours, theirs in zip(draws, truth, strict=True)]).mean())


def energy_distance(first: Tensor, second: Tensor) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two samples (n, d) and (m, d), unbiased.

    Raises
    ------
    ValueError : a sample of fewer than two.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{len(first)} and {len(second)} samples: an energy distance needs two of each")
    return float(_energy(first, second))


def _energy(first: Tensor, second: Tensor) -> Tensor:
    n, m = len(first), len(second)
    first, second = first.double(), second.double()
    within = torch.cdist(first, first).sum() / (n * (n - 1)) + torch.cdist(second, second).sum() / (m * (m - 1))
    return 2 * torch.cdist(first, second).mean() - within


def energy_and_terms(moved: Tensor, real: Tensor) -> tuple[float, Tensor]:
    """Return the energy distance of moved rows from real ones, and what each moved row adds to it, (n,), float64.

    The terms, 2 E|x - Y| / n - 2 E|x - X'| / n, are those of first order, up to what depends on the real rows alone: n times the variance
    of their difference between two models on the same rows is that of the difference of the distances.

    Raises
    ------
    ValueError : a sample of fewer than two.
    """
    n, m = len(moved), len(real)
    if min(n, m) < 2:
        raise ValueError(f"{n} and {m} samples: an energy distance needs two of each")
    moved, real = moved.double(), real.double()
    across = torch.cdist(moved, real).mean(1)
    within = torch.cdist(moved, moved).sum(1) / (n - 1)
    own = torch.cdist(real, real).sum() / (m * (m - 1))
    return float(2 * across.mean() - within.mean() - own), 2 * (across - within) / n


def precision_residual(source: Tensor, translated: Tensor, *, reg: float) -> float:
    """Return how far a plan is from optimal: |reg × off-diagonal block of the joint precision + I| / sqrt(d), of pairs (n, d).

    0 for a Gaussian Schrödinger bridge whatever its marginals, 1 for independent pairs. For other marginals the block that counts is that
    of the conditional precision, so that the figure is a diagnosis there, not a test.

    Raises
    ------
    ValueError : there are not more pairs than columns of both together.
    """
    n, d = source.shape
    if n <= 2 * d + 1:
        raise ValueError(f"{n} pairs of {d} columns: the precision needs more than {2 * d + 1}")
    precision = torch.linalg.inv(torch.cov(torch.cat([source, translated], dim=1).double().T))
    block = precision[:d, d:] * reg + torch.eye(d, dtype=torch.float64)
    return float(block.norm() / d**0.5)


def _percent(distance: Tensor, variance: float) -> float:
    return 100 * float(distance) / (variance / 2)
