"""The variational bound L_vlb in bits per dimension, and the hybrid objective that trains variances with it.

-log p(counts) <= E[ -log p(counts | x at the first time) + sum_t KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) ] + KL(q(x_T | x_0) || N(0, I))

A time t in (-1, 0] stands for the first, whose reverse step is the decoder; every later one for the unit step from t - 1. At whole
times these are the published terms, and training takes whole times. The times u - 1, u, u + 1 … give a bound for any u in (0, 1], but a looser
one: with little noise at the first of them, the steps spell out what lies below the width of a bin.

References
----------
Ho et al. 2020, arXiv:2006.11239, eq. 5 and 13; Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 4 to 7 and 16; their code's
`gaussian_diffusion.py` and `losses.py`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, special

from cellbridge.diffusion.objective import DiffusionLoss, squared_error_loss
from cellbridge.diffusion.prediction import Prediction, to_x_0
from cellbridge.diffusion.schedule import Schedule
from cellbridge.diffusion.variance import (
    divergence,
    learned_log_variance,
    posterior,
    split_range,
    standard_normal_divergence,
    step_before,
)
from cellbridge.typing import Images, Labels, Times

Bins = tuple[Tensor, Tensor]
"""Lower and upper edge of the bin of each value; the first bin begins at minus infinity and the last ends at infinity."""

HYBRID_WEIGHT = 1e-3
"""Of L_vlb in the hybrid objective, as published."""

_FAR = 1e6
"""Standard deviations from the mean at which the first bin begins and the last one ends: probability 0 beyond."""


def decoder_bits(mean: Images, log_variance: Tensor, bins: Bins) -> Tensor:
    """Return -log2 of the probability that N(mean, variance) lies in each value's bin, elementwise, in the type of the edges.

    Exact far in the tails too, where the published code stops at 1e-12 and gives no gradient. Give the edges of 16-bit data in
    float64: their bins are narrower than float32 resolves.
    """
    deviation = (0.5 * log_variance.to(bins[0].dtype)).exp()
    lower, upper = (((edge - mean) / deviation).clamp(-_FAR, _FAR) for edge in bins)
    # Above the mean the bin's mirror image is taken: there the logarithm of the normal distribution keeps its digits.
    mirrored = lower > 0
    low = special.log_ndtr(torch.where(mirrored, -upper, lower))
    high = special.log_ndtr(torch.where(mirrored, -lower, upper))
    return -(high + (-special.expm1(low - high)).log()) / math.log(2)


def evenly_spaced_bins(images: Images, *, full_scale: int) -> Bins:
    """Return the bins of counts 0 … full_scale that were spread evenly over [-1, 1]: each value's nearest, of width 2 / full_scale.

    For data under cellbridge's intensity map, which is not even, see `CellData.bin_edges`.
    """
    half = 1.0 / full_scale
    centre = ((images + 1) / (2 * half)).round() * (2 * half) - 1
    lower = torch.where(centre <= -1 + half, -math.inf, centre - half)
    return lower, torch.where(centre >= 1 - half, math.inf, centre + half)


def bound_terms(
    x_0: Images,
    x_t: Images,
    t: Times,
    *,
    estimate: Images,
    fraction: Tensor | None,
    schedule: Schedule,
    bins: Bins,
) -> Tensor:
    """Return the term of L_vlb at each image's time, in bits per dimension: (batch,).

    Parameters
    ----------
    estimate : the mean of x_0 that the reverse step is taken with.
    fraction : where each value's log variance lies between log beta~ (0) and log beta (1); None for beta~.
    bins : of the values of x_0.
    """
    chosen = torch.zeros_like(x_t) if fraction is None else fraction
    log_variance = learned_log_variance(schedule, t, chosen)
    later = t.clamp_min(torch.finfo(t.dtype).eps)
    q = posterior(schedule, later, step_before(later), x_t)
    nats = divergence(q.mean(x_0, x_t), q.log_variance, q.mean(estimate, x_t), log_variance)
    bits = decoder_bits(estimate, log_variance, bins).to(x_t.dtype)
    return torch.where(t > 0, nats.flatten(1).mean(1) / math.log(2), bits.flatten(1).mean(1))


def prior_bits(schedule: Schedule, x_0: Images) -> Tensor:
    """Return KL(q(x_T | x_0) || N(0, I)) in bits per dimension: (batch,); 0 at zero terminal SNR. No training changes it."""
    t = torch.full((len(x_0),), schedule.noisiest, device=x_0.device, dtype=x_0.dtype)
    alpha, sigma = schedule.coefficients(t, x_0)
    nats = standard_normal_divergence(alpha * x_0, 2 * sigma.log())
    return nats.flatten(1).mean(1) / math.log(2)


def variational_loss(
    network: Callable[..., Any],
    x_0: Images,
    labels: Labels,
    *,
    objective: Literal["vlb", "hybrid"],
    schedule: Schedule,
    prediction: Prediction,
    t: Times,
    epsilon: Images,
    bins: Bins,
    learned_range: bool = True,
    weights: Tensor | None = None,
    bound_weights: Tensor | None = None,
    vlb_weight: float = HYBRID_WEIGHT,
) -> DiffusionLoss:
    """Compute L_vlb in bits per dimension (without its prior), or the hybrid L_simple + vlb_weight L_vlb.

    T times the bound's term at each image's time estimates L_vlb. In the hybrid it trains the variances alone: its mean is held
    fixed. Watched are L_simple by decile, as ever, and `vlb`.

    Parameters
    ----------
    network : called as `network(x_t, t, class_labels=labels, return_dict=False)[0]`.
    learned_range : the network gives 2 C channels (see `split_range`); otherwise variances are beta~.
    weights, bound_weights : (batch,) or None for 1, of L_simple and of L_vlb; 1 / (T p_t) belongs in the latter where times are
        drawn by importance.
    """
    alpha, sigma = schedule.coefficients(t, x_0)
    x_t = alpha * x_0 + sigma * epsilon
    output, fraction = network(x_t, t, class_labels=labels, return_dict=False)[0].to(x_0.dtype), None
    if learned_range:
        output, fraction = split_range(output, channels=x_0.shape[1])
    simple = squared_error_loss(
        output, x_0, x_t, epsilon=epsilon, t=t, schedule=schedule, prediction=prediction, weights=weights
    )
    mean = output.detach() if objective == "hybrid" else output
    estimate = to_x_0(prediction, mean, x_t, alpha=alpha, sigma=sigma)
    terms = bound_terms(x_0, x_t, t, estimate=estimate, fraction=fraction, schedule=schedule, bins=bins)
    bits = schedule.steps * terms
    bound = bits.mean() if bound_weights is None else (bound_weights * bits).mean()
    return replace(
        simple,
        loss=bound if objective == "vlb" else simple.loss + vlb_weight * bound,
        per_image=bits if objective == "vlb" else simple.per_image,
        monitors=simple.monitors | {"vlb": (bound.detach() * len(bits), torch.ones_like(bits).sum())},
    )
