"""Look at every image of a data set before any is used: what is damaged, listed twice or leaking, and how the light falls."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.data.illumination import FieldMedian, FlatField, block_means, read_given
from cellbridge.data.images import digest, read_plane, require_all
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.tally import Tally
from cellbridge.errors import ImageError, LeakError, ManifestError

Array = np.ndarray[Any, np.dtype[Any]]
Flats = dict[str, dict[str, FlatField]]


@dataclass(frozen=True)
class Look:
    """What the images of one field were found to be, channel by channel.

    Parameters
    ----------
    shapes : of the images that can be read.
    digests : of their pixels; "" for an image of a single value, which says nothing.
    bits : bitwise or of all counts: its low zeros are bits that no count uses.
    blocks : means of blocks, float32, from which the light is estimated; {} where it is not.
    problems : what cannot be used, one line each.
    """

    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, Array] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def look(row: ImageRow, channels: Sequence[str], *, full_scale: int, light: bool) -> Look:
    """Read every image of a field, and the illumination functions that its tables name.

    Parameters
    ----------
    light : take the means from which the light is estimated, of channels without a given illumination function.
    """
    seen, problems = Look(), []
    for channel in channels:
        try:
            image = read_plane(row.images[channel], full_scale=full_scale, md5=row.digests.get(channel, ""))
            if channel in row.illumination:
                read_given(row.illumination[channel], (image.shape[0], image.shape[1]))
        except ImageError as error:
            problems.append(f"{row.where} {channel}: {error}")
            continue
        seen.shapes[channel] = (image.shape[0], image.shape[1])
        seen.digests[channel] = image_digest(image)
        seen.bits[channel] = int(np.bitwise_or.reduce(image, axis=None))
        if light and channel not in row.illumination:
            seen.blocks[channel] = block_means(image)
    return Look(seen.shapes, seen.digests, seen.bits, seen.blocks, tuple(problems))


def image_digest(image: Array) -> str:
    """Return a hash of the pixels of an image; "" for one of a single value."""
    return "" if bool((image == image.flat[0]).all()) else digest(image).hex()


@dataclass
class Survey:
    """Takes one look after the other, in the order of the rows; memory grows by some 200 bytes per image (its hash and place), and per
    plate by its light.

    Parameters
    ----------
    splits : Metadata_Split of each plate and well.
    min_fields : with fewer fields a plate's light is left as it is; None leaves every plate's.
    """

    splits: Mapping[tuple[str, str], str]
    min_fields: int | None
    flats: Flats = field(default_factory=dict)
    """The light of the plates that are through."""
    bits: dict[str, int] = field(default_factory=dict)
    """Channel → bitwise or of all its counts."""
    of_one_value: Tally = field(default_factory=Tally)
    """The images that show nothing: every pixel has the same count."""
    widest_px: int = 0
    """The largest square that any field has room for; 0 where none was looked at."""

    def __post_init__(self) -> None:
        self._problems: list[str] = []
        self._images = 0
        self._duplicates = Duplicates(self.splits)
        self._plate: str | None = None
        self._shapes: list[tuple[ImageRow, str, tuple[int, int]]] = []
        self._medians: dict[str, FieldMedian] = {}

    def add(self, row: ImageRow, seen: Look) -> None:
        """Take the look at a field; those of one plate follow one another.

        Raises
        ------
        LeakError, ManifestError : see `Duplicates`.
        """
        if row.plate != self._plate:
            self._end_plate()
            self._plate = row.plate
        self._problems.extend(seen.problems)
        self._images += len(seen.problems) + len(seen.shapes)
        for channel, shape in seen.shapes.items():
            self._duplicates.add(seen.digests[channel], row, channel)
            if not seen.digests[channel]:
                self.of_one_value.add(f"{row.place} {channel}: every pixel is {seen.bits[channel]}")
            self._shapes.append((row, channel, shape))
            self.widest_px = max(self.widest_px, min(shape))
            self.bits[channel] = self.bits.get(channel, 0) | seen.bits[channel]
            if channel in seen.blocks:
                self._medians.setdefault(channel, FieldMedian()).add(seen.blocks[channel], shape)

    def finish(self) -> None:
        """End with the last plate.

        Raises
        ------
        ImageError : images are missing, damaged, or of another shape than their plate's others; all are counted, five shown.
        """
        self._end_plate()
        require_all(self._problems, total=self._images)

    def _end_plate(self) -> None:
        self._problems.extend(_odd_shapes(self._shapes))
        if self._plate is not None and not self._problems:
            for channel, median in self._medians.items():
                if self.min_fields is not None and len(median) >= self.min_fields:
                    found = median.estimate(what=f'plate "{self._plate}", channel "{channel}"')
                    self.flats.setdefault(self._plate, {})[channel] = found
        self._shapes, self._medians = [], {}


@dataclass
class Duplicates:
    """Remembers every image by its pixels, and refuses one that comes again under another name.

    Parameters
    ----------
    splits : Metadata_Split of each plate and well.
    """

    splits: Mapping[tuple[str, str], str]
    _seen: dict[str, tuple[ImageRow, str]] = field(default_factory=dict)

    def add(self, image: str, row: ImageRow, channel: str) -> None:
        """Remember an image by its digest; "" is passed over.

        Raises
        ------
        LeakError : the same image is in train and in test.
        ManifestError : the same image is listed twice.
        """
        if not image:
            return
        first, first_channel = self._seen.setdefault(image, (row, channel))
        if first is row and first_channel == channel:
            return
        pair = f"{_name(first, first_channel)} and {_name(row, channel)}"
        sides = [self.splits[part.plate, part.well] for part in (first, row)]
        if sides[0] != sides[1]:
            raise LeakError(
                f"the same image is in {sides[0]} and in {sides[1]}: {pair}. Remove one of the two, or hold out both."
            )
        raise ManifestError(f"the same image is listed twice: {pair}. Correct the table.")


def stored_bits(bits: Iterable[int], *, full_scale: int) -> dict[str, Any] | None:
    """Return how counts are stored that use fewer bits than they are given: how many, shifted by how many; None where they use all."""
    low = unused_bits(bits)
    if not low:
        return None
    used = full_scale.bit_length() - low
    words = (
        f"every count is a multiple of {1 << low}: {used}-bit data, stored shifted by {low} bits. They are kept as they are; noise "
        f"within a count (dequantisation) covers 1/{1 << low} of the true step"
    )
    return {"bits": used, "shifted_by": low, "words": words}


def saturated_at(bits: Iterable[int], *, full_scale: int) -> int:
    """Return the largest count that the camera can give, from which a pixel is saturated: 65520 for 12-bit counts shifted by 4."""
    low = unused_bits(bits)
    return full_scale >> low << low


def unused_bits(bits: Iterable[int]) -> int:
    """Return how many low bits no count of any channel uses: 4 for 12-bit counts that are stored in the upper bits of 16."""
    together = 0
    for some in bits:
        together |= some
    return (together & -together).bit_length() - 1 if together else 0


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


def surfaces(
    row: ImageRow, channels: Sequence[str], shape: tuple[int, int], *, flats: Mapping[str, FlatField]
) -> Array | None:
    """Return what the channels of a field are divided by, (channel, y, x); None where nothing is to be done.

    The illumination functions that the tables name go before the estimated light of the plate (`flats`).
    """
    return _surfaces(tuple(row.illumination.get(name) or flats.get(name, FlatField()) for name in channels), shape)


@lru_cache(maxsize=2)
def _surfaces(lights: tuple[FlatField | Path, ...], shape: tuple[int, int]) -> Array | None:
    if all(isinstance(light, FlatField) and light.is_flat for light in lights):
        return None
    each = [light.surface(shape) if isinstance(light, FlatField) else read_given(light, shape) for light in lights]
    stacked = np.stack(each).astype(np.float32)
    stacked.setflags(write=False)
    return stacked


def _odd_shapes(shapes: Sequence[tuple[ImageRow, str, tuple[int, int]]]) -> list[str]:
    """Name the images of a plate whose shape is not that of most of them."""
    counts = Counter(shape for _, _, shape in shapes)
    usual = counts.most_common(1)[0][0] if counts else None
    return [
        f"{row.where} {channel}: {row.images[channel]}: shape {shape}, plate {row.plate} has {usual}. "
        "Copy or export it again."
        for row, channel, shape in shapes
        if shape != usual
    ]


def _name(row: ImageRow, channel: str) -> str:
    return f"{row.images[channel]} ({row.where}, {row.place})"
