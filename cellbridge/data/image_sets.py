"""Images that cellbridge did not make, from whatever holds them: a folder, an array file with a table, a Zarr group, a store.

Nothing is written beside them, and no image is rescaled by its own values: counts become [-1, 1] by one map for all.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellbridge.errors import ImageError

_MOST_CHANNELS = 16
"""An axis longer than this is not taken for the channels."""


@dataclass(frozen=True)
class Form:
    """How a set's images are to be read, where the files alone do not say it.

    Parameters
    ----------
    channels : stain names, in the order of the axis, or as they stand in the file names; None takes what is found.
    pattern : a file's name without its suffix: `{image}` where one file holds all channels, such as `{image}_{channel}` where each
        holds one.
    axes : where the channels lie; None finds it, where only one axis can be it.
    full_scale : the count that means 1; None takes the type's largest (255 or 65535).
    value_range : what means -1 and 1 in images of floating-point numbers; they are refused without it.
    """

    channels: tuple[str, ...] | None = None
    pattern: str = "{image}"
    axes: Literal["HWC", "CHW"] | None = None
    full_scale: int | None = None
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class ImageSet:
    """Images with what is known of each; row i of every field is image i.

    Parameters
    ----------
    path : where they came from.
    values : (n, channel, height, width), as stored: uint8, uint16 or floating-point.
    span : the stored values that mean -1 and 1.
    ids : name within its condition, which pairs an output with its source.
    conditions : by name; "" where nothing says.
    plates, wells, sites : "" where nothing says.
    sha256 : over the names and bytes of all files.
    """

    path: Path
    values: NDArray[Any]
    span: tuple[float, float]
    channels: tuple[str, ...]
    ids: tuple[str, ...]
    conditions: tuple[str, ...]
    plates: tuple[str, ...]
    wells: tuple[str, ...]
    sites: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.values)

    def images(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return images float32, 2 (value - low) / (high - low) - 1; beyond [-1, 1] where a value leaves the span."""
        low, high = self.span
        chosen = self.values if rows is None else self.values[np.asarray(rows, dtype=np.int64)]
        return (2.0 * (chosen.astype(np.float64) - low) / (high - low) - 1.0).astype(np.float32)

    def take(self, rows: NDArray[np.int64]) -> "ImageSet":
        """Return some of the images, in the order given."""
        named = ("ids", "conditions", "plates", "wells", "sites")
        fields: dict[str, Any] = {name: tuple(getattr(self, name)[row] for row in rows) for name in named}
        return replace(self, values=self.values[rows], **fields)


def read_image_set(path: Path, form: Form | None = None) -> ImageSet:
    """Read a set of images.

    A **folder** holds PNG, TIFF or .npy files, directly or in one sub-folder per condition (`image_folders`). An **array file** is
    `.npy`, or `.npz` with `images` (or its only four-dimensional array) and maybe `labels`, with a table of the same name beside it
    (`.csv`, or `.parquet`), or `.h5ad` with `obsm["images"]`. A **Zarr group** has `images` and maybe `labels`; a cellbridge **store**
    is one of them.

    Raises
    ------
    ImageError : nothing of this kind is there, a file is damaged, or shapes, types or channels differ or leave the meaning open.
    """
    found = _read(path, form or Form())
    repeated = Counter(zip(found.conditions, found.ids, strict=True)).most_common(1)[0]
    if repeated[1] > 1:
        raise ImageError(f'{path}: {repeated[1]} images are called "{repeated[0][1]}". Give each a name of its own.')
    return found


def _read(path: Path, form: Form) -> ImageSet:
    from cellbridge.data import image_arrays, image_folders

    if path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        return image_arrays.read_zarr(path, form)
    if path.is_dir():
        return image_folders.read_folder(path, form)
    if path.is_file():
        return image_arrays.read_array_file(path, form)
    raise ImageError(f"{path}: is not there. Give a folder of images, an .npy, .npz or .h5ad file, or a Zarr group.")


def channels_first(image: NDArray[Any], form: Form, *, where: str, png: bool = False) -> NDArray[Any]:
    """Return an image, or a stack of them, with its channels before height and width: (…, channel, height, width).

    Raises
    ------
    ImageError : no axis, or more than one, can be the channels.
    """
    if image.ndim < 3:
        return image[..., None, :, :]
    first, last = image.shape[-3], image.shape[-1]
    wanted = None if form.channels is None else len(form.channels)
    likely = (("CHW", first), ("HWC", last))
    fits = [name for name, n in likely if (n == wanted if wanted else n <= _MOST_CHANNELS)]
    if png or form.axes is not None:
        fits = ["HWC" if png else str(form.axes)]
    if len(fits) != 1:
        problem = "the channels may be the first or the last axis" if fits else "no axis can be the channels"
        raise ImageError(f"{where}: shape {image.shape}, {problem}. Set axes to HWC or CHW, or correct channels.")
    image = image if fits[0] == "CHW" else np.moveaxis(image, -1, -3)
    if wanted and image.shape[-3] != wanted:
        raise ImageError(
            f"{where}: {image.shape[-3]} channels, expected {wanted} ({', '.join(form.channels or ())}). Correct channels."
        )
    return image


def span_of(values: NDArray[Any], form: Form, *, where: str) -> tuple[float, float]:
    """Return which stored values mean -1 and 1.

    Raises
    ------
    ImageError : another type than 8 or 16 bit or floating-point, values beyond the span, or numbers whose meaning nothing says.
    """
    if values.dtype.kind == "f":
        if form.value_range is None:
            raise ImageError(
                f"{where}: floating-point values, whose range nothing says. Set value_range, such as [0, 1] or [-1, 1]."
            )
        if not bool(np.isfinite(values).all()):
            raise ImageError(f"{where}: holds values that are not finite. Look at what made them.")
        span = form.value_range
    elif values.dtype in (np.uint8, np.uint16):
        span = (0.0, float(form.full_scale or np.iinfo(values.dtype).max))
    else:
        raise ImageError(f"{where}: type {values.dtype}, expected uint8, uint16 or floating-point. Convert it.")
    low, high = float(values.min()), float(values.max())
    slack = 0.05 * (span[1] - span[0]) if values.dtype.kind == "f" else 0.0
    if low < span[0] - slack or high > span[1] + slack:
        raise ImageError(
            f"{where}: values from {low:g} to {high:g} leave {span[0]:g} to {span[1]:g}. Correct full_scale or value_range."
        )
    return span


def channel_names(found: int, form: Form) -> tuple[str, ...]:
    """Return the channels' names: those given, or "channel 1", …"""
    return form.channels or tuple(f"channel {index + 1}" for index in range(found))


def files_sha256(files: Sequence[Path], root: Path) -> str:
    """Return one hash over the names (below `root`) and bytes of files."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(
            f"{file.relative_to(root).as_posix()}\x00{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
        )
    return total.hexdigest()
