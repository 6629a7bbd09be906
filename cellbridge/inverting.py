"""Cells of a store → the noise that a model inverts them to: what fitting a prior and testing x_T share.

Beside a translation lies, where it is asked for, a store of what its x_T is held against, with a row per (reference, cell) and the kind of
reference in `Metadata_Reference`:

    "double steps"   source cells, inverted in twice as many solver steps
    "generated"      images that the source's model made of N(0, I), inverted again
    "train"          cells of the source condition on the model's own training plates, inverted
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cellbridge import processes
from cellbridge.assembly import Model
from cellbridge.data.balance import draw_evenly
from cellbridge.data.store import Store, write_store
from cellbridge.diffusion.inversion import Inversion
from cellbridge.diffusion.samplers import Sampler
from cellbridge.runtime import autocast, derive_seed, noise_per_image
from cellbridge.typing import Images, Seeds

Reference = Literal["double steps", "generated", "train"]


@dataclass(frozen=True)
class Inverter:
    """A model, and how cells are inverted under it.

    Parameters
    ----------
    purpose, seed : with a cell's id they give its seed.
    """

    model: Model
    inversion: Inversion
    device: torch.device
    dtype: torch.dtype
    purpose: str
    seed: int
    batch_size: int = 64

    def seeds(self, ids: "list[str]") -> Seeds:
        """Return the seed of each cell."""
        return torch.tensor([derive_seed(self.purpose, self.seed, cell) for cell in ids], device=self.device)

    def labels(self, n: int) -> Tensor:
        """Return the condition's row of the embedding, n times."""
        return torch.full((n,), self.model.row, dtype=torch.int64, device=self.device)

    def invert(self, images: Images, seeds: Seeds) -> Images:
        """Return x_T of images on the device, in float32 on the CPU."""
        labels = self.labels(len(images))
        with torch.inference_mode(), autocast(self.device, self.dtype):
            return self.inversion.invert(self.model.denoiser, images, labels, seeds=seeds).float().cpu()

    def generate(self, shape: tuple[int, ...], seeds: Seeds, *, sampler: Sampler) -> Images:
        """Return the images that the model makes of N(0, I), without guidance, on the device."""
        labels = self.labels(len(seeds))
        with torch.inference_mode(), autocast(self.device, self.dtype):
            noise = noise_per_image(seeds, shape, purpose="x_T")
            return sampler.sample(self.model.denoiser, noise, labels, seeds=seeds).float()


def inverted(store: Store, rows: np.ndarray, inverter: Inverter) -> Iterator[Tensor]:
    """Yield x_T (cell, channel, y, x) of the cells, batch after batch, on the main process; every process has to run through."""

    def work(part: np.ndarray) -> tuple[Tensor, ...]:
        images = torch.from_numpy(store.images(part)).to(inverter.device)
        return (inverter.invert(images, inverter.seeds(list(store.obs["Metadata_Cell"].iloc[part]))),)

    for (x_T,) in processes.in_order(_batches(rows, inverter.batch_size), work):
        yield x_T


def generated(store: Store, rows: np.ndarray, inverter: Inverter, *, sampler: Sampler) -> Iterator[tuple[Tensor, ...]]:
    """Yield counts and x_T of images that the model generates, one for each of the cells, whose plate's map gives the counts."""
    shape = (len(store.info.channels), store.info.size_px, store.info.size_px)

    def work(part: np.ndarray) -> tuple[Tensor, ...]:
        seeds = inverter.seeds(list(store.obs["Metadata_Cell"].iloc[part]))
        images = inverter.generate(shape, seeds, sampler=sampler)
        counts, _ = store.intensity.to_counts(images.cpu(), list(store.plates[part]))
        return counts, inverter.invert(images, seeds)

    yield from processes.in_order(_batches(rows, inverter.batch_size), work)


def write_references(
    out: Path,
    store: Store,
    rows: np.ndarray,
    inverter: Inverter,
    *,
    sampler: Sampler,
    doubled: Inversion,
    attributes: dict[str, object],
    n: int,
    overwrite: bool,
) -> None:
    """Invert what a translation's x_T is held against, and write it as a store beside the translation; see the top of this file.

    Parameters
    ----------
    rows : the cells that were translated; n of them, drawn evenly over plates, are looked at.
    inverter : the source's model and the inversion of the translation. doubled : the inversion in twice as many steps.
    """
    names = set(store.condition_names[rows])
    training = np.flatnonzero(
        np.isin(store.condition_names, list(names))
        & (store.obs["Metadata_Split"] == "train").to_numpy()
        & np.isin(store.plates, list(inverter.model.card.plates))
    )
    some = draw_evenly(rows, store.plates[rows], n=n, seed=inverter.seed)
    chosen: dict[Reference, np.ndarray] = {"double steps": some, "generated": some}
    if len(training):
        chosen["train"] = draw_evenly(training, store.plates[training], n=n, seed=inverter.seed)
    twice = replace(inverter, inversion=doubled)
    noises: dict[Reference, Tensor] = {}
    counts: dict[Reference, np.ndarray] = {}
    for kind, of_kind in chosen.items():
        if kind == "generated":
            pairs = list(generated(store, of_kind, inverter, sampler=sampler))
            made, found = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            counts[kind] = torch.cat(made).numpy() if made else np.empty(0)
        else:
            found = list(inverted(store, of_kind, twice if kind == "double steps" else inverter))
            counts[kind] = store.counts(of_kind)
        noises[kind] = torch.cat(found) if found else torch.empty(0)
    if not processes.is_main():
        return
    info = store.info
    write_store(
        out,
        obs=pd.concat([_obs(store, of_kind, kind) for kind, of_kind in chosen.items()], ignore_index=True),
        counts=np.concatenate([counts[kind].astype(store.counts(some[:1]).dtype) for kind in chosen]),
        masks=_masks(store, chosen),
        x_T=np.concatenate([noises[kind].numpy() for kind in chosen]),
        channels=info.channels,
        full_scale=info.full_scale,
        size_px=info.size_px,
        pixel_um=info.pixel_um,
        control=info.control,
        intensity=store.intensity,
        attributes=attributes,
        overwrite=overwrite,
    )


def _batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _obs(store: Store, rows: np.ndarray, kind: Reference) -> pd.DataFrame:
    table = store.obs.iloc[rows].reset_index(drop=True)
    table["Metadata_SourceCell"] = table["Metadata_Cell"]
    table["Metadata_Cell"] = table["Metadata_Cell"] + f"/{kind}"
    table["Metadata_Reference"] = kind
    table["Metadata_Origin"] = "generated" if kind == "generated" else "x_T reference"
    return table


def _masks(store: Store, chosen: dict[Reference, np.ndarray]) -> np.ndarray | None:
    """Return the cells' masks; of a generated image there is none, and it stays empty."""
    masks = [store.masks(of_kind) for of_kind in chosen.values()]
    if any(part is None for part in masks):
        return None
    return np.concatenate(
        [np.zeros_like(part) if kind == "generated" else part for kind, part in zip(chosen, masks, strict=True)]
    )
