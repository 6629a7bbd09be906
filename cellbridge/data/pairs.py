"""Pairs of cells, a source and a target each, and the order in which training sees them: a function of the seed and the step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from cellbridge.data import augment
from cellbridge.data.dataset import CellData
from cellbridge.errors import ConfigError
from cellbridge.runtime import generator as make_generator
from cellbridge.typing import Images, Labels

EpochRows = Callable[[int], tuple[Any, ...]]
"""Epoch → rows of the sources, rows of the targets and, if it chooses that too, how each target is turned (see `augment.dihedral`) before
the pair is; (pair,) each, whole numbers: arrays or tensors."""

_ELEMENTS = 8


@dataclass(frozen=True)
class PairedBatch:
    """What one optimiser (micro-)step of a bridge is computed on; row i of the sources is coupled to row i of the targets.

    Parameters
    ----------
    source, target : (batch, channel, y, x), float32 in [-1, 1].
    labels : (batch,), int64: those of the targets.
    weights : (batch,), float32: weight of each pair in the loss.
    source_rows, target_rows : (batch,), int64: positions in the data.
    step, micro : which step and micro-batch this is.
    """

    source: Images
    target: Images
    labels: Labels
    weights: Tensor
    source_rows: Tensor
    target_rows: Tensor
    step: int = 0
    micro: int = 0


class PairSource:
    """Pairs by step and micro-batch: bit-equal whether training ran through or was resumed, in one piece or accumulated.

    The pairs of an epoch are shuffled by (seed, epoch), and batches run on across its end. Both cells of a pair are turned by one
    element, so that a coupling by what stands where is kept.

    Parameters
    ----------
    data : the cells of both sides.
    pairs : epoch → rows in `data`; a pure function, such as `transport.strata.EpochPairs` gives. It is asked for one epoch at a time.
    count : pairs of every epoch.
    batch_size : pairs of one optimiser step.
    accumulation : micro-batches it is cut into.
    seed : of order, noise and flips.
    augment : dequantise, flip and turn; otherwise the images are as stored.
    align : turn each target to the one of its eight orientations that is nearest to its source, pixel by pixel.
    weights : (cell,), weight in the loss of a pair whose target that cell is; 1 if not given.
    """

    def __init__(
        self,
        data: CellData,
        pairs: EpochRows,
        *,
        count: int,
        batch_size: int,
        accumulation: int = 1,
        seed: int,
        augment: bool = True,
        align: bool = False,
        weights: Tensor | None = None,
    ):
        if batch_size < 1 or accumulation < 1 or batch_size % accumulation:
            raise ConfigError(f"batch_size {batch_size} is not a positive multiple of accumulation {accumulation}.")
        if count < 1:
            raise ConfigError(f"{count} pairs in an epoch, expected one or more. Check that both sides have cells.")
        self.data = data
        self.count = count
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.augment = augment
        self.align = align
        self._pairs = pairs
        self._weights = (torch.ones(len(data)) if weights is None else weights.float()).to(data.device)
        self._epoch: tuple[int, Tensor] | None = None
        self._step: tuple[int, PairedBatch] | None = None

    def __call__(self, step: int, micro: int = 0) -> PairedBatch:
        """Return micro-batch `micro` (0 … accumulation - 1) of optimiser step `step` (0, 1, …)."""
        if self._step is None or self._step[0] != step:
            self._step = (step, self._whole(step))
        whole = self._step[1]
        size = self.batch_size // self.accumulation
        part = slice(micro * size, (micro + 1) * size)
        return PairedBatch(
            whole.source[part],
            whole.target[part],
            whole.labels[part],
            whole.weights[part],
            whole.source_rows[part],
            whole.target_rows[part],
            step,
            micro,
        )

    def rows(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of the sources and of the targets that a step sees and how the targets are turned: (batch_size,) each, int64, on the CPU."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.count)
            parts.append(self._shuffled(epoch)[:, offset : offset + stop - start])
            start += parts[-1].shape[1]
        source, target, turns = torch.cat(parts, 1)
        return source, target, turns

    def images(
        self, source: Tensor, target: Tensor, generator: Generator | None, *, turns: Tensor | None = None
    ) -> tuple[Images, Images]:
        """Return the images of pairs, aligned and turned as in training.

        Parameters
        ----------
        source, target : (pair,), rows in the data.
        generator : on the data's device; None leaves the images as stored, but for turns and alignment.
        turns : (pair,), how each target is turned before.
        """
        still = torch.zeros(len(source), dtype=torch.int64, device=self.data.device)
        sides = ((source, still), (target, still if turns is None else turns.to(self.data.device)))
        pair = [self.data.batch(rows, generator, elements=elements) for rows, elements in sides]
        if self.align:
            pair[1] = nearest_orientation(*pair)
        if generator is None:
            return pair[0], pair[1]
        turned = augment.draw_dihedral(len(source), generator=generator)
        return augment.dihedral(pair[0], turned), augment.dihedral(pair[1], turned)

    def _whole(self, step: int) -> PairedBatch:
        device = self.data.device
        source, target, turns = (rows.to(device) for rows in self.rows(step))
        noise = make_generator(device, "augment pairs", self.seed, step) if self.augment else None
        images = self.images(source, target, noise, turns=turns)
        return PairedBatch(*images, self.data.labels[target], self._weights[target], source, target)

    def _shuffled(self, epoch: int) -> Tensor:
        """Return sources, targets and turns of an epoch in the order of training: (3, pair), int64."""
        if self._epoch is None or self._epoch[0] != epoch:
            sides = [torch.as_tensor(rows, dtype=torch.int64, device="cpu") for rows in self._pairs(epoch)]
            found = [len(side) for side in sides]
            if set(found) != {self.count}:
                raise ConfigError(
                    f"epoch {epoch} has {found[:2]} sources and targets, expected {self.count} pairs of rows."
                )
            if len(sides) == 2:
                sides.append(torch.zeros(self.count, dtype=torch.int64))
            order = torch.randperm(self.count, generator=make_generator("cpu", "pair order", self.seed, epoch))
            self._epoch = (epoch, torch.stack(sides)[:, order])
        return self._epoch[1]


def nearest_orientation(source: Images, target: Images) -> Images:
    """Return each target flipped and turned to the one of its eight orientations that is nearest to its source, in squared distance."""
    size = len(target)
    turned = torch.stack(
        [augment.dihedral(target, torch.full((size,), element, device=target.device)) for element in range(_ELEMENTS)]
    )
    distances = (turned - source).square().flatten(2).sum(2)
    return turned[distances.argmin(0), torch.arange(size, device=target.device)]
