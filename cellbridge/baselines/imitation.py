"""The affine map per channel that comes nearest to what a model did: what it has done beyond shifting and stretching intensities.

A null row that is fitted on training cells can be beaten by a shift of another size. This one cannot: a model that only maps
intensities is equal to its imitation.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from cellbridge.baselines.trivial import AffineMap
from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError
from cellbridge.translators.translator import Translator
from cellbridge.typing import CellBatch, Images


@final
class PlateAffine(Translator):
    """Map every channel by an affine map per plate, clipped to [-1, 1].

    Parameters
    ----------
    maps : plate → its map.
    condition : the target that they were fitted for.
    """

    name = "affine imitation"

    def __init__(self, maps: Mapping[str, AffineMap], *, condition: Condition):
        self.maps = dict(maps)
        self.condition = condition

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the images, each under its own plate's map.

        Raises
        ------
        ConditionError : the maps were fitted for another target, or not on a cell's plate.
        """
        unknown = sorted(set(batch.plates) - set(self.maps))
        if target != self.condition or unknown:
            what = f"plate {unknown[0]}" if unknown else f'"{target.name}"'
            raise ConditionError(f"{self.name}: nothing was fitted for {what}, only for {self.condition.name}.")
        scale = torch.stack([self.maps[plate].scale for plate in batch.plates]).to(batch.images)
        shift = torch.stack([self.maps[plate].shift for plate in batch.plates]).to(batch.images)
        images = (batch.images * scale[:, :, None, None] + shift[:, :, None, None]).clamp(-1, 1)
        conditions = (target.name,) * len(batch.cell_ids)
        return CellBatch(images, batch.cell_ids, batch.plates, conditions, batch.seeds)


def imitate(sources: Images, outputs: Images, *, plates: Sequence[str], condition: Condition) -> PlateAffine:
    """Fit the imitation of a model to its own outputs: least squares over all pixels of a plate and channel.

    scale_c = cov(source, output) / var(source);  shift_c = mean output - scale_c · mean source

    Parameters
    ----------
    sources, outputs : (n, channel, height, width); row i of one was made from row i of the other.
    plates : of each cell.
    """
    names = np.asarray(plates, dtype=object)
    maps = {}
    for plate in dict.fromkeys(plates):
        rows = torch.from_numpy(np.flatnonzero(names == plate))
        maps[str(plate)] = _least_squares(_pixels(sources[rows]), _pixels(outputs[rows]))
    return PlateAffine(maps, condition=condition)


def _least_squares(sources: Tensor, outputs: Tensor) -> AffineMap:
    """Regress outputs on sources, both (channel, pixel); a channel without spread keeps its values and is shifted."""
    means = sources.mean(dim=1), outputs.mean(dim=1)
    centred = sources - means[0][:, None]
    variance = (centred**2).mean(dim=1)
    covariance = (centred * (outputs - means[1][:, None])).mean(dim=1)
    scale = torch.where(variance > 0, covariance / variance.clamp_min(1e-12), torch.ones_like(variance))
    return AffineMap(scale, means[1] - scale * means[0])


def _pixels(images: Images) -> Tensor:
    return images.double().transpose(0, 1).flatten(1)
