"""OME-Zarr plates for high-content screening, versions 0.4 (Zarr v2) and 0.5 (Zarr v3): plate → wells → fields → channels.

Channels are told apart by the labels of `omero`, or by their number as in `channel_names: {"0": DNA}`; never by their order alone.
The finest level of each field is read.

References
----------
OME-NGFF specification 0.4 and 0.5: "plate", "well", "multiscales", "omero".
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cellbridge.data.manifest import Manifest, resolve_path
from cellbridge.data.planes import Plane
from cellbridge.data.readers.faults import apart
from cellbridge.data.readers.places import PlaneRow, gather_fields, may_be_wanted
from cellbridge.data.readers.rows import ImageRow
from cellbridge.errors import ManifestError, in_one_line

_VERSIONS = ("0.4", "0.5")


def read_ome_zarr(manifest: Manifest, root: Path) -> list[ImageRow]:
    """Return one row per field of every plate under `folders`; no pixel is read.

    Raises
    ------
    ManifestError : a folder is no plate of version 0.4 or 0.5, its parts do not fit together, a field has several times or focal
        planes, or a channel is unknown, missing or there twice.
    """
    planes: list[PlaneRow] = []
    for name in manifest.folders:
        with apart("table"):
            folder = manifest.locate(name, root, where="folders")
            planes.extend(row for row in _planes_of_plate(folder, manifest) if may_be_wanted(row.metadata, manifest))
    return gather_fields(planes, manifest)


def _planes_of_plate(folder: Path, manifest: Manifest) -> Iterator[PlaneRow]:
    attributes = _attributes(folder)
    plate = _part(attributes, "plate", folder, kind=dict)
    version = str(attributes.get("version") or plate.get("version"))
    if version not in _VERSIONS:
        raise ManifestError(
            f"{folder}: OME-Zarr version {version}, expected {' or '.join(_VERSIONS)}. Convert the plate."
        )
    name = str(plate.get("name") or folder.name.removesuffix(".zarr").removesuffix(".ome"))
    for well in _mappings(plate, "wells", folder):
        with apart("row"):
            yield from _planes_of_well(well, _well(well, plate, folder), folder, name, manifest)


def _planes_of_well(
    well: dict[str, Any], place: str, folder: Path, plate: str, manifest: Manifest
) -> Iterator[PlaneRow]:
    well_folder = resolve_path(str(well["path"]), folder, where=f"{folder} wells")
    described = _part(_attributes(well_folder), "well", well_folder, kind=dict)
    for image in _mappings(described, "images", well_folder):
        with apart("row"):
            path = str(image.get("path", ""))
            metadata = {**manifest.constants, "Metadata_Plate": plate, "Metadata_Well": place, "Metadata_Site": path}
            if "acquisition" in image:
                metadata["Metadata_Acquisition"] = str(image["acquisition"])
            field = resolve_path(path, well_folder, where=f"{well_folder} images")
            yield from _planes_of_field(field, metadata, manifest)


def _well(well: dict[str, Any], plate: dict[str, Any], folder: Path) -> str:
    """Return the well's name, on which its path and its indices have to agree."""
    path = str(well.get("path", ""))
    try:
        rows, columns = dict(enumerate(plate["rows"])), dict(enumerate(plate["columns"]))
        row, column = rows[well["rowIndex"]]["name"], columns[well["columnIndex"]]["name"]
    except (KeyError, IndexError, TypeError):
        raise ManifestError(
            f'{folder}: well "{path}" has no rowIndex and columnIndex among the rows and columns. Write the plate again.'
        ) from None
    if path != f"{row}/{column}":
        raise ManifestError(
            f'{folder}: well "{path}" lies at row {row}, column {column} by its indices. Write it again.'
        )
    return f"{row}{column}"


