"""Translators that know nothing of cells: a copy, a denoised copy, a shift and an affine map per channel.

A model that loses to one of these has learnt nothing that matters: published Fréchet distances have put copying the control above
trained models, and a compound that dims a stain is matched by a shift of its mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter
from torch import Tensor

from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError, did_you_mean
from cellbridge.translators.translator import Translator
from cellbridge.typing import CellBatch, Images

_TRUNCATE = 3.0


@final
class Identity(Translator):
    """Return every cell as it is: what no translation at all is worth."""

    name = "copy the control"

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the same images, said to show `target`."""
        return _with_images(batch, batch.images, target)


@dataclass(frozen=True)
class AffineMap:
    """y = scale · x + shift per channel: (channel,), (channel,)."""

    scale: Tensor
    shift: Tensor


@final
class ChannelAffine(Translator):
    """Map every channel by a fixed affine map per condition, clipped to [-1, 1], the range that images can have.

    Parameters
    ----------
    maps : condition → its map; `fit_mean_shift` and `fit_moments` make them.
    name : "mean shift" where the scales are 1, "moment matching" where both moments are matched.
    """

    def __init__(self, maps: Mapping[Condition, AffineMap], *, name: str):
        self.maps = dict(maps)
        self.name = name

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the images under the target's map.

        Raises
        ------
        ConditionError : no map was fitted for `target`.
        """
        if target not in self.maps:
            known = (condition.name for condition in self.maps)
            raise ConditionError(
                f'{self.name}: nothing was fitted for "{target.name}".{did_you_mean(target.name, known)}'
            )
        fitted = self.maps[target]
        scale, shift = (part.to(batch.images)[:, None, None] for part in (fitted.scale, fitted.shift))
        return _with_images(batch, (batch.images * scale + shift).clamp(-1, 1), target)


def fit_mean_shift(
    control: Images, target: Images, *, control_plates: Sequence[str], target_plates: Sequence[str]
) -> AffineMap:
    """Fit the shift of each channel's mean from control to target, within plates.

    shift_c = Σ_plates w (mean target - mean control), w the plate's share of target cells; plates without control cells count not.

    Parameters
    ----------
    control, target : real training cells (n, channel, height, width).
    control_plates, target_plates : the plate of each.

    Raises
    ------
    ConditionError : no plate holds both.
    """
    shift = _within_plates(_means(control), _means(target), _shared(control_plates, target_plates))
    return AffineMap(torch.ones_like(shift), shift)


def fit_moments(
    control: Images, target: Images, *, control_plates: Sequence[str], target_plates: Sequence[str]
) -> AffineMap:
    """Fit the affine map of each channel that takes mean and standard deviation of the control's pixels to the target's, within plates.

    scale_c² = Σ_plates w var target / Σ_plates w var control;  shift_c = Σ_plates w (mean target - scale_c · mean control), w the
    plate's share of target cells. Plates that hold one of the two alone count not, else their brightness would pass for the effect.

    Raises
    ------
    ConditionError : no plate holds both.
    """
    plates = _shared(control_plates, target_plates)
    of_control = torch.stack([_variance(control[c]) * len(t) for c, t in plates]).sum(dim=0)
    of_target = torch.stack([_variance(target[t]) * len(t) for _, t in plates]).sum(dim=0)
    scale = (of_target / of_control.clamp_min(1e-12)).sqrt()
    return AffineMap(scale, _within_plates(_means(control) * scale, _means(target), plates))


@dataclass(frozen=True)
class Filter:
    """A denoiser of one channel: a Gaussian of `size` sigma, or a median over a square of radius `size`, in px."""

    kind: Literal["gaussian", "median"]
    size: float

    def __str__(self) -> str:
        return f"{self.kind} {self.size:g} px"


FILTERS = (
    *(Filter("gaussian", sigma) for sigma in (0.4, 0.5, 0.6, 0.8, 1.0, 1.3, 1.6)),
    Filter("median", 1),
    Filter("median", 2),
)


@final
class DenoisedCopy(Translator):
    """Return every cell denoised: what smoothing alone is worth, since a squared error rewards it.

    Parameters
    ----------
    filters : one per channel; `choose_filters` picks them.
    """

    name = "denoised copy"

    def __init__(self, filters: Sequence[Filter]):
        self.filters = tuple(filters)

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the denoised images, said to show `target`."""
        noisy = batch.images.detach().cpu().numpy()
        clean = np.stack([_apply(noisy[:, channel], chosen) for channel, chosen in enumerate(self.filters)], axis=1)
        return _with_images(batch, torch.from_numpy(clean).to(batch.images), target)


