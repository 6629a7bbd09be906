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
    """How the predicted image and noise are spread, per image and channel; all (batch, channel), detached.

    Parameters
    ----------
    outside : share of the values of x̂_0 outside [-1, 1].
    epsilon_std : root mean square of ε̂, which is its spread about its true mean 0.
    minima, maxima : of x̂_0 over pixels.
    """

    outside: Tensor
    epsilon_std: Tensor
    minima: Tensor
    maxima: Tensor


@dataclass(frozen=True)
class Watched:
    """What a training watches beside its loss: by name, single figures, or grids (decile, channel) whose name has a place for each.

    Parameters
    ----------
    means : name → (sum, count).
    minima, maxima : name → value; infinite where a grid is empty.
    """

    means: dict[str, tuple[Tensor, Tensor]]
    minima: dict[str, Tensor]
    maxima: dict[str, Tensor]


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
    epsilon = to_epsilon(prediction, output, x_t, alpha=alpha, sigma=sigma).flatten(2)
    return RangeFigures(
        outside=(x_0.abs() > 1).flatten(2).to(x_0.dtype).mean(2),
        epsilon_std=torch.linalg.vector_norm(epsilon, dim=2) / epsilon.shape[2] ** 0.5,
        minima=x_0.flatten(2).amin(2),
        maxima=x_0.flatten(2).amax(2),
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
    columns = torch.stack([*figures.values(), torch.ones_like(t)])
    sums = torch.zeros((len(columns), BANDS), dtype=columns.dtype, device=t.device)
    *totals, counts = (row.unbind() for row in sums.index_add(1, _band(t, steps), columns).unbind())
    named = zip(figures, totals, strict=True)
    return {f"{name}/t{i}": (row[i], counts[i]) for name, row in named for i in range(BANDS)}


def _band(t: Times, steps: int) -> Tensor:
    return ((t + 1) * (BANDS / steps)).ceil().long().sub(1).clamp(0, BANDS - 1)


def range_monitors(figures: RangeFigures, t: Times, *, steps: int) -> Watched:
    """Return the spread of image and noise by decile of t, by channel (the extrema), and by both, without waiting for the device.

    `x_0/outside/t3` and `epsilon/std/t3` are of a decile, `x_0/min/c1` and `x_0/max/c1` of a channel of the store, and
    `x_0/outside/t3/c1`, `epsilon/std/t3/c1`, `x_0/min/t3/c1`, `x_0/max/t3/c1` of one channel in one decile, kept as grids.
    """
    overall = {
        "x_0/outside": figures.outside.mean(1),
        "epsilon/std": figures.epsilon_std.square().mean(1).sqrt(),
    }
    means = band_monitors(overall, t, steps=steps)
    inside = _band(t, steps)[:, None] == torch.arange(BANDS, device=t.device)  # (batch, band)
    counts = inside.sum(0).to(t.dtype)[:, None].expand(-1, figures.outside.shape[1])
    for name, values in (("x_0/outside", figures.outside), ("epsilon/std", figures.epsilon_std)):
        means[f"{name}/t{{}}/c{{}}"] = (torch.where(inside[:, :, None], values[:, None], 0).sum(0), counts)
    minima = {f"x_0/min/c{i}": value for i, value in enumerate(figures.minima.amin(0).unbind())}
    maxima = {f"x_0/max/c{i}": value for i, value in enumerate(figures.maxima.amax(0).unbind())}
    minima["x_0/min/t{}/c{}"] = torch.where(inside[:, :, None], figures.minima[:, None], torch.inf).amin(0)
    maxima["x_0/max/t{}/c{}"] = torch.where(inside[:, :, None], figures.maxima[:, None], -torch.inf).amax(0)
    return Watched(means, minima, maxima)


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
            "schedule.prediction=v. x_0/outside/t0/c0 … tell the channels apart."
        )
    noisy = values.get(f"x_0/outside/t{_NOISY_BAND}", 0.0)
    if noisy > _MOST_OUTSIDE_OF_NOISE:
        return (
            f"{100 * noisy:.1f} % of the predicted image lies outside [-1, 1] at t > 0.9 T (expected below 20 %): sampling starts there, "
            "from images that no cell is like. Predicting epsilon does this, its errors growing by sigma / alpha: train with "
            "schedule.prediction=v, or sample this network with solver.threshold=clip."
        )
    return None
