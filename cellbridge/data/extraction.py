"""From rows of images to cells: fields are segmented and cut, ready-made crops are centred."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cellbridge.data import crops
from cellbridge.data.illumination import correct
from cellbridge.data.images import file_md5, read_crop, require_all
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.segmentation import Objects, segment
from cellbridge.data.survey import Array, Duplicates, Flats, read_field, surfaces
from cellbridge.errors import ImageError, ManifestError

Advance = Callable[[], None]
Splits = Mapping[tuple[str, str], str]
"""Plate, well → Metadata_Split."""


@dataclass(frozen=True)
class Geometry:
    """How cells are found and cut.

    Parameters
    ----------
    crop_px, size_px : width of the square in the images, and in the store.
    nucleus_px : typical nucleus diameter in the images; None where nothing is segmented.
    cell_reach : how far a cell may reach from its nucleus, in nucleus diameters; None leaves it to the segmentation.
    min_area, max_area : of a nucleus, as shares of a disk of the typical diameter.
    """

    crop_px: int
    size_px: int
    nucleus_px: float | None
    cell_reach: float | None = None
    min_area: float = 0.25
    max_area: float = 4.0


@dataclass(frozen=True)
class Extracted:
    """The cells of one row of the tables.

    Parameters
    ----------
    cells : what the store's table says of each cell, beside the row's own metadata.
    counts : (cell, channel, y, x).
    masks : (cell, y, x), or None.
    rejected : reason → how many cells were not kept.
    """

    row: ImageRow
    cells: list[dict[str, Any]]
    counts: Array
    masks: Array | None
    rejected: Mapping[str, int] = field(default_factory=dict)


def cells_of_fields(
    rows: Sequence[ImageRow],
    manifest: Manifest,
    geometry: Geometry,
    *,
    flats: Flats,
    splits: Splits,
    advance: Advance,
) -> Iterator[Extracted]:
    """Correct, segment and cut every field, in order."""
    channels = manifest.channels_to_read
    stored = [channels.index(stain) for stain in manifest.stains]
    for row in rows:
        image = read_field(row, channels, full_scale=manifest.full_scale)
        image = corrected(image, row, channels, flats=flats, full_scale=manifest.full_scale)
        extracted = _cells_of_field(image, row, manifest, geometry, stored=stored)
        yield _with_split(extracted, splits)
        advance()


def nucleus_images(rows: Sequence[ImageRow], manifest: Manifest, *, flats: Flats) -> Iterator[Array]:
    """Yield the nucleus channel of some rows; crops that cannot be read are passed over, since they are told of later."""
    name = manifest.nucleus_channel or ""
    for row in rows:
        if manifest.holds_fields:
            image = read_field(row, [name], full_scale=manifest.full_scale)
            yield corrected(image, row, [name], flats=flats, full_scale=manifest.full_scale)[0]
        else:
            with contextlib.suppress(ImageError):
                yield read_one_crop(row, manifest)[manifest.channels.index(name)]


def corrected(image: Array, row: ImageRow, channels: Sequence[str], *, flats: Flats, full_scale: int) -> Array:
    """Return a field (channel, y, x) with even illumination."""
    shape = (image.shape[1], image.shape[2])
    return correct(image, surfaces(flats.get(row.plate, {}), channels, shape), full_scale=full_scale)


def _cells_of_field(
    image: Array, row: ImageRow, manifest: Manifest, geometry: Geometry, *, stored: Sequence[int]
) -> Extracted:
    objects = _segment(image, manifest.channels_to_read, manifest, geometry)
    cells = crops.choose_cells(
        objects,
        nucleus_px=geometry.nucleus_px or 0.0,
        crop_px=geometry.crop_px,
        min_area=geometry.min_area,
        max_area=geometry.max_area,
    )
    size = {"crop_px": geometry.crop_px, "size_px": geometry.size_px}
    described = [
        {
            "Metadata_Cell": f"{field_name(row)}_c{index:03d}",
            "Location_Center_X": float(x),
            "Location_Center_Y": float(y),
        }
        for index, (y, x) in enumerate(cells.centres, start=1)
    ]
    counts = crops.cut(image[stored], cells.centres, **size)
    return Extracted(row, described, counts, crops.cut_masks(objects, cells, **size), cells.rejected)


def cells_of_crops(
    rows: Sequence[ImageRow],
    manifest: Manifest,
    geometry: Geometry,
    *,
    splits: Splits,
    advance: Advance,
) -> Iterator[Extracted]:
    """Read every ready-made crop, in order; with a nucleus channel the cell in its middle is segmented.

    Raises
    ------
    ImageError : after the last crop, for all that are missing, damaged or of a wrong shape; five are shown.
    LeakError, ManifestError : see `Duplicates`.
    """
    problems: list[str] = []
    duplicates = Duplicates(splits)
    for number, row in zip(_numbers(rows), rows, strict=True):
        try:
            image = read_one_crop(row, manifest)
            duplicates.add(image, row, "")
            cell = _described_crop(row, number)
            counts, masks = _cut_crop(image, row, manifest, geometry)
        except ImageError as error:
            problems.append(f"{row.where}: {error}")
        else:
            if not problems:
                yield _with_split(Extracted(row, [cell], counts, masks), splits)
        advance()
    require_all(problems, total=len(rows))


def read_one_crop(row: ImageRow, manifest: Manifest) -> Array:
    """Return a crop (channel, y, x) with all channels of its file; raise ImageError where its md5 is not the table's."""
    plane, expected = row.images[""], row.digests.get("")
    image = read_crop(plane, channels=len(manifest.channels), axes=manifest.axes, full_scale=manifest.full_scale)
    if expected and file_md5(plane.file) != expected:
        raise ImageError(f"{plane}: md5 is not the table's {expected}. Copy it again.")
    return image


def _cut_crop(image: Array, row: ImageRow, manifest: Manifest, geometry: Geometry) -> tuple[Array, Array | None]:
    cut = crops.centre_crop(image, crop_px=geometry.crop_px, what=str(row.images[""]))
    stored = [manifest.channels.index(stain) for stain in manifest.stains]
    counts = crops.resample(cut[None, stored], size_px=geometry.size_px)
    if geometry.nucleus_px is None:
        return counts, None
    objects = _segment(image, manifest.channels, manifest, geometry)
    mask = crops.centre_mask(objects, reach_px=0.5 * geometry.nucleus_px)
    mask = crops.centre_crop(mask, crop_px=geometry.crop_px, what=str(row.images[""]))
    return counts, crops.resample_mask(mask, size_px=geometry.size_px)[None]


def _segment(image: Array, channels: Sequence[str], manifest: Manifest, geometry: Geometry) -> Objects:
    nucleus, cell = manifest.nucleus_channel or "", manifest.cell_channel
    return segment(
        image[channels.index(nucleus)],
        None if cell is None else image[channels.index(cell)],
        nucleus_px=geometry.nucleus_px or 0.0,
        cell_reach=geometry.cell_reach,
    )


def _with_split(extracted: Extracted, splits: Splits) -> Extracted:
    side = splits[extracted.row.plate, extracted.row.well]
    return replace(extracted, cells=[{**cell, "Metadata_Split": side} for cell in extracted.cells])


def _numbers(rows: Sequence[ImageRow]) -> Iterator[str]:
    """Yield each crop's number in its field: the table's Metadata_Cell, else counted from 1."""
    counted: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = (row.plate, row.well, row.site)
        counted[key] = counted.get(key, 0) + 1
        yield row.metadata.get("Metadata_Cell") or str(counted[key])


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
