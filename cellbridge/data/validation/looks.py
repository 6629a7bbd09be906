"""A look at every image of some rows: its file's head, and where it is asked for all of its pixels; nothing ends at the first problem."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.data.illumination import read_given
from cellbridge.data.image_headers import Header, read_header
from cellbridge.data.images import PARTIAL_SUFFIXES, read_array, read_crop, read_plane, require_md5
from cellbridge.data.manifest import Manifest
from cellbridge.data.planes import Plane
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.survey import image_digest
from cellbridge.data.validation.problems import Problem, of_text
from cellbridge.errors import ImageError

COPY_AGAIN = "Copy it again."
_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


@dataclass(frozen=True, slots=True)
class Pixels:
    """What the counts of one channel are.

    Parameters
    ----------
    low, high : smallest and largest count.
    at_high : share of pixels that have the largest.
    bits : bitwise or of all counts.
    """

    low: int
    high: int
    at_high: float
    bits: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What one image was found to be.

    Parameters
    ----------
    number, key : the row, counted from 0, and the key of its `images`.
    header : None where the file's head cannot be read.
    pixels : channel → its counts; {} where they were not looked at or cannot be used.
    digest : of the pixels; "" where there is none, or all have one value.
    """

    number: int
    key: str
    header: Header | None = None
    pixels: Mapping[str, Pixels] = field(default_factory=dict)
    digest: str = ""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Looking:
    """Look at a block of rows: number of the block → what was seen.

    Parameters
    ----------
    block : how many rows one block has.
    deep : read every pixel.
    """

    rows: Sequence[ImageRow]
    manifest: Manifest
    block: int
    deep: bool

    def __call__(self, number: int) -> list[Seen]:
        first = number * self.block
        rows = self.rows[first : first + self.block]
        return [seen for offset, row in enumerate(rows) for seen in self._row(first + offset, row)]

    def _row(self, number: int, row: ImageRow) -> Iterator[Seen]:
        for key in row.images:
            seen = _look(number, row, key, self.manifest, deep=self.deep)
            light = row.illumination.get(key)
            if light is not None and seen.header is not None and len(seen.header.shape) == 2:
                text = _wrong_light(light, (seen.header.shape[0], seen.header.shape[1]))
                told = (_told("illumination", text, row, key),) if text else ()
                seen = replace(seen, problems=(*seen.problems, *told))
            yield seen


def _look(number: int, row: ImageRow, key: str, manifest: Manifest, *, deep: bool) -> Seen:
    plane = row.images[key]
    try:
        header = read_header(plane)
    except ImageError as error:
        return Seen(number, key, problems=(_told(_kind_of_file(plane), str(error), row, key),))
    found = [*_wrong_type(header, row, key, manifest), *_wrong_axes(header, row, key, manifest)]
    if not deep:
        return Seen(number, key, header, problems=tuple(found))
    if key in row.digests:
        try:
            require_md5(plane.file, row.digests[key])
        except ImageError as error:
            found.append(_told("changed_file", str(error), row, key))
    if header.dtype not in _TYPES:
        return Seen(number, key, header, problems=(*found, *_not_finite(row, key)))
    if any(problem.kind == "shape" for problem in found):
        return Seen(number, key, header, problems=tuple(found))
    try:
        counts = _counts(plane, header, manifest)
    except ImageError as error:
        return Seen(number, key, header, problems=(*found, _told("damaged_file", str(error), row, key)))
    names = (key,) if manifest.holds_fields else manifest.channels
    pixels = {name: _measured(image) for name, image in zip(names, counts, strict=True)}
    found += [problem for name, one in pixels.items() for problem in _wrong_counts(one, name, row, key, manifest)]
    return Seen(number, key, header, pixels, image_digest(counts), tuple(found))


def _wrong_light(file: Path, shape: tuple[int, int]) -> str:
    """Return what is wrong with an illumination function; "" where nothing is."""
    try:
        read_given(file, shape)
    except ImageError as error:
        return str(error)
    return ""


def _counts(plane: Plane, header: Header, manifest: Manifest) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the counts (channel, y, x), whatever the manifest's full scale; ImageError where they cannot be decoded."""
    whole = int(np.iinfo(header.dtype).max)
    if manifest.holds_fields:
        return np.asarray(read_plane(plane, full_scale=whole))[None]
    return read_crop(plane, channels=len(manifest.channels), axes=manifest.axes, full_scale=whole)


