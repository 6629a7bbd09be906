"""A plate at a glance: how many cells each well has, how bright each stain is, and how its counts are distributed.

Everything is measured on the camera's counts; memory holds sums per well and one histogram per stain and group.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cellbridge.data.images import read_crop
from cellbridge.data.layout import SHAPES, well_position
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.survey import read_field
from cellbridge.errors import ImageError

if TYPE_CHECKING:
    from cellbridge.data.store import Store

Array = np.ndarray[Any, np.dtype[Any]]

GROUPS = ("control", "treated")
BINS = 160
_AT_ONCE = 1024
_NUCLEUS_PX = 12
"""Width that nuclei are shrunk to before they are counted."""


@dataclass
class Well:
    """What was seen of one well.

    Parameters
    ----------
    control : whether it is a control well.
    units : how many fields, or ready-made crops, were looked at; for a store its cells.
    cells : how many cells or nuclei they have.
    sums, pixels : (channel,), sum of the counts, and of how many pixels.
    """

    control: bool
    units: int
    cells: int
    sums: Array
    pixels: int


@dataclass
class Overview:
    """Sums over wells, and histograms over control and treated wells.

    Parameters
    ----------
    edges : (bin + 1,), counts at which bins begin, growing geometrically; the first bin has 0, too.
    bins : (group, channel, bin), pixels.
    """

    channels: tuple[str, ...]
    full_scale: int
    plates: dict[str, dict[str, Well]] = field(default_factory=dict)
    edges: Array = field(init=False)
    bins: Array = field(init=False)

    def __post_init__(self) -> None:
        self.edges = bin_edges(self.full_scale)
        self.bins = np.zeros((len(GROUPS), len(self.channels), len(self.edges) - 1), np.int64)

    def add(self, plate: str, well: str, seen: Well, bins: Array) -> None:
        """Add what was seen of a well, and the histogram (channel, bin) of it."""
        self.bins[0 if seen.control else 1] += bins
        known = self.plates.setdefault(plate, {}).get(well)
        if known is None:
            self.plates[plate][well] = seen
            return
        known.control |= seen.control
        known.units += seen.units
        known.cells += seen.cells
        known.sums = known.sums + seen.sums
        known.pixels += seen.pixels

    def maps(self, plate: str, *, plate_format: int, per_unit: bool) -> dict[str, Array]:
        """Return what is drawn of a plate, (row, column) each with NaN where there is no well: cells, then each channel's mean count.

        Parameters
        ----------
        per_unit : cells of a field, on average, in place of all cells.
        """
        wells = self.plates[plate]
        cells = {name: w.cells / w.units if per_unit else w.cells for name, w in wells.items()}
        maps = {"cells": on_plate(cells, plate_format)}
        for index, channel in enumerate(self.channels):
            means = {name: float(w.sums[index]) / w.pixels for name, w in wells.items() if w.pixels}
            maps[channel] = on_plate(means, plate_format)
        return maps

    def controls(self, plate: str, *, plate_format: int) -> Array:
        """Return which wells are controls, (row, column)."""
        found = {name: float(well.control) for name, well in self.plates[plate].items()}
        return np.asarray(on_plate(found, plate_format) == 1.0)


def on_plate(values: Mapping[str, float], plate_format: int) -> Array:
    """Return one value per well as (row, column), NaN where there is none."""
    plane = np.full(SHAPES[plate_format], np.nan)
    for well, value in values.items():
        plane[well_position(well)] = value
    return plane


def bin_edges(full_scale: int) -> Array:
    """Return whole numbers that grow geometrically from 0 to the full scale + 1."""
    grown = np.unique(np.round(np.geomspace(1, full_scale + 1, BINS + 1)).astype(np.int64))
    return np.concatenate([[0], grown[1:]])


def binned(values: Array, full_scale: int) -> Array:
    """Return how many counts lie in each bin of `bin_edges`."""
    bin_of = _bin_of_each(full_scale)
    return np.bincount(bin_of[values.ravel()], minlength=int(bin_of[-1]) + 1)


@lru_cache(maxsize=1)
def _bin_of_each(full_scale: int) -> Array:
    edges = bin_edges(full_scale)
    return np.repeat(np.arange(len(edges) - 1), np.diff(edges))


def overview_of_store(store: "Store", *, advance: Any) -> Overview:
    """Measure every cell of a store, over its own mask where it has one.

    Parameters
    ----------
    advance : called with how many cells were measured.
    """
    info = store.info
    found = Overview(info.channels, info.full_scale)
    obs = store.obs
    wells = list(zip(obs["Metadata_Plate"].astype(str), obs["Metadata_Well"].astype(str), strict=True))
    control = (obs["Metadata_Compound"] == info.control).to_numpy()
    reader = store.reader("images")
    for start in range(0, len(obs), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(obs)))
        counts, masks = reader.read(rows), store.masks(rows)
        for offset, row in enumerate(rows.tolist()):
            inside = _inside(masks, offset)
            pixels = counts[offset][:, inside] if inside is not None else counts[offset].reshape(len(info.channels), -1)
            bins = np.stack([binned(channel, info.full_scale) for channel in pixels])
            seen = Well(bool(control[row]), 1, 1, pixels.sum(axis=1, dtype=np.float64), pixels.shape[1])
            found.add(*wells[row], seen, bins)
        advance(len(rows))
    return found


def _inside(masks: "Array | None", offset: int) -> "Array | None":
    """Return the pixels of a cell; None where they are not known."""
    return None if masks is None or not masks[offset].any() else np.asarray(masks[offset] > 0)


@dataclass(frozen=True)
class Glance:
    """What was seen of one field or crop.

    Parameters
    ----------
    picture : (channel, y, x) counts of its middle; None where it is not shown.
    problem : why it could not be read; "" where it could.
    """

    cells: int = 0
    sums: Array | None = None
    pixels: int = 0
    bins: Array | None = None
    picture: Array | None = None
    problem: str = ""


@dataclass(frozen=True)
class Glancing:
    """Look at some rows of a data set: number → what was seen.

    Parameters
    ----------
    nucleus_px : typical nucleus diameter; None counts no nuclei.
    shown : numbers of the rows whose pictures are kept.
    picture_px : width of a picture; of fields the middle, shrunk by half where it is large.
    """

    rows: Sequence[ImageRow]
    manifest: Manifest
    nucleus_px: float | None
    shown: frozenset[int]
    picture_px: int

    def __call__(self, number: int) -> Glance:
        row, manifest = self.rows[number], self.manifest
        try:
            image = read_channels(row, manifest)
        except ImageError as error:
            return Glance(problem=str(error))
        cells = 1
        if manifest.holds_fields:
            nucleus = manifest.channels_to_read.index(manifest.nucleus_channel or "")
            cells = 0 if self.nucleus_px is None else count_nuclei(image[nucleus], nucleus_px=self.nucleus_px)
            image = image[[manifest.channels_to_read.index(stain) for stain in manifest.stains]]
        flat = image.reshape(len(image), -1)
        picture = middle(image, width_px=self.picture_px) if number in self.shown else None
        bins = np.stack([binned(channel, manifest.full_scale) for channel in flat])
        return Glance(cells, flat.sum(axis=1, dtype=np.float64), flat.shape[1], bins, picture)


def read_channels(row: ImageRow, manifest: Manifest) -> Array:
    """Return the counts (channel, y, x) of a field's channels to read, or of a crop's stains; ImageError where they cannot be read."""
    if manifest.holds_fields:
        return read_field(row, manifest.channels_to_read, full_scale=manifest.full_scale)
    crop = read_crop(
        row.images[""], channels=len(manifest.channels), axes=manifest.axes, full_scale=manifest.full_scale
    )
    return crop[[manifest.channels.index(stain) for stain in manifest.stains]]


def count_nuclei(image: Array, *, nucleus_px: float) -> int:
    """Return about how many nuclei a field (y, x) has; found in an image that is shrunk so that they are a dozen pixels wide."""
    from cellbridge.data.segmentation import find_nuclei

    step = max(1, int(nucleus_px // _NUCLEUS_PX))
    return int(find_nuclei(shrunk(image, step=step), nucleus_px=nucleus_px / step).max())


def shrunk(image: Array, *, step: int) -> Array:
    """Return the means of blocks of step x step pixels of (…, y, x); rests at the edges are left away."""
    if step == 1:
        return image
    height, width = (size // step for size in image.shape[-2:])
    blocks = image[..., : height * step, : width * step].reshape(*image.shape[:-2], height, step, width, step)
    return np.asarray(blocks.mean(axis=(-3, -1)))


def middle(image: Array, *, width_px: int) -> Array:
    """Return a square picture (channel, y, x) of the middle of an image: two image pixels to one where it is large enough."""
    step = 2 if min(image.shape[-2:]) >= 2 * width_px else 1
    side = min(width_px * step, *image.shape[-2:]) // step * step
    top, left = ((size - side) // 2 for size in image.shape[-2:])
    return shrunk(image[:, top : top + side, left : left + side], step=step)


def spread_rows(rows: Sequence[ImageRow], *, each_well: int) -> list[ImageRow]:
    """Return as many rows of every well, evenly over it."""
    wells: dict[tuple[str, str], list[ImageRow]] = {}
    for row in rows:
        wells.setdefault((row.plate, row.well), []).append(row)
    return list(_evenly(wells.values(), each_well))


def _evenly(wells: Any, each_well: int) -> Iterator[ImageRow]:
    for rows in wells:
        places = np.unique(np.linspace(0, len(rows) - 1, min(each_well, len(rows))).round().astype(int))
        yield from (rows[place] for place in places)
