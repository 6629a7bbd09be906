"""What OME-Zarr says of a plate, a well and an image, as plain JSON, in version 0.4 (Zarr v2) or 0.5 (Zarr v3).

References
----------
OME-NGFF specification 0.4 and 0.5 (Moore et al. 2021, Nature Methods 18, 1496): "plate", "well", "multiscales", "omero".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cellbridge.data.exporting.plates import Field, Plate, well_path
from cellbridge.data.layout import row_name, well_position

Version = Literal["0.5", "0.4"]


@dataclass(frozen=True)
class Stain:
    """A channel as it is shown: its name, colour (RRGGBB), and what is shown black and in full, in counts."""

    name: str
    colour: str
    black: float
    white: float


def plate_attributes(plate: Plate, *, version: Version) -> dict[str, Any]:
    """Return the attributes of a plate's group."""
    fields, down, across = plate.of_well(), *plate.shape
    of_acquisition = {
        one.number: max(sum(field.acquisition == one.number for field in of_well) for of_well in fields.values())
        for one in plate.acquisitions
    }
    described = {
        "name": plate.name,
        "rows": [{"name": row_name(row)} for row in range(down)],
        "columns": [{"name": f"{column + 1:02d}"} for column in range(across)],
        "wells": [_well(well) for well in fields],
        "field_count": max(len(of_well) for of_well in fields.values()),
        "acquisitions": [
            {"id": one.number, "name": one.name, "maximumfieldcount": of_acquisition[one.number]}
            for one in plate.acquisitions
        ],
    }
    return _versioned({"plate": described}, version=version)


def well_attributes(fields: Sequence[Field], *, version: Version) -> dict[str, Any]:
    """Return the attributes of a well's group."""
    images = [{"path": field.path, "acquisition": field.acquisition} for field in fields]
    return _versioned({"well": {"images": images}}, version=version)


def image_attributes(
    name: str,
    *,
    levels: int,
    pixel_um: float | None,
    stains: Sequence[Stain],
    full_scale: int,
    own: Mapping[str, Any],
    version: Version,
) -> dict[str, Any]:
    """Return the attributes of an image (channel, y, x) whose level k is that at k - 1, two by two pixels averaged into one.

    Parameters
    ----------
    own : what cellbridge itself says of the image, outside of what the specification names.
    """
    units = {} if pixel_um is None else {"unit": "micrometer"}
    scale = {
        "name": name,
        "axes": [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", **units} for axis in "yx")],
        "datasets": [
            {"path": str(level), "coordinateTransformations": _transformations(level, pixel_um or 1.0)}
            for level in range(levels)
        ],
        **({"type": "mean"} if levels > 1 else {}),
    }
    channels = [
        {
            "label": stain.name,
            "color": stain.colour,
            "active": True,
            "window": {"min": 0, "max": full_scale, "start": stain.black, "end": stain.white},
        }
        for stain in stains
    ]
    described = {"multiscales": [scale], "omero": {"name": name, "channels": channels}}
    return {**_versioned(described, version=version), "cellbridge": dict(own)}


def _transformations(level: int, pixel_um: float) -> list[dict[str, Any]]:
    """Return the scale of a level, and the shift of its first pixel's centre against that of level 0."""
    scale = {"type": "scale", "scale": [1.0, pixel_um * 2**level, pixel_um * 2**level]}
    shift = pixel_um * (2**level - 1) / 2
    return [scale] if level == 0 else [scale, {"type": "translation", "translation": [0.0, shift, shift]}]


def _well(well: str) -> dict[str, Any]:
    row, column = well_position(well)
    return {"path": well_path(well), "rowIndex": row, "columnIndex": column}


def _versioned(described: dict[str, Any], *, version: Version) -> dict[str, Any]:
    """Return the attributes with their version: that of each part in 0.4; in 0.5 one for all, which plates and wells repeat."""
    named: dict[str, Any] = {}
    for key, value in described.items():
        if version == "0.5" and key not in ("plate", "well"):
            named[key] = value
        elif isinstance(value, list):
            named[key] = [{"version": version, **part} for part in value]
        else:
            named[key] = {"version": version, **value}
    return {"ome": {"version": version, **named}} if version == "0.5" else named