def _measured(image: np.ndarray[Any, np.dtype[Any]]) -> Pixels:
    high = int(image.max())
    return Pixels(int(image.min()), high, float((image == high).mean()), int(np.bitwise_or.reduce(image, axis=None)))


def _wrong_type(header: Header, row: ImageRow, key: str, manifest: Manifest) -> Iterator[Problem]:
    if header.dtype not in _TYPES:
        found = f"type {header.dtype}, expected uint8 or uint16"
        yield _problem("bit_depth", found, "Convert it without rescaling.", row, key)
    elif header.dtype == np.uint8 and manifest.full_scale > 255:
        found = f"type uint8, but the full scale is {manifest.full_scale}"
        yield _problem("bit_depth", found, "Correct bits in the manifest, or the file.", row, key)


def _wrong_axes(header: Header, row: ImageRow, key: str, manifest: Manifest) -> Iterator[Problem]:
    sizes = [size for size in header.shape if size > 1]
    if 0 in header.shape:
        yield _problem("shape", f"shape {header.shape} holds no pixel", COPY_AGAIN, row, key)
    elif manifest.holds_fields and len(header.shape) > 2 and len(sizes) != 2:
        remedy = "Split it into one file per channel, or name the page or part that is meant, as in file.tif[0]."
        yield _problem("shape", f"shape {header.shape}, expected one plane (y, x)", remedy, row, key)
    elif not manifest.holds_fields:
        channels, axis = len(manifest.channels), {"HWC": 2, "CHW": 0, None: None}[manifest.axes]
        three = header.shape if len(header.shape) == 3 else (1, *header.shape)
        ends = (three[0], three[-1]) if axis is None else (three[axis],)
        if len(three) != 3 or channels not in ends:
            remedy = "Correct channels or axes in the manifest, or the file."
            yield _problem("shape", f"shape {header.shape}, expected {channels} channels", remedy, row, key)
        elif len(header.shape) == 3 and ends == (channels, channels):
            found = f"shape {header.shape} leaves open which axis holds the {channels} channels"
            yield _problem("shape", found, "Set axes: HWC or CHW in the manifest.", row, key)


def _wrong_counts(pixels: Pixels, name: str, row: ImageRow, key: str, manifest: Manifest) -> Iterator[Problem]:
    at = name if key == "" else ""
    if pixels.high > manifest.full_scale:
        found = f"a count of {pixels.high} above the full scale {manifest.full_scale}"
        yield _problem("bit_depth", found, "Correct bits in the manifest.", row, key, channel=at)
    if pixels.low == pixels.high:
        kind = "zero" if pixels.high == 0 else "constant"
        remedy = "Image it again or leave the field out; of a file that was cut off or not written, copy it again."
        yield _problem(kind, f"every pixel is {pixels.high}", remedy, row, key, channel=at)


def _not_finite(row: ImageRow, key: str) -> Iterator[Problem]:
    """Say how many values of an image of floats are no numbers."""
    try:
        values = read_array(row.images[key])
    except ImageError as error:
        yield _told("damaged_file", str(error), row, key)
        return
    bad = int((~np.isfinite(values)).sum()) if values.dtype.kind in "fc" else 0
    if bad:
        found = f"{bad} of {values.size} values are NaN or infinite"
        yield _problem("nan", found, "Export the counts as the camera gave them.", row, key)


def _kind_of_file(plane: Plane) -> str:
    """Return why the head of a file cannot be read, in one word."""
    file = plane.file
    if not file.exists():
        begun = any((file.parent / (file.name + end)).exists() for end in PARTIAL_SUFFIXES)
        return "incomplete_file" if begun else "missing_file"
    return "empty_file" if file.is_file() and file.stat().st_size == 0 else "damaged_file"


def _told(kind: str, text: str, row: ImageRow, key: str) -> Problem:
    """Return the problem that an image's error tells of, by the row of the table that names it."""
    wrong = of_text(kind, text, default="")
    found = f"{wrong.file}: {wrong.found}" if wrong.file else wrong.found
    place = of_text(kind, f"{row.where}: x", default=row.where)
    return Problem(kind, place.file, place.row, _at(row, key), found, wrong.remedy)


def _problem(kind: str, found: str, remedy: str, row: ImageRow, key: str, *, channel: str = "") -> Problem:
    place = of_text(kind, f"{row.where}: x", default=row.where)
    named = f"{row.images[key]}: {found}"
    return Problem(kind, place.file, place.row, _at(row, channel or key), named, remedy)


def _at(row: ImageRow, channel: str) -> str:
    """Return the place and channel of an image, for messages."""
    return f"{row.place} {channel}".strip()
