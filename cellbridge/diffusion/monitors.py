"""What to watch in a denoiser's training: losses per timestep decile, and the range of the image and the noise it predicts.

A network may err a little in what it predicts and much in the image that follows from it: for epsilon,
dx_0 = -(sigma / alpha) depsilon, which at the noisiest step of the linear schedule multiplies an error by 157.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cellbridge.diffusion.prediction import Prediction, to_epsilon, to_x_0
from cellbridge.typing import Images, Times

BANDS = 10
"""Timestep deciles that a training is watched in."""

_CLEAR_BANDS = (0, 1)
"""Deciles below 0.2 T, where x_t nearly shows the image."""
_MOST_OUTSIDE = 0.05

_NOISY_BAND = BANDS - 1
"""The decile above 0.9 T, where x_t hardly shows the image, and what a network predicts must bring it."""
_MOST_OUTSIDE_OF_NOISE = 0.2
"""Networks of v lie below 0.02 from the twentieth step on; of epsilon, after 2000 steps, at 0.49 (cosine) and 0.88 (linear)."""


@dataclass(frozen=True)
class RangeFigures:
    """How the predicted image and noise are spread: per image, and the extrema per channel; detached.

    Parameters
    ----------
    outside : (batch,), share of the values of x̂_0 outside [-1, 1].
    epsilon_std : (batch,), root mean square of ε̂, which is its spread about its true mean 0.
    minima, maxima : (channel,), of x̂_0 over batch and pixels.
    """

    outside: Tensor
    epsilon_std: Tensor
    minima: Tensor
    maxima: Tensor


@torch.no_grad()
def range_figures(prediction: Prediction, output: Images, x_t: Images, *, alpha: Tensor, sigma: Tensor) -> RangeFigures:
    """Return the spread of the image and the noise that an output stands for, without waiting for the device.

    For data N(mu, s^2) and the exact posterior mean, var(ε̂) = sigma^2 / (alpha^2 s^2 + sigma^2). An epsilon network has no x̂_0
    where alpha is 0, and an x_0 network no ε̂ where sigma is 0; the figures are not finite there.

    Parameters
    ----------
    alpha, sigma : the schedule at each image's time, shaped to multiply images.
    """
    x_0 = to_x_0(prediction, output, x_t, alpha=alpha, sigma=sigma)
    epsilon = to_epsilon(prediction, output, x_t, alpha=alpha, sigma=sigma).flatten(1)
    return RangeFigures(
        outside=(x_0.abs() > 1).flatten(1).to(x_0.dtype).mean(1),
        epsilon_std=torch.linalg.vector_norm(epsilon, dim=1) / epsilon.shape[1] ** 0.5,
        minima=x_0.flatten(2).amin((0, 2)),
        maxima=x_0.flatten(2).amax((0, 2)),
    )


def loss_figures(per_image: Tensor) -> dict[str, Tensor]:
    """Return the loss and its logarithm, per image, so that the few hard images of a band do not hide the many."""
    return {"loss": per_image, "log_loss": per_image.clamp_min(torch.finfo(per_image.dtype).tiny).log()}


def band_monitors(figures: Mapping[str, Tensor], t: Times, *, steps: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `NAME/t0` … `NAME/t9`: sum and count of a figure in each decile of t, without waiting for the device.

    Parameters
    ----------
    figures : name → (batch,), detached.
    steps : T of the schedule; decile i holds i T / 10 - 1 < t <= (i + 1) T / 10 - 1.
    """
    band = ((t + 1) * (BANDS / steps)).ceil().long().sub(1).clamp(0, BANDS - 1)
    columns = torch.stack([*figures.values(), torch.ones_like(t)])
    sums = torch.zeros((len(columns), BANDS), dtype=columns.dtype, device=t.device).index_add(1, band, columns)
    *totals, counts = (row.unbind() for row in sums.unbind())
    named = zip(figures, totals, strict=True)
    return {f"{name}/t{i}": (row[i], counts[i]) for name, row in named for i in range(BANDS)}


def channel_extrema(figures: RangeFigures) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return `x_0/min/c0` … and `x_0/max/c0` …, one per channel of the store."""
    minima = {f"x_0/min/c{i}": value for i, value in enumerate(figures.minima.unbind())}
    return minima, {f"x_0/max/c{i}": value for i, value in enumerate(figures.maxima.unbind())}


def range_warning(values: Mapping[str, float]) -> str | None:
    """Return what to do where too much of x̂_0 lies outside [-1, 1], from logged values by name.

    Too much is more than 5 % at t < 0.2 T, where the network has not learnt the range, or 20 % at t > 0.9 T, where an error of
    epsilon grows by sigma / alpha (on the linear schedule up to 157-fold, on the cosine 20,291-fold) and no training is long enough.
    """
    shares = [values[name] for i in _CLEAR_BANDS if (name := f"x_0/outside/t{i}") in values]
    share = sum(shares) / max(1, len(shares))
    if share > _MOST_OUTSIDE:
        return (
            f"{100 * share:.1f} % of the predicted image lies outside [-1, 1] at t < 0.2 T (expected below 5 %): intensities that no "
            "cell has, which samples show as over-exposure. Lower training.learning_rate or train longer; if it stays, use "
            "schedule.prediction=v. x_0/min and x_0/max name the channel."
        )
    noisy = values.get(f"x_0/outside/t{_NOISY_BAND}", 0.0)
    if noisy > _MOST_OUTSIDE_OF_NOISE:
        return (
            f"{100 * noisy:.1f} % of the predicted image lies outside [-1, 1] at t > 0.9 T (expected below 20 %): sampling starts there, "
            "from images that no cell is like. Predicting epsilon does this, its errors growing by sigma / alpha: train with "
            "schedule.prediction=v, or sample this network with solver.threshold=clip."
        )
    return None
