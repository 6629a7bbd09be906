"""The store of translated cells: a row per (target, draw, source cell), which says what it was made from and how."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from cellbridge.conditions import Condition
from cellbridge.data.regrouping import Regrouping
from cellbridge.data.store import Store, write_store
from cellbridge.translating.cells import Draws, draw_seed

_PLACE = tuple(f"Metadata_{name}" for name in ("Cell", "Source", "Batch", "Plate", "Well", "Site", "Split"))
_MASKS_AT_ONCE = 2048


@dataclass(frozen=True)
class Making:
    """What was made: of cells of `source`, under each of `targets`, by the model of a name, with chance from `seed`."""

    source: Condition
    targets: Sequence[Condition]
    model: str
    seed: int


@contextmanager
def regrouped(results: Iterator[tuple[Tensor, ...]], store: Store, *, targets: int, out: Path) -> Iterator[Regrouping]:
    """Run a translation to its end, keeping its results beside `out`, one target after the other, for the block."""
    info = store.info
    shape = (len(info.channels), info.size_px, info.size_px)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder,
        Regrouping(Path(folder), targets=targets, image_shape=shape, full_scale=info.full_scale) as regrouping,
    ):
        for counts, clipped, *noise in results:
            regrouping.add(counts, *noise, clipped=int(clipped))
        yield regrouping


def write_translations(
    out: Path,
    store: Store,
    draws: Draws,
    making: Making,
    images: Regrouping,
    *,
    attributes: dict[str, Any],
    overwrite: bool,
) -> None:
    """Write the images and their table; scale, masks and maps are those of the source cells."""
    obs = pd.concat([rows_of(store, draws, making, target) for target in making.targets], ignore_index=True)
    write_beside_source(
        out,
        store,
        np.tile(draws.rows, len(making.targets)),
        obs=obs,
        counts=images.counts(),
        x_T=images.x_T(),
        attributes=attributes,
        overwrite=overwrite,
    )


def rows_of(store: Store, draws: Draws, making: Making, target: Condition) -> pd.DataFrame:
    """Return the table of all draws under one target."""
    table = store.obs.iloc[draws.rows].rename(columns=_of_source).reset_index(drop=True)
    numbers = draws.samples.tolist()
    table["Metadata_SourceCell"] = table["Metadata_Cell"]
    sources = table["Metadata_SourceCell"]
    table["Metadata_Cell"] = [
        f"{cell}>{target.name}" + (f"#{number}" if number else "")
        for cell, number in zip(sources, numbers, strict=True)
    ]
    table["Metadata_Compound"] = target.compound
    table["Metadata_Concentration"] = target.dose
    table["Metadata_pert_type"] = "negcon" if target.name == store.info.control else "trt"
    table["Metadata_Origin"] = "generated"
    table["Metadata_SourceCondition"] = making.source.name
    table["Metadata_TargetCondition"] = target.name
    table["Metadata_Model"] = making.model
    table["Metadata_Sample"] = [str(number) for number in numbers]
    table["Metadata_Seed"] = [
        str(draw_seed(making.seed, cell, number)) for cell, number in zip(sources, numbers, strict=True)
    ]
    return table


def write_beside_source(
    out: Path,
    store: Store,
    rows: np.ndarray,
    *,
    obs: pd.DataFrame,
    counts: np.ndarray | Iterator[np.ndarray],
    x_T: Iterator[np.ndarray] | None,
    attributes: dict[str, Any],
    overwrite: bool,
) -> None:
    """Write images as a store of the same scale, maps and masks as that of their sources, `rows`."""
    info = store.info
    write_store(
        out,
        obs=obs,
        counts=counts,
        channels=info.channels,
        full_scale=info.full_scale,
        size_px=info.size_px,
        pixel_um=info.pixel_um,
        control=info.control,
        intensity=store.intensity,
        masks=_masks(store, rows),
        x_T=x_T,
        attributes=attributes,
        overwrite=overwrite,
    )


def _masks(store: Store, rows: np.ndarray) -> Iterator[np.ndarray] | None:
    """Yield the masks of the source cells, some at a time; None where the store has none."""
    if store.masks(rows[:0]) is None:
        return None
    parts = (rows[start : start + _MASKS_AT_ONCE] for start in range(0, len(rows), _MASKS_AT_ONCE))
    return (masks for part in parts if (masks := store.masks(part)) is not None)


def _of_source(column: str) -> str:
    """Name a column of the source cell: where it lies holds for its image too, anything else is true of the source alone."""
    if column in _PLACE or column.startswith("Location_"):
        return column
    prefix = "Metadata_" if column.startswith("Metadata_") else ""
    return f"{prefix}Source_{column.removeprefix('Metadata_')}"
