"""Cells of a store → batches with a seed for every draw → counts of their translations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cellbridge import processes
from cellbridge.conditions import Condition
from cellbridge.data.balance import draw_evenly
from cellbridge.data.store import Store
from cellbridge.errors import StoreError
from cellbridge.progress import bar
from cellbridge.runtime import autocast, derive_seed
from cellbridge.translators.ddib import Ddib
from cellbridge.translators.translator import Translator
from cellbridge.typing import CellBatch

Rows = np.ndarray


@dataclass(frozen=True)
class Draws:
    """Which cells are translated, each as often as it is drawn: all cells once, then all of them again.

    Parameters
    ----------
    rows : (draw,), of the store. samples : (draw,), number of the cell's draw, from 0.
    """

    rows: Rows
    samples: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> "Draws":
        return Draws(self.rows[part], self.samples[part])

    def batches(self, size: int) -> "list[Draws]":
        """Return them in parts of a size."""
        return [self[start : start + size] for start in range(0, len(self), size)]


@dataclass(frozen=True)
class Machine:
    """Where and how batches are worked on, and the seed that every draw's own is derived from."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    seed: int


def choose_rows(
    store: Store, source: Condition, *, split: str | None, plates: Sequence[str] | None, n: int | None, seed: int
) -> Rows:
    """Return the rows of the cells to translate.

    Raises
    ------
    StoreError : there is none.
    """
    rows = store.select(split=split, conditions=[source.name], plates=plates)
    if len(rows) == 0:
        raise StoreError(f"{store.info.path}: no cell of {source.name} in split {split!r} to translate.")
    return rows if n is None else draw_evenly(rows, store.plates[rows], n=n, seed=seed)


def drawn(rows: Rows, samples: int) -> Draws:
    """Return each row `samples` times."""
    return Draws(np.tile(rows, samples), np.repeat(np.arange(samples), len(rows)))


def draw_seed(seed: int, cell: str, sample: int) -> int:
    """Return the seed of one draw of a cell; the first is the one that a single draw has."""
    return derive_seed("translate", seed, cell, *([sample] if sample else []))


def batch_of(store: Store, draws: Draws, machine: Machine) -> CellBatch:
    """Return the source cells of some draws on the device."""
    ids = tuple(store.obs["Metadata_Cell"].iloc[draws.rows])
    seeds = [draw_seed(machine.seed, cell, sample) for cell, sample in zip(ids, draws.samples.tolist(), strict=True)]
    return CellBatch(
        images=torch.from_numpy(store.images(draws.rows)).to(machine.device),
        cell_ids=ids,
        plates=tuple(store.plates[draws.rows]),
        conditions=tuple(store.condition_names[draws.rows]),
        seeds=torch.tensor(seeds, device=machine.device),
    )


def translated(
    store: Store, draws: Draws, translator: Translator, targets: Sequence[Condition], machine: Machine
) -> Iterator[tuple[Tensor, ...]]:
    """Yield, on the main process, for each batch of draws: counts (target, draw, channel, y, x), how many were clipped, and x_T if it is kept.

    Every process has to run through.
    """
    kept = torch.uint8 if store.info.full_scale <= 255 else torch.uint16

    def work(part: Draws) -> tuple[Tensor, ...]:
        with torch.inference_mode(), autocast(machine.device, machine.dtype):
            batch = batch_of(store, part, machine)
            noise: tuple[Tensor, ...] = ()
            if isinstance(translator, Ddib) and translator.shares_noise:
                noise = (translator.encode(batch).float().cpu(),)
            images = [translator.translate(batch, target=target).images.float().cpu() for target in targets]
        counts, share = store.intensity.to_counts(torch.cat(images), list(batch.plates) * len(targets))
        clipped = torch.tensor(round(share * counts.numel()))
        return counts.to(kept).view(len(targets), *images[0].shape), clipped, *noise

    with bar("translate", total=len(draws), unit="cells") as shown:
        for result in processes.in_order(draws.batches(machine.batch_size), work):
            yield result
            shown.advance(result[0].shape[1])
