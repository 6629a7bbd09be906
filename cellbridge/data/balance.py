"""Class-balanced weights by the effective number of samples, and what they cost in variance.

Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", arXiv:1901.05555.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cellbridge.errors import ConfigError


def effective_number_weights(n_per_class: Tensor | Sequence[int], *, beta: float) -> Tensor:
    """Return one loss weight per class, so that the mean weight of a sample is one.

    w_c ∝ 1 / E_c with E_c = (1 - beta^n_c) / (1 - beta), scaled to sum_c n_c w_c = sum_c n_c. Cui et al. scale to
    sum_c w_c = C instead, which shrinks the loss of an imbalanced data set (to 0.17 at beta = 0.999 for n = 5000, 500, 50).
    beta = 0 gives 1 everywhere, beta = 1 the inverse frequency N / (C n_c). One class alone gets 1, whatever its size: to
    mean anything, classes are condition x replayed control x plate.

    Parameters
    ----------
    n_per_class : (class,), how many samples each class has; all positive.
    beta : in [0, 1].

    Returns
    -------
    (class,), float64.

    Raises
    ------
    ConfigError : beta outside [0, 1], or a class without samples.

    References
    ----------
    Cui et al. 2019, eq. 2 and 4.
    """
    n = torch.as_tensor(n_per_class, dtype=torch.float64)
    if not 0.0 <= beta <= 1.0:
        raise ConfigError(f"beta = {beta:g}, expected a number in [0, 1], such as 0.999.")
    if n.numel() == 0 or bool((n <= 0).any()):
        raise ConfigError(
            f"samples per class are {n.int().tolist()}, expected at least one in each. Leave empty classes out."
        )
    if beta == 1.0:
        effective = n
    elif beta == 0.0:
        effective = torch.ones_like(n)
    else:
        # expm1 and log keep the digits that 1 - beta^n loses where beta is near one and n is small.
        log_beta = torch.log(torch.tensor(beta, dtype=torch.float64))
        effective = torch.expm1(n * log_beta) / torch.expm1(log_beta)
    return n.sum() / (n / effective).sum() / effective


def classes_of(*labels: Sequence[str]) -> tuple[Tensor, tuple[tuple[str, ...], ...]]:
    """Return each sample's class, and the classes: the combinations that occur of several labels, in sorted order.

    Parameters
    ----------
    labels : one sequence of names per property (condition, plate …), all of one length.

    Returns
    -------
    (sample,) int64 class of each sample, and the name of each class.
    """
    rows = list(zip(*labels, strict=True))
    names = tuple(sorted(set(rows)))
    index = {name: position for position, name in enumerate(names)}
    return torch.tensor([index[row] for row in rows], dtype=torch.int64), names


def sample_weights(classes: Tensor, *, beta: float) -> Tensor:
    """Return the class-balanced weight of every sample: (sample,), float32, of mean one.

    Parameters
    ----------
    classes : (sample,), int64, class of each sample, without gaps (as `classes_of` gives).
    beta : in [0, 1]; see `effective_number_weights`.
    """
    return effective_number_weights(torch.bincount(classes), beta=beta)[classes].float()


def draw_evenly(rows: np.ndarray, groups: np.ndarray, *, n: int, seed: int) -> np.ndarray:
    """Return `n` of the rows, ascending, as evenly over their groups as the groups' sizes allow; all of them where there are fewer.

    Parameters
    ----------
    rows : (row,), int64.
    groups : (row,), the group of each (its plate).
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    rank = np.empty(len(rows), dtype=np.int64)
    for group in set(groups):
        members = groups[order] == group
        rank[members] = np.arange(members.sum())
    return np.sort(rows[order[np.argsort(rank, kind="stable")[:n]]])


def effective_sample_size(weights: Tensor) -> float:
    """Return (sum w)^2 / sum w^2: how many equally weighted samples have the same variance of a mean.

    Below half of the number of samples, prefer sampling with p ∝ w over weighting the loss: no variance is lost, but samples
    repeat. Special case: 0 where every weight is 0.

    References
    ----------
    Kish 1965, "Survey Sampling", sec. 11.7.
    """
    w = weights.double()
    squares = float((w * w).sum())
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0
