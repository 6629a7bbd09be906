"""The null rows of an evaluation: the trivial translators, fitted on real training cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cellbridge.baselines.one_change import fit_one_change
from cellbridge.baselines.trivial import (
    ChannelAffine,
    DenoisedCopy,
    Identity,
    choose_filters,
    fit_mean_shift,
    fit_moments,
)
from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError
from cellbridge.translators.translator import Translator
from cellbridge.typing import Images

_FILTERED = 256
"""Cells that a denoiser is chosen on, at most."""


@dataclass(frozen=True)
class TrainingCells:
    """Real cells of one condition and the plate of each."""

    images: Images
    plates: Sequence[str]


def null_translators(
    source: TrainingCells, target: TrainingCells, *, condition: Condition
) -> tuple[dict[str, Translator], dict[str, str]]:
    """Fit the null rows.

    Parameters
    ----------
    source, target : real training cells; with none, what needs them is left out.
    condition : that the target cells show.

    Returns
    -------
    translators by key ("copy", "shift", "moments", "mean_image", "denoised"), and for each that is missing, why.
    """
    nulls: dict[str, Translator] = {"copy": Identity()}
    missing: dict[str, str] = {}
    if len(source.images) and len(target.images):
        plates = {"control_plates": source.plates, "target_plates": target.plates}
        try:
            shift = fit_mean_shift(source.images, target.images, **plates)
            moments = fit_moments(source.images, target.images, **plates)
            nulls["shift"] = ChannelAffine({condition: shift}, name="mean shift per channel")
            nulls["moments"] = ChannelAffine({condition: moments}, name="moment matching per channel")
            nulls["mean_image"] = fit_one_change(source.images, target.images, condition=condition, **plates)
        except ConditionError as error:
            missing["mean shift, moment matching and mean difference image"] = str(error)
    else:
        missing["mean shift, moment matching and mean difference image"] = "no training cells of both conditions"
    if len(source.images):
        nulls["denoised"] = DenoisedCopy(choose_filters(_spread(source.images)))
    else:
        missing["denoised copy"] = "no training cells of the source condition"
    return nulls, missing


def _spread(images: Images) -> Images:
    """Return images that lie evenly over all: cells are in the order of their store, plate by plate."""
    return images[torch.linspace(0, len(images) - 1, min(len(images), _FILTERED)).long()]
