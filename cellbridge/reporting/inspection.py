"""What `inspect` shows: a plate's maps, histograms and montage as files, and as the values that its page is rendered from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.data.overview import Overview
from cellbridge.plots.composite import contrast_limits
from cellbridge.plots.montage import montage
from cellbridge.plots.plates import histogram, plain, plate_maps
from cellbridge.reporting.pages import data_uri, png_bytes


@dataclass(frozen=True)
class Scene:
    """What there is to draw, from a store or from a data set.

    Parameters
    ----------
    per_unit : whether the number of cells is told per field.
    pictures : condition → (n, channel, y, x), in the order of rows; control first.
    limits_of : what the contrast is taken from, (n, channel, y, x).
    """

    title: str
    overview: Overview
    plate_format: int
    pixel_um: float | None
    per_unit: bool
    what: str
    pictures: Mapping[str, np.ndarray]
    limits_of: np.ndarray
    conditions: Mapping[str, int]
    rejected: Mapping[str, int] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def page_view(scene: Scene, folder: Path) -> dict[str, Any]:
    """Save every picture, and return what the page shows."""

    def saved(axes: Any, name: str) -> str:
        content = png_bytes(axes)
        (folder / f"{name}.png").write_bytes(content)
        return data_uri(content)

    overview = scene.overview
    count = "nuclei per field" if scene.per_unit else "cells"
    plates = []
    for number, plate in enumerate(sorted(overview.plates), start=1):
        maps = overview.maps(plate, plate_format=scene.plate_format, per_unit=scene.per_unit)
        named = {count: maps.pop("cells"), **{f"{name}, mean count": values for name, values in maps.items()}}
        marked = overview.controls(plate, plate_format=scene.plate_format)
        axes = plate_maps(named, title=f"plate {plate}", marked=marked)
        words = f"Each map has a scale of its own; a dot marks a control well, grey is no image. {scene.what}"
        plates.append({"name": f"Plate {plate}", "caption": words, "data": saved(axes[0], f"plate-{number}")})
    histograms = []
    for index, channel in enumerate(overview.channels):
        groups = {name: overview.bins[which, index] for which, name in enumerate(("control", "treated"))}
        axes_one = histogram(overview.edges, groups, title=channel, full_scale=overview.full_scale)
        words = (
            f"Control wells against all others, all plates together; the dotted line is the full scale. {scene.what}"
        )
        histograms.append({"name": channel, "caption": words, "data": saved(axes_one, f"histogram-{index + 1}")})
    rows = {plain(name if len(name) <= 24 else f"{name[:22]}…"): images for name, images in scene.pictures.items()}
    axes_rows = montage(rows, overview.channels, contrast_limits(scene.limits_of), pixel_um=scene.pixel_um)
    scale = "" if scene.pixel_um else " The pixel size is not known, so that there is no scale bar."
    words = (
        "One row per condition, none picked by eye, one contrast for all; under its name the least, mean and largest count. "
        f"Stains: {', '.join(overview.channels)}.{scale}"
    )
    return {
        "title": scene.title,
        "facts": scene.facts,
        "notes": scene.notes,
        "plates": plates,
        "histograms": histograms,
        "montage": {"name": "Images of each condition", "caption": words, "data": saved(axes_rows, "montage")},
        "rejected": _rejected(scene),
        "conditions": [{"name": name, "count": n} for name, n in scene.conditions.items()],
        "unit": "fields" if scene.per_unit else "cells",
    }


def _rejected(scene: Scene) -> list[dict[str, Any]]:
    kept = sum(well.cells for wells in scene.overview.plates.values() for well in wells.values())
    found = kept + sum(scene.rejected.values())
    ordered = sorted(scene.rejected.items(), key=lambda item: -item[1])
    return [{"reason": name.replace("_", " "), "count": n, "share": f"{n / found:.1%}"} for name, n in ordered]


def well_rows(scene: Scene) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the numbers behind the maps, one row per well."""
    channels = scene.overview.channels
    columns = ["Metadata_Plate", "Metadata_Well", "control", *(["fields"] if scene.per_unit else []), "cells"]
    rows = []
    for plate, wells in sorted(scene.overview.plates.items()):
        for well, seen in sorted(wells.items()):
            means = {
                f"mean_count_{name}": f"{seen.sums[i] / max(1, seen.pixels):.6g}" for i, name in enumerate(channels)
            }
            rows.append(
                {"Metadata_Plate": plate, "Metadata_Well": well, "control": seen.control}
                | {"fields": seen.units, "cells": seen.cells, **means}
            )
    return [*columns, *(f"mean_count_{name}" for name in channels)], rows
