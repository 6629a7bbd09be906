"""Writing a store: checks of the table, images in shards, the AnnData table, and publication at the end."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from cellbridge import runs
from cellbridge.conditions import Condition
from cellbridge.data import shards, store
from cellbridge.data.intensity import IntensityMaps
from cellbridge.errors import StoreError

Batches = shards.Batch | Iterable[shards.Batch]


@dataclass(frozen=True)
class Contents:
    """What goes into a store: the table, and images in its order."""

    obs: pd.DataFrame
    counts: Batches
    masks: Batches | None
    x_T: Batches | None


def write(
    path: Path,
    contents: Contents,
    *,
    head: dict[str, Any],
    intensity: IntensityMaps,
    extra: dict[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write and publish a store; `head` and `extra` are its attributes. `store.write_store` says what fits together."""
    obs = checked_obs(contents.obs)
    attributes = {**head, **_summary(obs, head=head, intensity=intensity)}
    taken = sorted(set(extra) & set(attributes))
    if taken:
        raise StoreError(f"{path}: the attribute {taken[0]} is the store's own. Give it another name.")
    full_scale = int(head["full_scale"])
    if not 0 < full_scale <= 65535:
        raise StoreError(f"{path}: full_scale {full_scale}, expected 1 to 65535 (counts of 8 or 16 bits).")
    with (
        runs.publish_directory(path, manifest={"kind": "store", "format": store.FORMAT}) as directory,
        # Without it a chunk of zeros is left out of the table, and cannot be told from one that was lost.
        zarr.config.set({"array.write_empty_chunks": True}),
    ):
        group = zarr.create_group(directory, attributes={store.ATTRIBUTES: {**attributes, **extra}})
        _write_images(group, directory, contents, head=head, n_cells=len(obs))
        _write_table(group, obs)
        if provenance is not None:
            runs.write_json(directory / runs.PROVENANCE, dict(provenance))


def checked_obs(obs: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of the table with plain string columns and `Metadata_Cell` as its index.

    Raises
    ------
    StoreError : a required column is missing, a Metadata_* value is not a string, or a cell's id is not unique.
    """
    missing = [column for column in store.REQUIRED if column not in obs.columns]
    if missing:
        raise StoreError(f"the table of cells has no column {', '.join(missing)}. Add it (empty strings if unknown).")
    if not len(obs):
        raise StoreError("the table of cells is empty: there is nothing to store. Look at what was rejected before.")
    checked = obs.copy()
    for column in checked.columns:
        values = checked[column]
        if isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(values.dtype):
            checked[column] = values = values.astype(object)
        if values.dtype == object or str(column).startswith("Metadata_"):
            wrong = [value for value in values if not isinstance(value, str)]
            if wrong:
                raise StoreError(
                    f"the table of cells holds {wrong[0]!r} in {column}, expected strings only. "
                    "Read tables with dtype=str and keep_default_na=False."
                )
    twice = checked["Metadata_Cell"].duplicated()
    if twice.any():
        raise StoreError(f'Metadata_Cell "{checked["Metadata_Cell"][twice].iloc[0]}" stands twice; ids must be unique.')
    checked.index = pd.Index(checked["Metadata_Cell"].to_numpy(dtype=object), name=None)
    return checked


def _summary(obs: pd.DataFrame, *, head: dict[str, Any], intensity: IntensityMaps) -> dict[str, Any]:
    n_by_condition: Counter[Condition] = Counter()
    for pair, n in Counter(zip(obs["Metadata_Compound"], obs["Metadata_Concentration"], strict=True)).items():
        n_by_condition[store.condition_of(*pair, control=head["control"])] += n
    ordered = sorted(n_by_condition, key=lambda c: (c.compound != head["control"], c.compound, c.dose_um or 0.0))
    plates = sorted(set(obs["Metadata_Plate"]))
    if tuple(intensity.channels) != tuple(head["channels"]) or intensity.full_scale != head["full_scale"]:
        raise StoreError(
            f"intensity maps for {', '.join(intensity.channels)} up to {intensity.full_scale} do not fit the channels "
            f"{', '.join(head['channels'])} up to {head['full_scale']}. Fit them on the images that are stored."
        )
    return {
        "conditions": [condition.name for condition in ordered],
        "n_by_condition": {condition.name: n_by_condition[condition] for condition in ordered},
        "plates": plates,
        "n_cells": len(obs),
        "intensity": intensity.subset(plates).to_dict(),
        "intensity_reference": intensity.reference,
    }


def _write_images(
    group: zarr.Group, directory: Path, contents: Contents, *, head: dict[str, Any], n_cells: int
) -> None:
    size, n_channels = int(head["size_px"]), len(head["channels"])
    full_scale = int(head["full_scale"])
    counts_type = np.dtype(np.uint8 if full_scale <= 255 else np.uint16)
    image, names = (n_cells, n_channels, size, size), ("cell", "channel", "y", "x")
    layout: list[tuple[str, Batches | None, tuple[int, ...], np.dtype[Any], tuple[str, ...]]] = [
        ("images", contents.counts, image, counts_type, names),
        ("masks", contents.masks, (n_cells, size, size), np.dtype(np.uint8), ("cell", "y", "x")),
        ("x_T", contents.x_T, image, np.dtype(np.float32), names),
    ]
    # Shards of one number of cells for all arrays, which are written side by side: streams may come from one source.
    shard = shards.shard_cells(n_channels * size * size * counts_type.itemsize, n_cells=n_cells)
    bounds = []
    for name, batches, shape, dtype, dimensions in layout:
        if batches is not None:
            array = shards.create(group, name, shape=shape, dtype=dtype, shard=shard, dimensions=dimensions)
            bounds.append(shards.written(array, directory / name, batches, name=name))
    for (low, high), *_ in zip(*bounds, strict=True):
        if low < 0 or high > full_scale:
            raise StoreError(
                f"counts from {low} to {high} do not lie in 0 to the full scale {full_scale}. "
                "Correct full_scale in the manifest."
            )


def _write_table(group: zarr.Group, obs: pd.DataFrame) -> None:
    table = obs.copy()
    for column in [name for name in table.columns if table[name].dtype.kind == "O"]:
        if table[column].nunique() < len(table):
            table[column] = pd.Categorical(table[column])
    checksummed = [ZstdCodec(level=3), Crc32cCodec()]
    with anndata.settings.override(auto_shard_zarr_v3=False):
        anndata.io.write_elem(group, "table", anndata.AnnData(obs=table), dataset_kwargs={"compressors": checksummed})
