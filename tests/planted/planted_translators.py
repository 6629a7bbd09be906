"""Translators that fail in known ways, and one that does not: what an evaluation must tell apart."""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from cellbridge.baselines.trivial import ChannelAffine
from cellbridge.conditions import Condition
from cellbridge.translators.translator import Translator
from cellbridge.typing import CellBatch

Known = Mapping[str, Mapping[str, Tensor]]
"""Target → cell id → the image that the cell has under it."""


def _with(batch: CellBatch, images: Tensor, target: Condition) -> CellBatch:
    return replace(batch, images=images, conditions=(target.name,) * len(batch.cell_ids))


def _drawn(batch: CellBatch, pool: int) -> Tensor:
    """Return for each cell a row of a pool, by the cell's own seed."""
    return (batch.seeds % pool).long()


@final
class Honest(Translator):
    """Renders each cell's counterfactual: the oracle that every verdict must let pass. A cell that the truth does not know is copied."""

    name = "honest"

    def __init__(self, known: Known):
        self.known = known

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        known = self.known[target.name]
        images = [known.get(cell, image) for cell, image in zip(batch.cell_ids, batch.images, strict=True)]
        return _with(batch, torch.stack(images), target)


@final
class Copier(Translator):
    """Returns the cell as it is."""

    name = "copier"

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        return _with(batch, batch.images, target)


@final
class IntensityShifter(Translator):
    """Shifts and stretches each channel as training cells of the target would have it."""

    name = "shifter"

    def __init__(self, fitted: ChannelAffine):
        self.fitted = fitted

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        return self.fitted.translate(batch, target=target)


@final
class Memoriser(Translator):
    """Returns training cells of the target, turned by a quarter where its seed says so."""

    name = "memoriser"

    def __init__(self, training: Mapping[str, Tensor]):
        self.training = training

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        pool = self.training[target.name]
        images = [
            torch.rot90(pool[row], int(seed // 7) % 4, (1, 2))
            for row, seed in zip(_drawn(batch, len(pool)), batch.seeds, strict=True)
        ]
        return _with(batch, torch.stack(images), target)


@final
class Deaf(Translator):
    """Translates to one condition, whichever is asked for."""

    name = "deaf"

    def __init__(self, inner: Translator, favourite: Condition):
        self.inner = inner
        self.favourite = favourite

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        return _with(batch, self.inner.translate(batch, target=self.favourite).images, target)


@final
class Destroyer(Translator):
    """Returns another cell of the same plate under the target, to each a cell of its own: right in distribution, the cells exchanged."""

    name = "destroyer"

    def __init__(self, known: Known, plates: Mapping[str, str]):
        self.known = known
        self.plates = plates

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        known, images = self.known[target.name], []
        for cell, plate, image in zip(batch.cell_ids, batch.plates, batch.images, strict=True):
            same = sorted(other for other in known if self.plates[other] == plate)
            place = same.index(cell) if cell in known else 0
            images.append(known[same[(place + len(same) // 2) % len(same)]] if same else image)
        return _with(batch, torch.stack(images), target)


@final
class OnOnePlate(Translator):
    """Translates the cells of one plate, and copies those of any other."""

    name = "one plate"

    def __init__(self, inner: Translator, plate: str):
        self.inner = inner
        self.plate = plate

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        works = torch.tensor([plate == self.plate for plate in batch.plates])[:, None, None, None]
        translated = self.inner.translate(batch, target=target).images
        return _with(batch, torch.where(works, translated, batch.images), target)


@final
class WithoutChannel(Translator):
    """Translates well, but leaves one channel dark."""

    name = "without DNA"

    def __init__(self, inner: Translator, channel: int):
        self.inner = inner
        self.channel = channel

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        images = self.inner.translate(batch, target=target).images.clone()
        images[:, self.channel] = batch.images[:, self.channel].amin(dim=(1, 2), keepdim=True)
        return _with(batch, images, target)


@final
class SameForAll(Translator):
    """Gives every cell of a plate the mean change that the target makes there: right on average, and blind to the cell."""

    name = "same for all"

    def __init__(self, changes: Mapping[str, Translator]):
        self.changes = changes

    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        return self.changes[target.name].translate(batch, target=target)
