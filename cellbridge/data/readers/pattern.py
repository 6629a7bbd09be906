r"""Images whose names say what they show: ImageXpress, Phenix, CellVoyager, or any folder, by a regular expression.

The expression has to match an image's whole path below the root, with forward slashes. Its named groups:

    plate, or plate_1, plate_2 … joined by "_"     else constants: {Metadata_Plate: …}
    well, or row (letters or a number) and column  B03, b3, or 2 and 3
    site                                           else 1
    channel                                        as in channel_names; without it the pages of a file are the channels, in order
    any other                                      becomes Metadata_<group>

ImageXpress (BBBC022)  (?:.*/)?\w+_images_(?P<plate>\d+)w\d/\w+_(?P<well>[A-P]\d\d)_s(?P<site>\d)_w(?P<channel>\d)[0-9A-F-]*\.tif
Phenix                 (?P<plate>[^/]+)/(?:Images/)?r(?P<row>\d\d)c(?P<column>\d\d)f(?P<site>\d\d)p01-ch(?P<channel>\d)sk\d+fk\d+fl\d+\.tiff
CellVoyager            (?P<plate>[^/]+)/.*_(?P<well>[A-P]\d\d)_T0001F(?P<site>\d{3})L\d\dA\d\dZ01C(?P<channel>\d\d)\.tif
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cellbridge.data.images import IMAGE_SUFFIXES, PARTIAL_SUFFIXES
from cellbridge.data.manifest import Manifest
from cellbridge.data.planes import Plane
from cellbridge.data.readers.faults import apart, refuse
from cellbridge.data.readers.places import PlaneRow, gather_fields, may_be_wanted, well_of
from cellbridge.data.readers.rows import ImageRow
from cellbridge.errors import ManifestError

_SHOWN = 5
_PLATE = re.compile(r"plate(?:_(\d+))?")
_PLACES = {"well": "Metadata_Well", "site": "Metadata_Site"}


def read_pattern(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per field; no image is opened.

    Raises
    ------
    ManifestError : a folder is missing or holds no image, the pattern matches some images only, a copy was not finished, or a
        channel is unknown, missing or there twice.
    """
    expression = re.compile(manifest.pattern or "")
    _require_groups(expression, manifest)
    planes: list[PlaneRow] = []
    unmatched: list[str] = []
    matched = False
    for name in _image_names(manifest, root):
        match = expression.fullmatch(name)
        if match is None:
            unmatched.append(name)
        else:
            matched = True
            with apart("row"):
                planes.extend(row for row in _planes(match, root, manifest) if may_be_wanted(row.metadata, manifest))
    if unmatched:
        more = f", … {len(unmatched) - _SHOWN} more" if len(unmatched) > _SHOWN else ""
        remedy = "Correct pattern, or name what is to be left alone with ignore."
        summary = f"{manifest.file}: pattern: {len(unmatched)} images below {root} do not match the pattern: {', '.join(unmatched[:_SHOWN])}{more}. {remedy}"
        refuse("row", [f"{root / name}: does not match the pattern. {remedy}" for name in unmatched], summary=summary)
    if not matched and not unmatched:
        raise ManifestError(
            f"{manifest.file}: folders: no image below {', '.join(manifest.folders)} in {root}. Correct folders or ignore."
        )
    return gather_fields(planes, manifest)


def _require_groups(expression: re.Pattern[str], manifest: Manifest) -> None:
    """Refuse an expression that does not say which plate and well an image shows."""
    groups = {"plate" if _PLATE.fullmatch(name) else name for name in expression.groupindex}
    says = {"plate": "plate" in groups, "well": "well" in groups or {"row", "column"} <= groups}
    for name, said in says.items():
        if not said and f"Metadata_{name.capitalize()}" not in manifest.constants:
            other = " (or (?P<row>…) and (?P<column>…))" if name == "well" else ""
            raise ManifestError(
                f"{manifest.file}: pattern: has no group (?P<{name}>…){other}. Add it, or give Metadata_{name.capitalize()} under "
                "constants."
            )


def _image_names(manifest: Manifest, root: Path) -> Iterator[str]:
    """Yield the paths of all images below the folders, relative to the root, in order; what `ignore` matches is passed over."""
    left_alone = re.compile(manifest.ignore) if manifest.ignore else None
    for name in manifest.folders:
        folder = manifest.locate(name, root, where="folders")
        if not folder.is_dir():
            raise ManifestError(
                f'{manifest.file}: folders: "{name}" is no folder below {root}. Correct it, or copy the images there.'
            )
        found = sorted(_files(folder, root))
        for path in found:
            if left_alone is not None and left_alone.fullmatch(path):
                continue
            if path.lower().endswith(PARTIAL_SUFFIXES):
                with apart("incomplete_file"):
                    raise ManifestError(f"{root / path}: a copy that was not finished. Fetch or copy the file again.")
            if path.lower().endswith(IMAGE_SUFFIXES):
                yield path


def _files(folder: Path, root: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to the root; hidden folders hold other things than images."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, file).relative_to(root).as_posix() for file in files)


def _planes(match: re.Match[str], root: Path, manifest: Manifest) -> Iterator[PlaneRow]:
    name = match[0]
    groups = {group: text for group, text in match.groupdict().items() if text is not None}
    channel = groups.pop("channel", None)
    said = {group: text for group, text in groups.items() if group not in ("plate", "row", "column")}
    metadata = {_PLACES.get(group, f"Metadata_{group}"): text for group, text in said.items()}
    parts = sorted((int(found[1] or 0), text) for group, text in groups.items() if (found := _PLATE.fullmatch(group)))
    if parts:
        metadata["Metadata_Plate"] = "_".join(text for _, text in parts)
    if "row" in groups and "column" in groups:
        metadata["Metadata_Well"] = well_of(groups["row"], groups["column"], where=name)
    if "Metadata_Site" in metadata:
        metadata["Metadata_Site"] = metadata["Metadata_Site"].lstrip("0") or "0"
    metadata = {**manifest.constants, **metadata}
    if channel is not None:
        yield PlaneRow(metadata, channel, Plane(root / name), name)
        return
    for page, stain in enumerate(manifest.channels):
        yield PlaneRow(metadata, stain, Plane(root / name, (page,)), name)
