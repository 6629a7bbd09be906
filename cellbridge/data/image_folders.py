"""Folders of image files: one sub-folder per condition as torchvision's ImageFolder has it, one file per image or per channel."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.data.image_sets import Form, ImageSet, channel_names, channels_first, files_sha256, span_of
from cellbridge.data.image_tables import TABLE_NAME, described, read_descriptions
from cellbridge.data.images import TIFF_SUFFIXES, read_array
from cellbridge.errors import ImageError, did_you_mean

SUFFIXES = (".png", ".npy", *TIFF_SUFFIXES)
_LOSSY = (".jpg", ".jpeg", ".webp")


def read_folder(folder: Path, form: Form) -> ImageSet:
    """Read a folder; images lie in it, or in sub-folders that are named by condition, as deep below as they like.

    A `metadata.csv` in the folder (columns `path` or `file_name`, and any of Metadata_Compound, _Concentration, _Plate, _Well, _Site)
    says more of each image than its place; files that it does not list are left out.

    Raises
    ------
    ImageError : no image, images both beside and in sub-folders, a channel without its file, or images of several shapes or types.
    """
    files = _image_files(folder)
    groups = _grouped(files, folder, form)
    described_rows = read_descriptions(folder / TABLE_NAME, folder) if (folder / TABLE_NAME).is_file() else None
    if described_rows is not None:
        groups = {key: parts for key, parts in groups.items() if any(part in described_rows for part in parts.values())}
        if not groups:
            raise ImageError(f"{folder / TABLE_NAME}: lists none of the {len(files)} images. Correct its paths.")
    channels = _channels_found(groups, folder, form)
    keys = sorted(groups)
    values = _stacked([(folder, groups[key], channels) for key in keys], form)
    names = channels if form.pattern != "{image}" else channel_names(values.shape[1], form)
    rows = [None if described_rows is None else _row(groups[key], described_rows) for key in keys]
    return ImageSet(
        path=folder,
        values=values,
        span=span_of(values, form, where=str(folder)),
        channels=names,
        ids=tuple(image for _, image in keys),
        **described([condition for condition, _ in keys], rows),
        sha256=files_sha256([*files, *folder.glob(TABLE_NAME)], folder),
    )


def _image_files(folder: Path) -> list[Path]:
    found = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _hidden(file, folder)]
    files = [file for file in found if file.suffix.lower() in SUFFIXES]
    if not files:
        lossy = next((file for file in found if file.suffix.lower() in _LOSSY), None)
        why = f" ({lossy.name} is stored with loss, which no distance may rest on)" if lossy else ""
        raise ImageError(f"{folder}: holds no image{why}. Expected {', '.join(SUFFIXES)}, directly or in sub-folders.")
    direct = [file for file in files if file.parent == folder]
    if direct and len(direct) < len(files):
        below = next(file for file in files if file.parent != folder)
        raise ImageError(
            f"{folder}: images lie both in it ({direct[0].name}) and in sub-folders ({below.relative_to(folder)}). "
            "Give the folder that holds one sub-folder per condition, or none."
        )
    return files


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in file.relative_to(folder).parts)


def _grouped(files: Iterable[Path], folder: Path, form: Form) -> dict[tuple[str, str], dict[str, Path]]:
    """Return (condition, image) → channel → file; the channel is "" where one file holds all."""
    expression = _expression(form)
    groups: dict[tuple[str, str], dict[str, Path]] = {}
    for file in files:
        place = file.relative_to(folder)
        found = expression.fullmatch(place.stem)
        if found is None:
            among = f" with channels {', '.join(form.channels)}" if form.channels else ""
            raise ImageError(
                f'{file}: the name does not fit the pattern "{form.pattern}"{among}. Correct pattern or channels.'
            )
        condition = place.parts[0] if len(place.parts) > 1 else ""
        image = (Path(*place.parts[1 if condition else 0 : -1]) / found["image"]).as_posix()
        parts = groups.setdefault((condition, image), {})
        channel = found.groupdict().get("channel", "")
        if channel in parts:
            raise ImageError(f"{file}: shows the same image as {parts[channel].name}. Keep one of them.")
        parts[channel] = file
    return groups


def _expression(form: Form) -> "re.Pattern[str]":
    literal = re.escape(form.pattern).replace(r"\{image\}", "(?P<image>.+)", 1)
    if "{image}" not in form.pattern:
        raise ImageError(
            f'pattern "{form.pattern}": has no {{image}}. Write it as {{image}}, or {{image}}_{{channel}}.'
        )
    names = "|".join(sorted(map(re.escape, form.channels), key=len, reverse=True)) if form.channels else "[^_. -]+"
    return re.compile(literal.replace(r"\{channel\}", f"(?P<channel>{names})", 1))


def _channels_found(groups: Mapping[Any, Mapping[str, Path]], folder: Path, form: Form) -> tuple[str, ...]:
    """Return the channels that the file names tell, after checking that every image has each of them."""
    found = {channel for parts in groups.values() for channel in parts}
    channels = form.channels if form.channels and found != {""} else tuple(sorted(found))
    for (condition, image), parts in groups.items():
        missing = next((channel for channel in channels if channel not in parts), None)
        if missing is not None and found != {""}:
            known = did_you_mean(missing, parts)
            raise ImageError(f'{folder / condition / image}: no file for channel "{missing}".{known}')
    return channels


def _stacked(images: list[tuple[Path, Mapping[str, Path], tuple[str, ...]]], form: Form) -> NDArray[Any]:
    """Read images (n, channel, height, width) into one array, each checked against the first."""
    stack: NDArray[Any] | None = None
    first = ""
    for index, (folder, parts, channels) in enumerate(images):
        planes = [_read(parts[channel], form, alone=len(channels) == 1) for channel in channels]
        where = next(iter(parts.values())).relative_to(folder)
        shapes = {(plane.shape[-2:], plane.dtype.str) for plane in planes}
        image = np.concatenate(planes) if len(shapes) == 1 else planes[0]
        if stack is None:
            stack, first = np.empty((len(images), *image.shape), image.dtype), str(where)
        if len(shapes) > 1 or image.shape != stack.shape[1:] or image.dtype != stack.dtype:
            raise ImageError(
                f"{folder / where}: {image.dtype} of shape {image.shape}, expected {stack.dtype} of {stack.shape[1:]} as in {first}. "
                "Resize all images of both sides in one way, and store them in one type."
            )
        stack[index] = image
    assert stack is not None
    return stack


def _read(file: Path, form: Form, *, alone: bool) -> NDArray[Any]:
    array = read_array(file)
    while array.ndim > 3 and 1 in array.shape:
        array = array.squeeze(array.shape.index(1))
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(f"{file}: shape {array.shape}, expected height and width, and maybe channels.")
    png = file.suffix.lower() == ".png"
    if png and array.ndim == 3 and array.shape[-1] in (2, 4) and len(form.channels or ()) != array.shape[-1]:
        array = _without_alpha(array, file)
    if alone:
        return channels_first(array, form, where=str(file), png=png and array.ndim == 3)
    planes = (
        channels_first(array, Form(axes="HWC" if png else None), where=str(file)) if array.ndim == 3 else array[None]
    )
    if len(planes) > 1 and not bool((planes == planes[:1]).all()):
        raise ImageError(f'{file}: {len(planes)} channels that differ, expected one by the pattern "{form.pattern}".')
    return planes[:1]


def _without_alpha(array: NDArray[Any], file: Path) -> NDArray[Any]:
    if not bool((array[..., -1] == np.iinfo(array.dtype).max).all()):
        raise ImageError(
            f"{file}: {array.shape[-1]} channels, the last of which may be transparency. Name all in channels, or save it without."
        )
    return array[..., :-1]


def _row(parts: Mapping[str, Path], rows: Mapping[Path, Mapping[str, str]]) -> Mapping[str, str]:
    return next(rows[part] for part in parts.values() if part in rows)
