"""From one row of the tables to cells: a field is segmented and cut, a ready-made crop is centred."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cellbridge.data import crops, quality
from cellbridge.data.illumination import FlatField, correct
from cellbridge.data.images import read_crop, require_md5
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.segmentation import Objects, segment
from cellbridge.data.survey import Array, image_digest, read_field, saturated_at, surfaces
from cellbridge.errors import ImageError, ManifestError

NEIGHBOURS = "Neighbors_NumberOfNeighbors_Adjacent"
"""CellProfiler's name for how many other cells a cell touches."""


@dataclass(frozen=True)
class Geometry:
    """How cells are found, cut and chosen.

    Parameters
    ----------
    crop_px, size_px : width of the square in the images, and in the store.
    nucleus_px : typical nucleus diameter in the images; None where nothing is segmented.
    cell_reach : how far a cell may reach from its nucleus, in nucleus diameters; None leaves it to the segmentation.
    weights : a Cellpose model that finds the nuclei; None finds them by threshold and watershed.
    saturated_at : the count from which a pixel of a field is saturated.
    """

    crop_px: int
    size_px: int
    nucleus_px: float | None
    cell_reach: float | None = None
    weights: str | None = None
    choice: crops.Choice = field(default_factory=crops.Choice)
    limits: quality.Limits = field(default_factory=quality.Limits)
    saturated_at: int = 65535


@dataclass(frozen=True)
class Extracted:
    """The cells of one row of the tables.

    Parameters
    ----------
    columns : what the store's table says of each cell, beside the row's own metadata: name → one value per cell.
    counts : (cell, channel, y, x).
    masks : (cell, y, x), or None.
    rejected : reason → how many cells were not kept.
    digest, bits : of a ready-made crop: hash of its pixels, and the bitwise or of its counts.
    """

    columns: dict[str, list[Any]]
    counts: Array
    masks: Array | None
    rejected: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""
    bits: int = 0


def cells_of_field(
    row: ImageRow, manifest: Manifest, geometry: Geometry, *, flats: Mapping[str, FlatField]
) -> Extracted:
    """Correct, segment and cut a field.

    Parameters
    ----------
    flats : the estimated light of the row's plate, by channel.
    """
    channels = manifest.channels_to_read
    stored = [channels.index(stain) for stain in manifest.stains]
    raw = read_field(row, channels, full_scale=manifest.full_scale)
    image = corrected(raw, row, channels, flats=flats, full_scale=manifest.full_scale)
    objects = _segment(image, channels, manifest, geometry)
    cells = crops.choose_cells(
        objects, nucleus_px=geometry.nucleus_px or 0.0, crop_px=geometry.crop_px, choice=geometry.choice
    )
    size = {"crop_px": geometry.crop_px, "size_px": geometry.size_px}
    counts = crops.cut(image[stored], cells.centres, **size)
    found = quality.measure(
        counts,
        saturation=crops.shares(raw[stored] >= geometry.saturated_at, cells.centres, crop_px=geometry.crop_px),
        debris=None
        if objects.debris is None
        else crops.shares(objects.debris, cells.centres, crop_px=geometry.crop_px),
    )
    columns = {
        "Location_Center_X": cells.centres[:, 1].tolist(),
        "Location_Center_Y": cells.centres[:, 0].tolist(),
        **found.columns(manifest.stains),
        NEIGHBOURS: [float(number) for number in cells.neighbours],
    }
    whole = Extracted(columns, counts, crops.cut_masks(objects, cells, **size), cells.rejected)
    return _numbered(_good(whole, found.reasons(geometry.limits)), row)


def _good(extracted: Extracted, reasons: Sequence[str]) -> Extracted:
    """Leave out the cells that have a reason, and count them by it."""
    if not any(reasons):
        return extracted
    kept = [index for index, reason in enumerate(reasons) if not reason]
    return Extracted(
        {name: [values[index] for index in kept] for name, values in extracted.columns.items()},
        extracted.counts[kept],
        None if extracted.masks is None else extracted.masks[kept],
        Counter(extracted.rejected) + Counter(reason for reason in reasons if reason),
        extracted.digest,
        extracted.bits,
    )


def _numbered(extracted: Extracted, row: ImageRow) -> Extracted:
    names = [f"{field_name(row)}_c{index:03d}" for index in range(1, len(extracted.counts) + 1)]
    columns = {"Metadata_Cell": names, **extracted.columns}
    return Extracted(columns, extracted.counts, extracted.masks, extracted.rejected)


def nucleus_images(
    rows: Sequence[ImageRow], manifest: Manifest, *, flats: Mapping[str, Mapping[str, FlatField]]
) -> Iterator[Array]:
    """Yield the nucleus channel of some rows; crops that cannot be read are passed over, since they are told of later.

    Raises
    ------
    ImageError : no crop at all can be read.
    """
    name, unread = manifest.nucleus_channel or "", []
    for row in rows:
        if manifest.holds_fields:
            image = read_field(row, [name], full_scale=manifest.full_scale)
            plate = flats.get(row.plate, {})
            yield corrected(image, row, [name], flats=plate, full_scale=manifest.full_scale)[0]
        else:
            try:
                crop = read_one_crop(row, manifest)
            except ImageError as error:
                unread.append(f"{row.where}: {error}")
                continue
            yield crop[manifest.channels.index(name)]
    if unread and len(unread) == len(rows):
        raise ImageError(unread[0])


