"""Where the cells of a prepared store come from, as it stands in the store: what made them, and what was left out.

What of that changes the store's bytes is the same wherever and whenever it is made. Paths, the command and the commit are its
provenance, a file beside the data that its hash leaves out.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellbridge import runs
from cellbridge.data.annotation import aliases
from cellbridge.data.extraction import Geometry
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.survey import Flats

_PLACES = ("manifest", "root", "crops_from", "workers")
"""Settings that say where files lie and how the work is shared; the data set and the source have their hashes."""


def attributes(
    manifest: Manifest, rows: Sequence[ImageRow], geometry: Geometry, *, flats: Flats, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the attributes of a store that was prepared from a data set, as JSON has them."""
    described = {key: getattr(manifest, key) for key in ("name", "description", "licence", "citation", "source")}
    settings = {key: value for key, value in config.items() if key not in _PLACES}
    settings["segmentation"] = {key: value for key, value in config["segmentation"].items() if key != "cellpose"}
    found: dict[str, Any] = {
        "aliases": aliases(rows),
        "crop_px": geometry.crop_px,
        "border": geometry.choice.border,
        "data_set": {**described, "manifest_sha256": runs.file_sha256(_manifest_file(config))},
        "split": config["split"],
        "made_by": {"cellbridge": runs.code_version()["cellbridge"]},
        "config": settings,
    }
    if manifest.holds_fields:
        found["illumination"] = {
            plate: {channel: list(flat.coefficients) for channel, flat in channels.items()}
            for plate, channels in sorted(flats.items())
        }
        found |= {"illumination_given": given} if (given := given_light(rows)) else {}
    if geometry.nucleus_px is not None:
        weights = None if geometry.weights is None else runs.file_sha256(Path(geometry.weights))
        found["segmentation"] = {
            "nucleus_px": geometry.nucleus_px,
            "cell_reach": geometry.cell_reach,
            "min_area": geometry.choice.min_area,
            "max_area": geometry.choice.max_area,
            "touching": geometry.choice.touching,
            **({} if weights is None else {"cellpose_sha256": weights}),
        }
    return found


def given_light(rows: Sequence[ImageRow]) -> dict[str, dict[str, list[str]]]:
    """Return plate → channel → hashes of the illumination functions that the tables name."""
    files: dict[str, dict[str, set[Path]]] = {}
    for row in rows:
        for channel, file in row.illumination.items():
            files.setdefault(row.plate, {}).setdefault(channel, set()).add(file)
    sums = {file: runs.file_sha256(file) for plate in files.values() for some in plate.values() for file in some}
    return {
        plate: {channel: sorted({sums[file] for file in some}) for channel, some in sorted(channels.items())}
        for plate, channels in sorted(files.items())
    }


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the command, the whole configuration with its paths, and the code's version and commit."""
    return {"command": sys.argv, "config": dict(config), **runs.code_version()}


def _manifest_file(config: Mapping[str, Any]) -> Path:
    path = Path(config["manifest"])
    return path / "manifest.yaml" if path.is_dir() else path