def choose_filters(images: Images, *, candidates: Sequence[Filter] = FILTERS) -> tuple[Filter, ...]:
    """Pick each channel's denoiser on real training cells, without a clean image: by how well it tells a pixel from its neighbours.

    The filter with its centre left out cannot copy the pixel's own noise, so its error ranks filters as their error against the
    clean image would.

    Parameters
    ----------
    images : (n, channel, height, width), real training cells.

    References
    ----------
    Batson and Royer 2019, "Noise2Self: blind denoising by self-supervision", arXiv:1901.11365, prop. 1.
    """
    noisy = images.detach().cpu().numpy()
    margin = min(5, noisy.shape[-1] // 4)  # at the border, the filters' reflections show them the pixel itself
    inside = (slice(None), slice(margin, -margin), slice(margin, -margin))

    def blind_error(channel: NDArray[np.floating], candidate: Filter) -> float:
        return float(((_apply_blind(channel, candidate) - channel)[inside] ** 2).mean())

    channels = (noisy[:, index] for index in range(noisy.shape[1]))
    return tuple(min(candidates, key=lambda candidate: blind_error(channel, candidate)) for channel in channels)


def _apply(channel: NDArray[np.floating], chosen: Filter) -> NDArray[np.floating]:
    if chosen.kind == "gaussian":
        return np.asarray(gaussian_filter(channel, (0, chosen.size, chosen.size), truncate=_TRUNCATE))
    width = 2 * int(chosen.size) + 1
    return np.asarray(median_filter(channel, size=(1, width, width)))


def _apply_blind(channel: NDArray[np.floating], chosen: Filter) -> NDArray[np.floating]:
    """Apply a filter whose centre is left out."""
    if chosen.kind == "gaussian":
        radius = int(_TRUNCATE * chosen.size + 0.5)
        centre = 1 / np.exp(-0.5 * (np.arange(-radius, radius + 1) / chosen.size) ** 2).sum() ** 2
        return np.asarray((_apply(channel, chosen) - centre * channel) / (1 - centre))
    width = 2 * int(chosen.size) + 1
    footprint = np.ones((1, width, width), dtype=bool)
    footprint[0, width // 2, width // 2] = False
    return np.asarray(median_filter(channel, footprint=footprint))


def mean_within_plates(
    control: Tensor, target: Tensor, *, control_plates: Sequence[str], target_plates: Sequence[str]
) -> Tensor:
    """Return the mean over target cells (n, …) of their plate's mean minus the control's mean on that plate, over plates that hold both.

    Raises
    ------
    ConditionError : no plate holds both.
    """
    return _within_plates(control, target, _shared(control_plates, target_plates))


def _shared(control_plates: Sequence[str], target_plates: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """Return the rows of control and of target cells of every plate that holds both."""
    of_control, of_target = np.asarray(control_plates, dtype=object), np.asarray(target_plates, dtype=object)
    rows = [
        tuple(torch.from_numpy(np.flatnonzero(of == plate)) for of in (of_control, of_target))
        for plate in dict.fromkeys(of_target)
    ]
    shared = [(control, target) for control, target in rows if len(control)]
    if not shared:
        raise ConditionError(
            f"no plate holds both control and target cells: control on {sorted(set(of_control))}, target on {sorted(set(of_target))}."
        )
    return shared


def _within_plates(control: Tensor, target: Tensor, plates: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean over target cells (n, channel) of their plate's mean minus the control's mean on that plate."""
    differences = [(target[t].mean(dim=0) - control[c].mean(dim=0)) * len(t) for c, t in plates]
    return torch.stack(differences).sum(dim=0) / sum(len(t) for _, t in plates)


def _means(images: Images) -> Tensor:
    return images.mean(dim=(2, 3))


def _variance(images: Images) -> Tensor:
    return images.transpose(0, 1).flatten(1).var(dim=1)


def _with_images(batch: CellBatch, images: Images, target: Condition) -> CellBatch:
    return replace(batch, images=images, conditions=(target.name,) * len(batch.cell_ids))
