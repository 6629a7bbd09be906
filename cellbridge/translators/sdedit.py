"""SDEdit: noise a cell part of the way, and denoise it under the target.

What the noise leaves of a cell is kept, and what it hides is drawn anew from the target's law: the more noise, the more of the target and the
less of the cell. At strength 0 the cell is returned, at strength 1 nothing is left of it.

References
----------
Meng et al. 2022, "SDEdit: Guided image synthesis and editing with stochastic differential equations", arXiv:2108.01073, algorithm 1.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch

from cellbridge.conditions import Condition
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.part_way import PartWay
from cellbridge.diffusion.samplers import Flow, Sampler, signal_and_noise
from cellbridge.diffusion.watching import Watched
from cellbridge.errors import ConditionError, ConfigError, did_you_mean
from cellbridge.runtime import noise_per_image
from cellbridge.translators.translator import TracedTranslator, Trajectory, pick_frames
from cellbridge.typing import CellBatch, Images

_SAMPLER = Flow()


@final
class Sdedit(TracedTranslator):
    """x_t = alpha_t x_0 + sigma_t epsilon at t = strength T - 1, with each cell's own noise; then the sampler, from there.

    All of the sampler's steps are taken between t and the clean image, so that a translation costs the same calls at every strength.

    Parameters
    ----------
    targets : condition → the denoiser to generate with (guided or not) and the condition's row in its embedding.
    strength : in [0, 1], rounded to whole steps of the schedule. 1 starts from noise alone, though the schedule may end with a little
        of the image left.

    Raises
    ------
    ConfigError : strength is outside [0, 1], or is less than two steps of the schedule.
    """

    name = "sdedit"

    def __init__(
        self,
        targets: Mapping[Condition, tuple[Denoiser, int]],
        *,
        strength: float,
        sampler: Sampler = _SAMPLER,
        name: str = "sdedit",
    ):
        if not 0 <= strength <= 1:
            raise ConfigError(f"strength = {strength:g}: expected 0 (the cell as it is) to 1 (noise alone).")
        self.targets = {
            condition: (PartWay(denoiser, strength) if strength else denoiser, label)
            for condition, (denoiser, label) in targets.items()
        }
        self.strength = strength
        self.sampler = sampler
        self.name = name

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the cells under `target`.

        Raises
        ------
        ConditionError : no model was given for `target`.
        """
        denoiser, label = self._model(target)
        images = batch.images if self.strength == 0 else self._denoise(denoiser, label, batch)
        return replace(batch, images=images, conditions=(target.name,) * len(images))

    def trace(self, batch: CellBatch, *, target: Condition, frames: int) -> Trajectory:
        """Return what the model believes each cell to be, from the first look at the noised cell on.

        A frame at time 1 - (t + 1) / (T' + 1) is the estimate of x_0 at t, T' being the noisiest step's number and one.

        Raises
        ------
        ConditionError : as `translate`. ConfigError : strength 0.
        """
        denoiser, label = self._model(target)
        if self.strength == 0:
            raise ConfigError("strength = 0 returns the cells as they are: there is no trajectory to show.")
        watched, noisiest = Watched(denoiser), denoiser.schedule.steps
        result = self._denoise(watched, label, batch)
        seen = [(1 - (t + 1) / (noisiest + 1), images) for t, images in watched.seen]
        return pick_frames(batch.images, seen, result, frames=frames)

    def _denoise(self, denoiser: Denoiser, label: int, batch: CellBatch) -> Images:
        noise = noise_per_image(batch.seeds, tuple(batch.images.shape[1:]), purpose="x_T").to(batch.images)
        alpha, sigma = (0.0, 1.0) if self.strength == 1 else signal_and_noise(denoiser, denoiser.schedule.noisiest)
        x = alpha * batch.images + sigma * noise
        labels = torch.full((len(x),), label, dtype=torch.int64, device=x.device)
        return self.sampler.sample(denoiser, x, labels, seeds=batch.seeds)

    def _model(self, target: Condition) -> tuple[Denoiser, int]:
        if target not in self.targets:
            known = [condition.name for condition in self.targets]
            raise ConditionError(f'no model translates to "{target.name}".{did_you_mean(target.name, known)}')
        return self.targets[target]