def _planes_of_field(folder: Path, metadata: dict[str, str], manifest: Manifest) -> Iterator[PlaneRow]:
    attributes = _attributes(folder)
    scales = _part(attributes, "multiscales", folder, kind=list)
    try:
        axes = [axis["name"] for axis in scales[0]["axes"]]
        array = resolve_path(str(scales[0]["datasets"][0]["path"]), folder, where=f"{folder} datasets")
    except (KeyError, IndexError, TypeError):
        raise ManifestError(f"{folder}: its multiscales name no axes and datasets. Write the field again.") from None
    shape = _shape(array)
    if axes[-2:] != ["y", "x"] or len(axes) != len(shape) or set(axes[:-2]) - {"t", "c", "z"}:
        raise ManifestError(
            f"{array}: axes {''.join(axes)} of shape {shape}, expected t, c, z before y, x. Write it again."
        )
    sizes = dict(zip(axes, shape, strict=True))
    for axis, what in (("t", "times"), ("z", "focal planes")):
        if sizes.get(axis, 1) != 1:
            raise ManifestError(
                f"{array}: {sizes[axis]} {what}, expected one. Choose or project them, and write the plate again."
            )
    for number, label in enumerate(_labels(attributes, sizes.get("c", 1), manifest)):
        index = tuple(number if axis == "c" else 0 for axis in axes[:-2])
        yield PlaneRow(metadata, label, Plane(array, index), str(folder))


def _labels(attributes: dict[str, Any], number: int, manifest: Manifest) -> list[str]:
    """Return what the channels are called: their labels, else their numbers, for which channel_names has to know a name."""
    omero = attributes.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    listed = channels if isinstance(channels, list) else []
    labels = [str(channel.get("label", "")) for channel in listed if isinstance(channel, dict)]
    known = {*manifest.channels, *manifest.channel_names}
    if len(labels) == number and all(label in known for label in labels):
        return labels
    numbers = [str(index) for index in range(number)]
    return numbers if all(index in manifest.channel_names for index in numbers) or len(labels) != number else labels


def _shape(array: Path) -> tuple[int, ...]:
    for name in ("zarr.json", ".zarray"):
        if (array / name).is_file():
            shape = _json(array / name).get("shape")
            if isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape):
                return tuple(shape)
    raise ManifestError(
        f"{array}: no Zarr array with pixels, though the field names it as its finest level. Copy the plate again."
    )


def _attributes(folder: Path) -> dict[str, Any]:
    """Return a group's OME attributes, of either version."""
    if (folder / "zarr.json").is_file():
        attributes = _json(folder / "zarr.json").get("attributes", {})
        found = attributes.get("ome", {}) if isinstance(attributes, dict) else {}
    elif (folder / ".zattrs").is_file():
        found = _json(folder / ".zattrs")
    else:
        raise ManifestError(
            f"{folder}: no OME-Zarr group (no zarr.json or .zattrs). Correct folders, or copy it again."
        )
    if not isinstance(found, dict):
        raise ManifestError(f"{folder}: its OME attributes are no mapping. Write it again.")
    return found


def _part(attributes: dict[str, Any], key: str, folder: Path, *, kind: type) -> Any:
    part = attributes.get(key)
    if not isinstance(part, kind) or not part:
        raise ManifestError(
            f'{folder}: its OME attributes have no "{key}". Give the folder of a plate, or write it again.'
        )
    return part


def _mappings(attributes: dict[str, Any], key: str, folder: Path) -> list[dict[str, Any]]:
    """Return a list of the OME attributes, of which every entry has to be a mapping."""
    entries: list[Any] = _part(attributes, key, folder, kind=list)
    odd = next((entry for entry in entries if not isinstance(entry, dict)), None)
    if odd is not None:
        raise ManifestError(f'{folder}: "{odd}" among its {key} is no mapping with a path. Write it again.')
    return entries


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{file}: is no JSON ({in_one_line(error)}). Copy it again.") from None
    if not isinstance(values, dict):
        raise ManifestError(f"{file}: holds no mapping. Copy it again.")
    return values
