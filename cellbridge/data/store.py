"""The store of single cells: a Zarr v3 group of checksummed images beside an AnnData table; written whole or not at all.

    STORE.zarr/zarr.json      attributes `cellbridge`: channels, plates, conditions, intensity maps, provenance
               images/        (cell, channel, y, x) counts, uint8 or uint16; sharded, one cell per inner chunk
               masks/         (cell, y, x) uint8, optional: 0 other, 1 this cell's cytoplasm, 2 its nucleus
               x_T/           (cell, channel, y, x) float32, optional: the noise an image was generated from
               table/         AnnData with `obs` only: one row per cell, Metadata_* columns as strings
               provenance.json  command, paths and commit, of stores that `prepare` made; no part of the store's hash
               manifest.json  size and sha256 of every file, written last

zarr by itself returns zeros for a missing chunk and other pixels for a flipped byte; here both raise StoreError.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellbridge import runs
from cellbridge.conditions import Condition
from cellbridge.data.store_info import ATTRIBUTES, FORMAT, REMEDY, StoreInfo, describe, read_info
from cellbridge.errors import ConditionError, StoreError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import zarr

    from cellbridge.data.intensity import IntensityMaps
    from cellbridge.data.shards import Reader
    from cellbridge.data.writing import Batches

__all__ = [
    "ATTRIBUTES",
    "FORMAT",
    "REMEDY",
    "REQUIRED",
    "Store",
    "StoreInfo",
    "condition_of",
    "describe",
    "open_store",
    "read_info",
    "write_store",
]

REQUIRED = (
    "Metadata_Cell",
    "Metadata_Plate",
    "Metadata_Well",
    "Metadata_Site",
    "Metadata_Compound",
    "Metadata_Concentration",
    "Metadata_pert_type",
    "Metadata_Split",
)
"""Columns that every store's `obs` has, as strings ("" where there is nothing to say)."""

_ROWS_AT_ONCE = 2048


def condition_of(compound: str, concentration: str, *, control: str) -> Condition:
    """Return a row's condition: compound and dose, or the compound alone for the control and where no dose is given.

    Raises
    ------
    StoreError : the concentration is not a number, or the name would be read back as another condition.
    """
    if compound == control or not concentration:
        condition = Condition(compound)
    else:
        try:
            condition = Condition(compound, float(concentration))
        except ValueError:
            condition = Condition(compound, math.nan)
        if not 0 <= (condition.dose_um or 0.0) < math.inf:
            raise StoreError(
                f'Metadata_Concentration "{concentration}" of compound "{compound}" is not a number of micromolar. '
                "Give micromolar as a plain number, or leave it empty."
            ) from None
    if Condition.parse(condition.name) != condition:
        raise StoreError(
            f'condition "{condition.name}" would be read back as "{Condition.parse(condition.name).name}". '
            'Rename the compound without "@" and without a trailing dose.'
        )
    return condition


