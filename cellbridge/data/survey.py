"""Look at every image of a data set before any is used: what is damaged, listed twice or leaking, and how the light falls."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from cellbridge.data.illumination import FieldMedian, FlatField
from cellbridge.data.images import digest, read_plane, require_all
from cellbridge.data.readers.rows import ImageRow
from cellbridge.errors import ImageError, LeakError, ManifestError

Array = np.ndarray[Any, np.dtype[Any]]
Flats = dict[str, dict[str, FlatField]]


@dataclass
class Duplicates:
    """Remembers every image by its pixels, and refuses one that comes again under another name.

    Parameters
    ----------
    splits : Metadata_Split of each plate and well.
    """

    splits: Mapping[tuple[str, str], str]
    _seen: dict[bytes, tuple[ImageRow, str]] = field(default_factory=dict)

    def add(self, image: Array, row: ImageRow, channel: str) -> None:
        """Remember an image; one of a single value says nothing and is passed over.

        Raises
        ------
        LeakError : the same image is in train and in test.
        ManifestError : the same image is listed twice.
        """
        if image.size and bool((image == image.flat[0]).all()):
            return
        first, first_channel = self._seen.setdefault(digest(image), (row, channel))
        if first is row and first_channel == channel:
            return
        pair = f"{_name(first, first_channel)} and {_name(row, channel)}"
        sides = [self.splits[part.plate, part.well] for part in (first, row)]
        if sides[0] != sides[1]:
            raise LeakError(
                f"the same image is in {sides[0]} and in {sides[1]}: {pair}. Remove one of the two, or hold out both."
            )
        raise ManifestError(f"the same image is listed twice: {pair}. Correct the table.")


def survey_fields(
    rows: Sequence[ImageRow],
    channels: Sequence[str],
    *,
    full_scale: int,
    splits: Mapping[tuple[str, str], str],
    min_fields: int | None,
    advance: Callable[[], None],
) -> Flats:
    """Read every image of every field, and estimate each plate's and channel's flat field.

    Parameters
    ----------
    splits : Metadata_Split of each plate and well.
    min_fields : with fewer fields a plate's light is left as it is; None leaves every plate's.
    advance : called after each field.

    Raises
    ------
    ImageError : images are missing, damaged, or of another shape than their plate's others; all are counted, five shown.
    LeakError, ManifestError : see `Duplicates`.
    """
    problems: list[str] = []
    shapes: list[tuple[ImageRow, str, tuple[int, ...]]] = []
    duplicates = Duplicates(splits)
    medians: dict[tuple[str, str], FieldMedian] = {}
    for row in rows:
        for channel in channels:
            try:
                image = read_plane(row.images[channel], full_scale=full_scale)
            except ImageError as error:
                problems.append(f"{row.where} {channel}: {error}")
                continue
            duplicates.add(image, row, channel)
            shapes.append((row, channel, image.shape))
            if min_fields is not None:
                medians.setdefault((row.plate, channel), FieldMedian()).add(image)
        advance()
    problems.extend(_odd_shapes(shapes))
    require_all(problems, total=len(rows) * len(channels))
    return _flats(medians, min_fields=min_fields)


def read_field(row: ImageRow, channels: Sequence[str], *, full_scale: int) -> Array:
    """Read the channels of a field: (channel, y, x).

    Raises
    ------
    ImageError : an image is missing or damaged, or the channels differ in shape.
    """
    planes = [read_plane(row.images[channel], full_scale=full_scale) for channel in channels]
    odd = next((i for i, plane in enumerate(planes) if plane.shape != planes[0].shape), None)
    if odd is not None:
        raise ImageError(
            f"{row.images[channels[odd]]}: shape {planes[odd].shape}, but {channels[0]} of the same field has "
            f"{planes[0].shape}. Copy or export the field again."
        )
    return np.stack(planes)


def surfaces(flats: Mapping[str, FlatField], channels: Sequence[str], shape: tuple[int, int]) -> Array | None:
    """Return what the channels of a plate's fields are divided by, (channel, y, x); None where nothing is to be done."""
    return _surfaces(tuple(flats.get(channel, FlatField()) for channel in channels), shape)


@lru_cache(maxsize=2)
def _surfaces(flats: tuple[FlatField, ...], shape: tuple[int, int]) -> Array | None:
    if all(flat.is_flat for flat in flats):
        return None
    stacked = np.stack([flat.surface(shape) for flat in flats]).astype(np.float32)
    stacked.setflags(write=False)
    return stacked


def _flats(medians: Mapping[tuple[str, str], FieldMedian], *, min_fields: int | None) -> Flats:
    flats: Flats = {}
    for (plate, channel), median in medians.items():
        if min_fields is not None and len(median) >= min_fields:
            flats.setdefault(plate, {})[channel] = median.estimate(what=f'plate "{plate}", channel "{channel}"')
    return flats


def _odd_shapes(shapes: Sequence[tuple[ImageRow, str, tuple[int, ...]]]) -> list[str]:
    """Name the images whose shape is not that of most images of their plate."""
    counts: dict[str, Counter[tuple[int, ...]]] = {}
    for row, _, shape in shapes:
        counts.setdefault(row.plate, Counter())[shape] += 1
    usual = {plate: counter.most_common(1)[0][0] for plate, counter in counts.items()}
    return [
        f"{row.where} {channel}: {row.images[channel]}: shape {shape}, plate {row.plate} has {usual[row.plate]}. "
        "Copy or export it again."
        for row, channel, shape in shapes
        if shape != usual[row.plate]
    ]


def _name(row: ImageRow, channel: str) -> str:
    return f"{row.images[channel]} ({row.where}, {row.place})"
