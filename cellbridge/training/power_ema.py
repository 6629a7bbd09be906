"""Averages of the weights with a power-function profile, and any other profile from snapshots of them, after training.

The average over weights theta(t) of steps 1 … t with profile p(tau) ∝ tau^gamma reaches back a share of the whole training, its relative
standard deviation sigma_rel, however long that was:

    theta^(t) = beta_t theta^(t-1) + (1 - beta_t) theta(t),   beta_t = (1 - 1 / t)^(gamma + 1).

References
----------
Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models" (EDM2), arXiv:2312.02696, eq. 2 and 3, and
appendix C; their code's `phema.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cellbridge.errors import CheckpointError
from cellbridge.runs import publish_file
from cellbridge.training.checkpoint import write_errors

Averages = dict[float, dict[str, Tensor]]
"""sigma_rel → name → average."""

STORED_TYPE = torch.float16
"""Of snapshots on disk; checkpoints keep averages as they are."""


@cache
def gamma_of(sigma_rel: float) -> float:
    """Return the power gamma of the profile of a relative standard deviation: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    share = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - share, 12.0 - share]).real.max())


def power_decay(updates: int, gamma: float) -> float:
    """Return beta_t of the next update, after `updates` = t - 1 earlier ones; 0 for the first."""
    return (updates / (updates + 1)) ** (gamma + 1.0)


@torch.no_grad()
def update(averages: Averages, weights: Sequence[Tensor], *, updates: int) -> None:
    """Move each average towards the weights in place, all tensors of it in one call."""
    for sigma_rel, average in averages.items():
        torch._foreach_lerp_(list(average.values()), list(weights), 1.0 - power_decay(updates, gamma_of(sigma_rel)))


def flattened(averages: Averages) -> dict[str, Tensor]:
    """Return the tensors of all averages as `sigma_rel/name`."""
    return {f"{sigma:g}/{name}": tensor for sigma, average in averages.items() for name, tensor in average.items()}


@dataclass(frozen=True)
class Stored:
    """One average as it was at a step."""

    step: int
    sigma_rel: float
    tensors: Mapping[str, Tensor]


def save(directory: Path, averages: Averages, *, step: int) -> None:
    """Write the averages at a step to one file, in `STORED_TYPE`, whole or not at all.

    Raises
    ------
    ResourceError : the disk is full.
    """
    target = directory / f"step-{step:08d}.safetensors"
    tensors = {
        name: tensor.detach().to("cpu", STORED_TYPE).contiguous() for name, tensor in flattened(averages).items()
    }
    with publish_file(target) as temporary, write_errors(target):
        save_file(tensors, temporary)


def load(directory: Path, *, before: int) -> list[Stored]:
    """Read the averages that `save` wrote at steps earlier than `before`, oldest first.

    Raises
    ------
    CheckpointError : a file is damaged.
    """
    found: list[Stored] = []
    for path in sorted(directory.glob("step-*.safetensors")):
        match = re.fullmatch(r"step-(\d+)", path.stem)
        if match is None or int(match[1]) >= before:
            continue
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: is no readable snapshot of averages ({error}). Delete it.") from None
        by_sigma: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            sigma, _, parameter = name.partition("/")
            by_sigma.setdefault(sigma, {})[parameter] = tensor
        found += [Stored(int(match[1]), float(sigma), average) for sigma, average in by_sigma.items()]
    return found


def coefficients(stored: Sequence[tuple[int, float]], *, step: int, sigma_rel: float) -> np.ndarray:
    """Return how much of each stored average, given as (step, sigma_rel), makes the profile that was not stored: (stored,), of sum 1.

    Solves A X = B with the inner products of profiles, A among the stored ones and B with the wanted one: the combination whose profile
    is nearest in the least-squares sense. A stored profile gives itself: one 1 and else 0.
    """
    steps = np.array([float(own) for own, _ in stored])
    gammas = np.array([gamma_of(sigma) for _, sigma in stored])
    among = _inner_product(steps[:, None], gammas[:, None], steps[None, :], gammas[None, :])
    wanted = _inner_product(steps, gammas, np.array(float(step)), np.array(gamma_of(sigma_rel)))
    solution = np.linalg.lstsq(among, wanted, rcond=None)[0]
    share: np.ndarray = solution / solution.sum()
    return share


def reconstruct(stored: Sequence[Stored], *, step: int, sigma_rel: float) -> dict[str, Tensor]:
    """Return the average of any profile at a step, from stored averages of at most that step, in the type of the last one.

    The wider the gaps between snapshots, the coarser; one that was tracked itself comes back as it was.
    """
    shares = coefficients([(one.step, one.sigma_rel) for one in stored], step=step, sigma_rel=sigma_rel)
    last = stored[-1].tensors
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in last.items()}
    for one, share in zip(stored, shares.tolist(), strict=True):
        for name, sum_ in total.items():
            sum_.add_(one.tensors[name].to(sum_), alpha=share)
    return {name: tensor.to(last[name].dtype) for name, tensor in total.items()}


def _inner_product(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """Return the integral of the product of two profiles, p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]."""
    exponent = np.where(t_a < t_b, gamma_b, -gamma_a)
    product: np.ndarray = (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** exponent
    return product / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