class Store:
    """A store that is open for reading; rows are positions in `obs`, in any order and repeated at will."""

    def __init__(self, info: StoreInfo, group: "zarr.Group", obs: "pd.DataFrame"):
        self.info = info
        self.obs = obs
        self._group = group

    @cached_property
    def intensity(self) -> "IntensityMaps":
        """The maps between counts and [-1, 1]."""
        return self.info.intensity_maps()

    @cached_property
    def condition_names(self) -> "np.ndarray":
        """The condition of every row, by name: (cell,), str objects."""
        return _condition_names(self.obs, control=self.info.control)

    @cached_property
    def plates(self) -> "np.ndarray":
        """The plate of every row: (cell,), str objects."""
        return self.obs["Metadata_Plate"].to_numpy(dtype=object)

    def counts(self, rows: "np.ndarray | Sequence[int]") -> "np.ndarray":
        """Return counts (cell, channel, y, x), uint8 or uint16, in the camera's units."""
        return self._read("images", rows)

    def images(self, rows: "np.ndarray | Sequence[int]") -> "np.ndarray":
        """Return images (cell, channel, y, x), float32 in [-1, 1] by the map of each cell's plate."""
        import numpy as np
        import torch

        rows = np.asarray(rows, dtype=np.int64)
        images = np.empty((len(rows), len(self.info.channels), self.info.size_px, self.info.size_px), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            counts = torch.from_numpy(self.counts(some).astype(np.int32))
            images[start : start + len(some)] = self.intensity.forward(counts, list(self.plates[some])).numpy()
        return images

    def masks(self, rows: "np.ndarray | Sequence[int]") -> "np.ndarray | None":
        """Return masks (cell, y, x), uint8: 0 other, 1 cytoplasm, 2 nucleus; None where the store has none."""
        return self._read("masks", rows) if "masks" in self._group else None

    def x_T(self, rows: "np.ndarray | Sequence[int]") -> "np.ndarray | None":
        """Return the noise (cell, channel, y, x), float32, behind each generated image; None where it was not kept."""
        return self._read("x_T", rows) if "x_T" in self._group else None

    def reader(self, name: str) -> "Reader":
        """Return what reads batches of an array ("images") again and again, faster than the methods above."""
        from cellbridge.data.shards import Reader

        array: Any = self._group[name]
        return Reader(array, self.info.path / name)

    def select(
        self,
        *,
        split: str | None = None,
        conditions: Iterable[str] | None = None,
        plates: Iterable[str] | None = None,
    ) -> "np.ndarray":
        """Return the rows (int64, ascending) of a split, of some conditions (by name) and of some plates; maybe none.

        Raises
        ------
        ConditionError : a condition that the store does not hold.
        StoreError : a plate or a split that the store does not hold.
        """
        import numpy as np

        chosen = np.ones(len(self.obs), dtype=bool)
        if split is not None:
            chosen &= _among(self.obs["Metadata_Split"], [split], what="split", path=self.info.path)
        if plates is not None:
            chosen &= _among(self.obs["Metadata_Plate"], plates, what="plate", path=self.info.path)
        if conditions is not None:
            names = [conditions] if isinstance(conditions, str) else list(conditions)
            chosen &= _among(self.condition_names, names, what="condition", path=self.info.path)
        return np.flatnonzero(chosen).astype(np.int64)

    def _read(self, name: str, rows: "np.ndarray | Sequence[int]") -> "np.ndarray":
        import numpy as np

        from cellbridge.data import shards

        array: Any = self._group[name]
        return shards.read_cells(array, self.info.path / name, np.asarray(rows, dtype=np.int64))


def open_store(path: Path) -> Store:
    """Open a store for reading, after checking that every file is there.

    Raises
    ------
    StoreError : absent, incomplete (a chunk or file is missing) or damaged.
    """
    import anndata
    import zarr

    info = describe(path)
    try:
        group = zarr.open_group(info.path, mode="r", use_consolidated=False)
        obs: pd.DataFrame = anndata.io.read_elem(group["table/obs"])
    except (LookupError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise StoreError(f"{info.path}: damaged ({error}). {REMEDY}") from error
    for column in obs.columns[obs.dtypes == "category"]:
        obs[column] = obs[column].astype(object)
    shape = (info.n_cells, len(info.channels), info.size_px, info.size_px)
    found = getattr(group["images"], "shape", None)
    if found != shape or len(obs) != info.n_cells:
        raise StoreError(
            f"{info.path}: images of shape {found} beside {len(obs)} table rows, expected {shape}. "
            "Prepare the store again."
        )
    obs.index = obs["Metadata_Cell"].astype(object).rename(None)
    return Store(info, group, obs)


def write_store(
    path: Path,
    *,
    obs: "pd.DataFrame",
    counts: "Batches",
    channels: Sequence[str],
    full_scale: int,
    size_px: int,
    pixel_um: float | None,
    control: str,
    intensity: "IntensityMaps",
    masks: "Batches | None" = None,
    x_T: "Batches | None" = None,
    attributes: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> StoreInfo:
    """Write a store, published under its name only when it is whole; the same inputs give the same bytes.

    Parameters
    ----------
    obs : one row per cell, in the order of the images, with the columns `REQUIRED`; Metadata_* are strings.
    counts : (cell, channel, y, x), integers; one array, or batches of any sizes, held one shard at a time.
    channels : stain names.
    full_scale : the largest possible count; up to 255 is stored in 8 bits, up to 65535 in 16.
    size_px, pixel_um : width of an image, and of a pixel (None if unknown).
    control : the compound that stands for "untreated", such as DMSO.
    intensity : a map for every plate in `obs`.
    masks, x_T : (cell, y, x) uint8 and (cell, channel, y, x) float32, in the same order; arrays or batches.
    attributes : more JSON for the store's attributes (aliases, rejected, settings …).
    provenance : JSON that says when and by what it was made; kept in a file that the store's hash leaves out.
    overwrite : replace a store of that name, by one rename at the end.

    Raises
    ------
    StoreError : the name is taken, or table, images and maps do not fit together.
    """
    from cellbridge.data import writing

    path = Path(path)
    if runs.is_taken(path) and not overwrite:
        raise StoreError(f"{path}: exists already. Remove it, or choose another name.")
    contents = writing.Contents(obs=obs, counts=counts, masks=masks, x_T=x_T)
    head = {
        "format": FORMAT,
        "channels": list(channels),
        "size_px": size_px,
        "pixel_um": pixel_um,
        "full_scale": full_scale,
        "control": control,
    }
    writing.write(path, contents, head=head, intensity=intensity, extra=dict(attributes or {}), provenance=provenance)
    return describe(path)


def _condition_names(obs: "pd.DataFrame", *, control: str) -> "np.ndarray":
    import numpy as np

    pairs = list(zip(obs["Metadata_Compound"], obs["Metadata_Concentration"], strict=True))
    names = {pair: condition_of(*pair, control=control).name for pair in dict.fromkeys(pairs)}
    return np.array([names[pair] for pair in pairs], dtype=object)


def _among(values: "pd.Series | np.ndarray", wanted: Iterable[str], *, what: str, path: Path) -> "np.ndarray":
    import numpy as np

    names = list(wanted)
    found = np.asarray(values, dtype=object)
    known = dict.fromkeys(found)
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        kind = ConditionError if what == "condition" else StoreError
        cure = " Hold cells out with `prepare --set split=…`, then train again." if what == "split" else ""
        raise kind(f'{path}: {what} "{unknown}" is not in the store.{did_you_mean(str(unknown), known)}{cure}')
    return np.isin(found, np.array(names, dtype=object))
