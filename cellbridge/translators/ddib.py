"""Dual diffusion implicit bridges: to noise under the source's model, back to an image under the target's.

Both halves follow the probability-flow ODE, so the noise in between is that very cell's, and a translation to the source's own condition
returns the cell.

References
----------
Su et al. 2022, "Dual diffusion implicit bridges for image-to-image translation", arXiv:2203.08382, algorithm 1.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor

from cellbridge.conditions import Condition
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.inversion import Inversion
from cellbridge.diffusion.prior import XTPrior
from cellbridge.diffusion.round_trip import require_invertible
from cellbridge.diffusion.samplers import Flow, Sampler
from cellbridge.diffusion.watching import Watched
from cellbridge.errors import ConditionError, ConfigError, did_you_mean
from cellbridge.runtime import noise_per_image
from cellbridge.translators.translator import TracedTranslator, Trajectory, pick_frames
from cellbridge.typing import CellBatch, Images

_INVERSION, _SAMPLER = Inversion(), Flow()


@final
class Ddib(TracedTranslator):
    """Invert under the source, generate under the target.

    Parameters
    ----------
    source : denoiser that the cells are inverted under, without guidance.
    source_label : the source condition's row in its embedding.
    targets : condition → the denoiser to generate with (guided or not) and the condition's row in its embedding.
    inversion, sampler : how the two halves are solved.
    x_T : "inverted" keeps the cell; "fresh" draws noise from each image's seed instead, which gives a new cell of the target (a
        control that shows what the inversion carries); priors draw it, by the same seeds, from the law of each target's noise.

    Raises
    ------
    ConfigError : the sampler adds noise of its own to inverted noise, so that the cell would not come back.
    """

    name = "ddib"

    def __init__(
        self,
        source: Denoiser,
        source_label: int,
        targets: Mapping[Condition, tuple[Denoiser, int]],
        *,
        inversion: Inversion = _INVERSION,
        sampler: Sampler = _SAMPLER,
        x_T: Literal["inverted", "fresh"] | Mapping[Condition, XTPrior] = "inverted",
        name: str = "ddib",
    ):
        if x_T == "inverted":
            require_invertible(sampler)
        self.source = source
        self.source_label = source_label
        self.targets = dict(targets)
        self.inversion = inversion
        self.sampler = sampler
        self.x_T = x_T
        self.name = name
        self._encoded: tuple[CellBatch, Images] | None = None

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the cells under `target`; several targets of one batch share one inversion.

        Raises
        ------
        ConditionError : no model was given for `target`.
        """
        self._model(target)
        if isinstance(self.x_T, str):
            return self.decode(self.encode(batch), batch, target)
        noise = self.x_T[target].sample(batch.seeds, tuple(batch.images.shape[1:]))
        return self.decode(noise.to(batch.images), batch, target)

    def trace(self, batch: CellBatch, *, target: Condition, frames: int) -> Trajectory:
        """Return what the models believe each cell to be on its way to noise, which is reached at 0.5, and back.

        A frame at time (t + 1) / 2T is the source's estimate of x_0 at t, and one at 1 - (t + 1) / 2T the target's.

        Raises
        ------
        ConditionError : as `translate`. ConfigError : x_T is not the cells' own.
        """
        denoiser, label = self._model(target)
        if self.x_T != "inverted":
            raise ConfigError("x_T is not the cells' own, so that no way leads from them. Use x_T: inverted.")
        before, after = Watched(self.source), Watched(denoiser)
        x_T = self.inversion.invert(before, batch.images, _labels(self.source_label, batch.images), seeds=batch.seeds)
        result = self.sampler.sample(after, x_T, _labels(label, x_T), seeds=batch.seeds)
        twice = 2 * self.source.schedule.steps
        seen = [((t + 1) / twice, images) for t, images in before.seen]
        seen += [(1 - (t + 1) / twice, images) for t, images in after.seen]
        return pick_frames(batch.images, seen, result, frames=frames)

    @property
    def shares_noise(self) -> bool:
        """Whether all targets of a batch start from the same noise; a prior has one for each."""
        return isinstance(self.x_T, str)

    def encode(self, batch: CellBatch) -> Images:
        """Return the noise x_T of each cell; the last batch's is remembered, as long as it is the same object."""
        if self._encoded is None or self._encoded[0] is not batch:
            self._encoded = (batch, self._noise(batch))
        return self._encoded[1]

    def decode(self, x_T: Images, batch: CellBatch, target: Condition) -> CellBatch:
        """Return the cells that the noise gives under `target`."""
        denoiser, label = self._model(target)
        labels = _labels(label, x_T)
        images = self.sampler.sample(denoiser, x_T, labels, seeds=batch.seeds)
        return replace(batch, images=images, conditions=(target.name,) * len(images))

    def _noise(self, batch: CellBatch) -> Images:
        if self.x_T == "fresh":
            return noise_per_image(batch.seeds, tuple(batch.images.shape[1:]), purpose="x_T").to(batch.images)
        labels = _labels(self.source_label, batch.images)
        return self.inversion.invert(self.source, batch.images, labels, seeds=batch.seeds)

    def _model(self, target: Condition) -> tuple[Denoiser, int]:
        if target not in self.targets:
            known = [condition.name for condition in self.targets]
            raise ConditionError(f'no model translates to "{target.name}".{did_you_mean(target.name, known)}')
        return self.targets[target]


def _labels(label: int, images: Tensor) -> Tensor:
    return torch.full((len(images),), label, dtype=torch.int64, device=images.device)
