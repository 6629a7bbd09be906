"""Cells as training sees them, a batch at a time, in an order that is a pure function of the seed and the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from cellbridge.data import augment
from cellbridge.data.held import Held, InMemory, Place, hold
from cellbridge.data.intensity import AsinhTerms, IntensityMaps
from cellbridge.errors import ConfigError, StoreError
from cellbridge.runtime import generator as make_generator
from cellbridge.typing import Images, Labels

if TYPE_CHECKING:
    from cellbridge.data.store import Store


@dataclass(frozen=True)
class TrainingBatch:
    """What one optimiser (micro-)step is computed on.

    Parameters
    ----------
    images : (batch, channel, y, x), float32 in [-1, 1].
    labels : (batch,), int64: row of the condition embedding.
    weights : (batch,), float32: weight of each sample in the loss.
    rows : (batch,), int64: position of each sample in the data.
    """

    images: Images
    labels: Labels
    weights: Tensor
    rows: Tensor


class CellData:
    """A selection of cells as integer counts, normalised and augmented a batch at a time on one device.

    8- or 16-bit counts take a half or a quarter of what float32 images would: 16-bit cells of 5 x 64 x 64 need 41 kB each.

    Parameters
    ----------
    counts : (cell, channel, y, x), uint8 or uint16, square; or where such counts lie (`held`).
    plates : the plate of each cell.
    intensity : the maps of these plates.
    labels : (cell,), int64.
    device : where the batches are made, and counts that are given as an array stay.
    """

    def __init__(
        self,
        counts: np.ndarray | Tensor | Held,
        *,
        plates: Sequence[str],
        intensity: IntensityMaps,
        labels: Tensor,
        device: torch.device | str = "cpu",
    ):
        self.device = torch.empty(0, device=device).device  # as tensors there call it: `cuda` is `cuda:0`
        self._held = counts if isinstance(counts, Held) else _checked(torch.as_tensor(counts), self.device)
        n = self._held.shape[0]
        if not n or len(labels) != n or len(plates) != n:
            raise StoreError(f"{n} cells, {len(labels)} labels and {len(plates)} plates: expected as many of each.")
        self.labels = labels.to(self.device, torch.int64)
        self.full_scale = intensity.full_scale
        self._plate = intensity.plate_rows(plates).to(self.device)
        self._terms: AsinhTerms = intensity.terms.to(self.device, torch.float32)

    @classmethod
    def load(
        cls,
        store: "Store",
        rows: np.ndarray | Sequence[int],
        *,
        labels: Tensor,
        device: torch.device | str = "cpu",
        place: Place = "auto",
    ) -> "CellData":
        """Take a selection of a store; `labels` are in the order of `rows`, and `place` says where the counts lie (see `held.hold`)."""
        chosen = np.asarray(rows, dtype=np.int64)
        counts = hold(store, chosen, device=torch.device(device), place=place)
        plates = list(store.plates[chosen])
        return cls(counts, plates=plates, intensity=store.intensity, labels=labels, device=device)

    def __len__(self) -> int:
        return self._held.shape[0]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: (channel, y, x)."""
        return self._held.shape[1:]

    def counts(self, rows: Tensor) -> Tensor:
        """Return counts as float32 whole numbers: (batch, channel, y, x), on the device."""
        bits = self._held.gather(self.placed(rows) if self._held.device == self.device else rows.cpu())
        if bits.device != self.device:
            pinned = self.device.type == "cuda"
            bits = (bits.pin_memory() if pinned else bits).to(self.device, non_blocking=pinned)
        if bits.dtype != torch.int16:
            return bits.float()
        # Devices know uint16 less well than the CPU does, where it saves a pass.
        return (bits.view(torch.uint16) if bits.device.type == "cpu" else bits.to(torch.int32) & 0xFFFF).float()

    def placed(self, rows: Tensor) -> Tensor:
        """Return rows on the device; from page-locked memory, so that the copy is queued like a kernel and no step waits for it."""
        if rows.device == self.device:
            return rows
        return (
            rows.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else rows.to(self.device)
        )

    def batch(
        self,
        rows: Tensor,
        generator: Generator | None = None,
        *,
        elements: Tensor | None = None,
        following: Tensor | None = None,
    ) -> Images:
        """Return images, float32 in [-1, 1].

        Parameters
        ----------
        rows : (batch,), int64, positions in this data; on the CPU where no step may wait for the device.
        generator : on the device; draws the noise inside each count's bin, a flip and a quarter turn per image. Without it
            the images are those of the store, up to float32 rounding.
        elements : (batch,), how each image is turned (see `augment.dihedral`), in place of a draw.
        following : rows (on the CPU) of the batch after this one, which are read meanwhile where counts lie in files.
        """
        counts = self.counts(rows)
        if following is not None:
            self._held.expect(following)
        rows = self.placed(rows)
        if generator is not None:
            counts = augment.dequantise(counts, full_scale=self.full_scale, generator=generator)
        images = self._terms.at(self._plate.index_select(0, rows)).forward(counts)
        if elements is None and generator is not None:
            elements = augment.draw_dihedral(len(rows), generator=generator)
        if elements is not None:
            images = augment.dihedral(images, elements)
        return images.clamp_(-1.0, 1.0)

    def bin_edges(self, images: Images, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges of the bin that each value of a batch lies in, in float64 where the device has it (see `AsinhTerms.bin_edges`).

        Parameters
        ----------
        images : from `batch`, dequantised and turned or not.
        rows : (batch,), their positions in this data.
        """
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        terms = self._terms.at(self._plate.index_select(0, rows.to(self.device))).to(self.device, dtype)
        return terms.bin_edges(images.to(dtype), full_scale=self.full_scale)


def _checked(counts: Tensor, device: torch.device) -> Held:
    if counts.dtype not in (torch.uint8, torch.uint16) or counts.ndim != 4 or counts.shape[2] != counts.shape[3]:
        raise StoreError(
            f"counts of shape {tuple(counts.shape)} and type {counts.dtype}, expected uint8 or uint16 of "
            "(cell, channel, size, size)."
        )
    return InMemory(counts, device=device)


class BatchSource:
    """Batches by step and micro-batch: bit-equal whether training ran through or was resumed.

    The samples of a step are a function of (seed, step) alone: without `sampling`, each epoch is a permutation of the data by
    (seed, epoch), and batches run on across its end; with it, samples are drawn with replacement by (seed, step). Noise
    and flips are drawn for the whole step, so that accumulation changes nothing either.

    Parameters
    ----------
    data : the cells.
    batch_size : samples of one optimiser step.
    accumulation : micro-batches it is cut into.
    seed : of order, noise and flips.
    augment : dequantise, flip and turn; otherwise the images are as stored.
    sampling : (cell,), non-negative, not all 0: the probability of each cell is in proportion.
    weights : (cell,), weight of each cell in the loss; 1 if not given.
    """

    def __init__(
        self,
        data: CellData,
        *,
        batch_size: int,
        accumulation: int = 1,
        seed: int,
        augment: bool = True,
        sampling: Tensor | None = None,
        weights: Tensor | None = None,
    ):
        if batch_size < 1 or accumulation < 1 or batch_size % accumulation:
            raise ConfigError(f"batch_size {batch_size} is not a positive multiple of accumulation {accumulation}.")
        for name, values in (("sampling", sampling), ("weights", weights)):
            if values is not None and (
                len(values) != len(data) or not bool((values >= 0).all()) or not bool(values.any())
            ):
                raise ConfigError(
                    f"{name}: expected {len(data)} numbers of 0 or more that are not all 0, one per cell."
                )
        self.data = data
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.augment = augment
        self._cumulative = None if sampling is None else sampling.double().cpu().cumsum(0)
        self._weights = (torch.ones(len(data)) if weights is None else weights.float()).to(data.device)
        self._epoch: tuple[int, Tensor] | None = None
        self._step: tuple[int, TrainingBatch] | None = None

    def __call__(self, step: int, micro: int = 0) -> TrainingBatch:
        """Return micro-batch `micro` (0 … accumulation - 1) of optimiser step `step` (0, 1, …)."""
        kept = self._step
        if kept is None or kept[0] != step:
            self._step = kept = (step, self._whole(step))
        whole = kept[1]
        size = self.batch_size // self.accumulation
        part = slice(micro * size, (micro + 1) * size)
        return TrainingBatch(whole.images[part], whole.labels[part], whole.weights[part], whole.rows[part])

    def rows(self, step: int) -> Tensor:
        """Return which cells step `step` sees, in order: (batch_size,), int64, on the CPU."""
        if self._cumulative is not None:
            draw = torch.rand(
                self.batch_size, generator=make_generator("cpu", "sampling", self.seed, step), dtype=torch.float64
            )
            # The right-hand side of a flat stretch, so that a cell of weight 0 is never drawn.
            drawn = torch.searchsorted(self._cumulative, draw * self._cumulative[-1], right=True)
            return drawn.clamp_max(len(self.data) - 1)
        n = len(self.data)
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while start < stop:
            epoch, offset = divmod(start, n)
            parts.append(self._permutation(epoch)[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _whole(self, step: int) -> TrainingBatch:
        rows = self.rows(step)
        noise = make_generator(self.data.device, "augment", self.seed, step) if self.augment else None
        images = self.data.batch(rows, noise, following=self.rows(step + 1))
        placed = self.data.placed(rows)
        return TrainingBatch(images, self.data.labels[placed], self._weights[placed], placed)

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(len(self.data), generator=make_generator("cpu", "epoch", self.seed, epoch))
            self._epoch = (epoch, order)
        return self._epoch[1]
