"""One and the same change for every cell: what a translation has to beat before it may be said to treat each cell as that cell.

Squared error favours a mean: the mean change of a model is often nearer to the truth than the model. So losing to this row accuses nobody,
but a model that is no nearer to each cell's truth than its own mean change has not shown that it looks at the cell.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from cellbridge.baselines.trivial import mean_within_plates
from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError
from cellbridge.translators.translator import Translator
from cellbridge.typing import CellBatch, Images


@final
class OneChange(Translator):
    """Add one image to every cell of a plate, clipped to [-1, 1].

    Parameters
    ----------
    changes : plate → (channel, height, width), or the one change of all plates.
    condition : the target that they were fitted for.
    """

    name = "mean difference image"

    def __init__(self, changes: Mapping[str, Tensor] | Tensor, *, condition: Condition):
        self.changes = changes
        self.condition = condition

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the images with their plate's change.

        Raises
        ------
        ConditionError : the changes were fitted for another target, or not on a cell's plate.
        """
        changes = dict.fromkeys(batch.plates, self.changes) if isinstance(self.changes, Tensor) else self.changes
        unknown = sorted(set(batch.plates) - set(changes))
        if target != self.condition or unknown:
            what = f"plate {unknown[0]}" if unknown else f'"{target.name}"'
            raise ConditionError(f"{self.name}: nothing was fitted for {what}, only for {self.condition.name}.")
        added = torch.stack([changes[plate] for plate in batch.plates]).to(batch.images)
        conditions = (target.name,) * len(batch.cell_ids)
        return CellBatch((batch.images + added).clamp(-1, 1), batch.cell_ids, batch.plates, conditions, batch.seeds)


def fit_one_change(
    control: Images,
    target: Images,
    *,
    control_plates: Sequence[str],
    target_plates: Sequence[str],
    condition: Condition,
) -> OneChange:
    """Fit the difference of mean images, target less control, within plates: one change for all.

    Parameters
    ----------
    control, target : real training cells (n, channel, height, width), each cell in the middle of its image.
    control_plates, target_plates : the plate of each.

    Raises
    ------
    ConditionError : no plate holds both.
    """
    change = mean_within_plates(control, target, control_plates=control_plates, target_plates=target_plates)
    return OneChange(change, condition=condition)


def own_change(sources: Images, outputs: Images, *, plates: Sequence[str], condition: Condition) -> OneChange:
    """Fit the one change per plate that comes nearest to what a model did: its mean change, pixel by pixel.

    A value at the end of the range says only that the change was large enough, so values there count only where there are no others. A model
    that adds one image to every cell is equal to this row.

    Parameters
    ----------
    sources, outputs : (n, channel, height, width); row i of one was made from row i of the other.
    plates : of each cell.
    """
    names = np.asarray(plates, dtype=object)
    changes = {}
    for plate in dict.fromkeys(plates):
        rows = torch.from_numpy(np.flatnonzero(names == plate))
        changes[str(plate)] = _mean_change(sources[rows].double(), outputs[rows].double())
    return OneChange(changes, condition=condition)


def _mean_change(sources: Tensor, outputs: Tensor) -> Tensor:
    free = (outputs.abs() < 1).double()
    among_free = (free * (outputs - sources)).sum(dim=0) / free.sum(dim=0).clamp_min(1)
    at_the_end = torch.where((outputs == outputs[:1]).all(dim=0), 2 * outputs[0], (outputs - sources).mean(dim=0))
    return torch.where(free.sum(dim=0) > 0, among_free, at_the_end)
