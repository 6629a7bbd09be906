"""The training loss L_simple, weighted per image and watched per timestep decile."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cellbridge.diffusion.prediction import Prediction, target
from cellbridge.diffusion.schedule import Schedule
from cellbridge.typing import Images, Labels, Times

BANDS = 10
"""Timestep deciles that the loss is watched in."""


@dataclass(frozen=True)
class DiffusionLoss:
    """A loss and what to watch beside it; everything stays on the device.

    Parameters
    ----------
    loss : scalar to differentiate: the mean over images of weight times loss.
    per_image : (batch,), without the weights.
    monitors : name → (sum, count), detached scalars; a monitor's value is the ratio of the sums over steps.
    """

    loss: Tensor
    per_image: Tensor
    monitors: dict[str, tuple[Tensor, Tensor]]


def diffusion_loss(
    network: nn.Module,
    x_0: Images,
    labels: Labels,
    *,
    schedule: Schedule,
    prediction: Prediction,
    t: Times,
    epsilon: Images,
    weights: Tensor | None = None,
) -> DiffusionLoss:
    """Compute the mean squared error of the network's own prediction.

    L_simple = mean_i w_i |output(x_t, t, label)_i - target_i|^2 / d, with x_t = alpha x_0 + sigma epsilon. Weights of mean 1 over the
    data set (see `effective_number_weights`) keep the loss's scale.

    Parameters
    ----------
    network : called as `network(x_t, t, class_labels=labels, return_dict=False)[0]`.
    t, epsilon, labels : from `training_draw`.
    weights : (batch,) or None for 1.

    References
    ----------
    Ho et al. 2020, arXiv:2006.11239, eq. 14; Salimans & Ho 2022, arXiv:2202.00512 (v).
    """
    alpha, sigma = schedule.coefficients(t, x_0)
    output = network(alpha * x_0 + sigma * epsilon, t, class_labels=labels, return_dict=False)[0].to(x_0.dtype)
    wanted = target(prediction, x_0, epsilon, alpha=alpha, sigma=sigma)
    per_image = (output - wanted).square().flatten(1).mean(1)
    loss = per_image.mean() if weights is None else (weights * per_image).mean()
    return DiffusionLoss(loss, per_image, band_monitors(per_image.detach(), t, steps=schedule.steps))


def band_monitors(per_image: Tensor, t: Times, *, steps: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `loss/t0` … `loss/t9` and `log_loss/t0` …: sums and counts of each decile of t, without waiting for the device.

    The logarithm is taken per image, so that the few hard images of a band do not hide the many.
    """
    band = ((t + 1) * (BANDS / steps)).ceil().long().sub(1).clamp(0, BANDS - 1)
    empty = torch.zeros(BANDS, dtype=per_image.dtype, device=per_image.device)
    counts = empty.index_add(0, band, torch.ones_like(per_image))
    losses = empty.index_add(0, band, per_image)
    logs = empty.index_add(0, band, per_image.clamp_min(torch.finfo(per_image.dtype).tiny).log())
    monitors = {f"loss/t{i}": (losses[i], counts[i]) for i in range(BANDS)}
    return monitors | {f"log_loss/t{i}": (logs[i], counts[i]) for i in range(BANDS)}