def corrected(
    image: Array, row: ImageRow, channels: Sequence[str], *, flats: Mapping[str, FlatField], full_scale: int
) -> Array:
    """Return a field (channel, y, x) with even illumination."""
    shape = (image.shape[1], image.shape[2])
    return correct(image, surfaces(row, channels, shape, flats=flats), full_scale=full_scale)


def cell_of_crop(row: ImageRow, number: str, manifest: Manifest, geometry: Geometry) -> Extracted:
    """Read a ready-made crop; with a nucleus channel the cell in its middle is segmented.

    Parameters
    ----------
    number : what the cell's id ends with.

    Raises
    ------
    ImageError : the file is missing, damaged, or of a wrong shape.
    ManifestError : the position in the table is no number.
    """
    image = read_one_crop(row, manifest)
    what = str(row.images[""])
    stored = [manifest.channels.index(stain) for stain in manifest.stains]
    square = crops.centre_crop(image, crop_px=geometry.crop_px, what=what)[stored]
    counts = crops.resample(square[None], size_px=geometry.size_px)
    masks, debris = _mask_of_crop(image, manifest, geometry, what=what)
    bits = int(np.bitwise_or.reduce(image, axis=None))
    saturation = (square >= saturated_at([bits], full_scale=manifest.full_scale)).mean(axis=(1, 2))[None]
    found = quality.measure(counts, saturation=saturation, debris=debris)
    columns = {name: [value] for name, value in _described_crop(row, number).items()}
    columns |= found.columns(manifest.stains)
    whole = Extracted(columns, counts, masks, digest=image_digest(image), bits=bits)
    return _good(whole, found.reasons(geometry.limits))


def _mask_of_crop(
    image: Array, manifest: Manifest, geometry: Geometry, *, what: str
) -> tuple[Array | None, Array | None]:
    """Return the mask (1, y, x) and the share of debris (1,) of a crop; None and None where nothing is segmented."""
    if geometry.nucleus_px is None:
        return None, None
    objects = _segment(image, manifest.channels, manifest, geometry)
    mask = crops.centre_mask(objects, reach_px=0.5 * geometry.nucleus_px)
    mask = crops.centre_crop(mask, crop_px=geometry.crop_px, what=what)
    debris = None
    if objects.debris is not None:
        debris = np.array([crops.centre_crop(objects.debris, crop_px=geometry.crop_px, what=what).mean()])
    return crops.resample_mask(mask, size_px=geometry.size_px)[None], debris


def read_one_crop(row: ImageRow, manifest: Manifest) -> Array:
    """Return a crop (channel, y, x) with all channels of its file; raise ImageError where its md5 is not the table's."""
    plane, expected = row.images[""], row.digests.get("")
    image = read_crop(plane, channels=len(manifest.channels), axes=manifest.axes, full_scale=manifest.full_scale)
    if expected:
        require_md5(plane.file, expected)
    return image


def _segment(image: Array, channels: Sequence[str], manifest: Manifest, geometry: Geometry) -> Objects:
    nucleus, cell = manifest.nucleus_channel or "", manifest.cell_channel
    nuclei = None
    if geometry.weights is not None:
        from cellbridge.data.cellpose_nuclei import find_nuclei

        nuclei = find_nuclei(
            image[channels.index(nucleus)], nucleus_px=geometry.nucleus_px or 0.0, weights=geometry.weights
        )
    return segment(
        image[channels.index(nucleus)],
        None if cell is None else image[channels.index(cell)],
        nucleus_px=geometry.nucleus_px or 0.0,
        cell_reach=geometry.cell_reach,
        nuclei=nuclei,
    )


def crop_numbers(rows: Sequence[ImageRow]) -> list[str]:
    """Return each crop's number in its field: the table's Metadata_Cell, else counted from 1."""
    counted: dict[tuple[str, str, str], int] = {}
    numbers = []
    for row in rows:
        key = (row.plate, row.well, row.site)
        counted[key] = counted.get(key, 0) + 1
        numbers.append(row.metadata.get("Metadata_Cell") or str(counted[key]))
    return numbers


def _described_crop(row: ImageRow, number: str) -> dict[str, Any]:
    """Return a crop's id, and where its cell lies in the field if the table says so."""
    cell: dict[str, Any] = {"Metadata_Cell": f"{field_name(row)}_c{number.zfill(3)}"}
    for name in ("Location_Center_X", "Location_Center_Y"):
        text = row.metadata.get(name)
        if text is not None:
            try:
                cell[name] = float(text)
            except ValueError:
                raise ManifestError(f'{row.where}: {name} "{text}" is no number. Fix the row.') from None
    return cell


def field_name(row: ImageRow) -> str:
    """Return what a cell's id begins with: plate, well and site."""
    return f"{row.plate}_{row.well}_s{row.site}"
