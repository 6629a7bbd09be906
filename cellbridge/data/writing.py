"""Writing a store: checks of the table, images in shards, the AnnData table, and publication at the end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, ZstdCodec

from cellbridge import runs
from cellbridge.data import store
from cellbridge.data.intensity import IntensityMaps
from cellbridge.errors import StoreError

MAX_SHARD_CELLS = 2048
MAX_SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class Contents:
    """What goes into a store: the table, and images in its order."""

    obs: pd.DataFrame
    counts: np.ndarray | Iterable[np.ndarray]
    masks: np.ndarray | Iterable[np.ndarray] | None
    x_T: np.ndarray | Iterable[np.ndarray] | None  # noqa: N815


def write(
    path: Path, contents: Contents, *, head: dict[str, Any], intensity: IntensityMaps, extra: dict[str, Any]
) -> None:
    """Write and publish a store; `head` and `extra` are its attributes. `store.write_store` says what fits together."""
    obs = checked_obs(contents.obs)
    attributes = {**head, **_summary(obs, head=head, intensity=intensity)}
    taken = sorted(set(extra) & set(attributes))
    if taken:
        raise StoreError(f"{path}: the attribute {taken[0]} is the store's own. Give it another name.")
    full_scale = int(head["full_scale"])
    if not 0 < full_scale <= 65535:
        raise StoreError(f"{path}: full_scale {full_scale}, expected 1–65535 (counts of 8 or 16 bits).")
    with runs.publish_directory(path, manifest={"kind": "store", "format": store.FORMAT}) as directory:
        # Without it a chunk of zeros is left out, and cannot be told from one that was lost.
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.create_group(directory, attributes={store.ATTRIBUTES: {**attributes, **extra}})
            _write_images(group, contents, head=head, n_cells=len(obs))
            _write_table(group, obs)


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
    pairs = obs.groupby(["Metadata_Compound", "Metadata_Concentration"], sort=True).size()
    n_by_condition: dict[Any, int] = {}
    for (compound, concentration), n in pairs.items():
        condition = store.condition_of(compound, concentration, control=head["control"])
        n_by_condition[condition] = n_by_condition.get(condition, 0) + int(n)
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


def _write_images(group: zarr.Group, contents: Contents, *, head: dict[str, Any], n_cells: int) -> None:
    size, n_channels = int(head["size_px"]), len(head["channels"])
    full_scale = int(head["full_scale"])
    counts_type = np.dtype(np.uint8 if full_scale <= 255 else np.uint16)
    image = (n_channels, size, size)
    names = ("cell", "channel", "y", "x")
    layout = [
        ("images", contents.counts, image, counts_type, names),
        ("masks", contents.masks, (size, size), np.dtype(np.uint8), ("cell", "y", "x")),
        ("x_T", contents.x_T, image, np.dtype(np.float32), names),
    ]
    present = [entry for entry in layout if entry[1] is not None]
    largest = max(int(np.prod(shape)) * dtype.itemsize for _, _, shape, dtype, _ in present)
    # Shards of one number of cells for all arrays, so that they are written side by side and one block is in memory.
    shard = max(1, min(MAX_SHARD_CELLS, MAX_SHARD_BYTES // largest, n_cells))
    arrays = [
        _create(group, name, shape=(n_cells, *shape), dtype=dtype, shard=shard, dimensions=dimensions)
        for name, _, shape, dtype, dimensions in present
    ]
    streams = [
        _blocks(batches, array=array, block=shard) for (_, batches, *_), array in zip(present, arrays, strict=True)
    ]
    for index, blocks in enumerate(zip(*streams, strict=True)):
        if int(blocks[0].max(initial=0)) > full_scale:
            raise StoreError(
                f"a count of {int(blocks[0].max())} lies above the full scale {full_scale}. "
                "Correct full_scale in the manifest."
            )
        for array, block in zip(arrays, blocks, strict=True):
            array[index * shard : index * shard + len(block)] = block


def _create(
    group: zarr.Group,
    name: str,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    shard: int,
    dimensions: tuple[str, ...],
) -> zarr.Array:
    blosc = BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.bitshuffle, typesize=dtype.itemsize)
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(1, *shape[1:]),
        shards=(shard, *shape[1:]),
        compressors=[blosc, Crc32cCodec()],
        dimension_names=dimensions,
        fill_value=0,
    )


def _blocks(batches: np.ndarray | Iterable[np.ndarray], *, array: zarr.Array, block: int) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    n_held = n_seen = 0
    for batch in [batches] if isinstance(batches, np.ndarray) else batches:
        kind = "u" if array.dtype.kind == "u" else "f"
        if batch.shape[1:] != array.shape[1:] or batch.dtype.kind != kind:
            raise StoreError(
                f"{array.basename}: a batch of shape {batch.shape} and type {batch.dtype}, expected (cell, "
                f"{', '.join(str(n) for n in array.shape[1:])}) of type {array.dtype}."
            )
        n_seen += len(batch)
        while len(batch):
            some, batch = batch[: block - n_held], batch[block - n_held :]
            held.append(some)
            n_held += len(some)
            if n_held == block:
                yield np.concatenate(held)
                held, n_held = [], 0
    if n_seen != array.shape[0]:
        raise StoreError(f"{array.basename}: {n_seen} images for {array.shape[0]} table rows. Give one image per row.")
    if held:
        yield np.concatenate(held)


def _write_table(group: zarr.Group, obs: pd.DataFrame) -> None:
    table = obs.copy()
    for column in table.columns[table.dtypes == object]:
        if table[column].nunique() < len(table):
            table[column] = pd.Categorical(table[column])
    checksummed = [ZstdCodec(level=3), Crc32cCodec()]
    with anndata.settings.override(auto_shard_zarr_v3=False):
        anndata.io.write_elem(group, "table", anndata.AnnData(obs=table), dataset_kwargs={"compressors": checksummed})
