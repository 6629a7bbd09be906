"""The training loss L_simple, weighted per image and watched per timestep decile."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cellbridge.diffusion.monitors import band_monitors, loss_figures, range_figures, range_monitors
from cellbridge.diffusion.prediction import Prediction, target
from cellbridge.diffusion.schedule import Schedule
from cellbridge.typing import Images, Labels, Times


@dataclass(frozen=True)
class DiffusionLoss:
    """A loss and what to watch beside it; everything stays on the device.

    Parameters
    ----------
    loss : scalar to differentiate: the mean over images of weight times loss.
    per_image : (batch,), without the weights.
    monitors : name → (sum, count), detached, single or grids; a monitor's value is the ratio of the sums over steps.
    minima, maxima : name → detached, of the predicted image by channel, and by decile of t and channel.
    """

    loss: Tensor
    per_image: Tensor
    monitors: dict[str, tuple[Tensor, Tensor]]
    minima: dict[str, Tensor]
    maxima: dict[str, Tensor]


def diffusion_loss(
    network: Callable[..., Any],
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
    x_t = alpha * x_0 + sigma * epsilon
    output = network(x_t, t, class_labels=labels, return_dict=False)[0].to(x_0.dtype)
    return squared_error_loss(
        output, x_0, x_t, epsilon=epsilon, t=t, schedule=schedule, prediction=prediction, weights=weights
    )


def squared_error_loss(
    output: Images,
    x_0: Images,
    x_t: Images,
    *,
    epsilon: Images,
    t: Times,
    schedule: Schedule,
    prediction: Prediction,
    weights: Tensor | None = None,
) -> DiffusionLoss:
    """Compute the loss of `diffusion_loss` from what the network gave for x_t = alpha x_0 + sigma epsilon."""
    alpha, sigma = schedule.coefficients(t, x_0)
    wanted = target(prediction, x_0, epsilon, alpha=alpha, sigma=sigma)
    per_image = (output - wanted).square().flatten(1).mean(1)
    loss = per_image.mean() if weights is None else (weights * per_image).mean()
    ranges = range_figures(prediction, output.detach(), x_t, alpha=alpha, sigma=sigma)
    losses = band_monitors(loss_figures(per_image.detach()), t, steps=schedule.steps)
    watched = range_monitors(ranges, t, steps=schedule.steps)
    return DiffusionLoss(loss, per_image, losses | watched.means, watched.minima, watched.maxima)
