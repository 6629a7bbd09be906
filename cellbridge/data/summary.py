"""What is told of a data set that is prepared: what is allowed and seldom meant, what is in the store, and what is not."""

from collections.abc import Mapping, Sequence
from typing import Any

from cellbridge.data.collector import Collector
from cellbridge.data.extraction import Geometry
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.store import StoreInfo
from cellbridge.data.survey import Survey

_LEAST_NUCLEI, _USUAL_NUCLEI = 1.5, 2.5
"""The width in nuclei under which a crop shows no whole cell, and a usual one."""


def seldom_meant(
    splits: Mapping[tuple[str, str], str], geometry: Geometry, survey: Survey, *, pixel_um: float | None
) -> list[str]:
    """Return what is allowed and seldom meant, a line each.

    Parameters
    ----------
    splits : plate, well → train or test; {} where another store's are taken.
    pixel_um : width of a pixel of the images, where it is known.
    """
    told = []
    if splits and set(splits.values()) == {"test"}:
        told.append("split.test holds out everything, so that no cell is left to train on. Name fewer, or leave it so.")
    if survey.of_one_value.count:
        told.append(f"{_images(survey.of_one_value.count)} one value only: {survey.of_one_value.names}. Look at them.")
    nucleus_px = geometry.nucleus_px
    if nucleus_px is not None and geometry.crop_px < _LEAST_NUCLEI * nucleus_px:
        wide = round(_USUAL_NUCLEI * nucleus_px)
        or_um = "" if pixel_um is None else f" or crop_um={wide * pixel_um:.3g}"
        told.append(
            f"a crop of {geometry.crop_px} px is {geometry.crop_px / nucleus_px:.1f} nuclei wide (nucleus_px {nucleus_px:.3g}), so "
            f"cells are cut down to their middles. Set crop_px={wide}{or_um} ({_USUAL_NUCLEI} nuclei), resampled to size_px."
        )
    return told


def _images(count: int) -> str:
    return "1 image has" if count == 1 else f"{count} images have"


def summary(
    info: StoreInfo,
    rows: Sequence[ImageRow],
    manifest: Manifest,
    collector: Collector,
    geometry: Geometry,
    *,
    survey: Survey | None,
    warnings: Sequence[str],
    by_split: Mapping[str, int],
) -> dict[str, Any]:
    """Return what is in a store, and what is not.

    Parameters
    ----------
    survey : None where the images were not looked at, as the cells are another store's.
    warnings : from `seldom_meant`.
    by_split : train or test → number of cells.
    """
    blank = {(row.plate, row.well) for row in rows if row.blank_control}
    lights = {*(survey.flats if survey is not None else ()), *info.attributes.get("illumination_given", {})}
    return {
        "cells": info.n_cells,
        "fields" if manifest.holds_fields else "crops": len(rows),
        "channels": list(info.channels),
        "channels_left_out": [name for name in manifest.channels if name not in manifest.stains],
        "plates": list(info.plates),
        "cells_by_condition": dict(info.n_by_condition),
        "cells_by_split": dict(by_split),
        "rejected": dict(sorted(collector.rejected.items())),
        **empty_fields(manifest, collector, survey),
        "without_mask": collector.without_mask,
        "nucleus_px": geometry.nucleus_px,
        **({"warnings": list(warnings)} if warnings else {}),
        **({"wells_control_by_empty_compound": len(blank)} if blank else {}),
        "illumination_corrected": sorted(lights),
        **({"stored_bits": info.attributes["stored_bits"]["words"]} if "stored_bits" in info.attributes else {}),
    }


def empty_fields(manifest: Manifest, collector: Collector, survey: Survey | None) -> dict[str, Any]:
    """Return which fields gave no cell, and which images show nothing: how many, and the first few; {} of crops.

    Parameters
    ----------
    survey : None where the images were not looked at, as the cells are another store's.
    """
    if not manifest.holds_fields:
        return {}
    found = {"fields_without_cells": collector.without_cells.values()}
    return found if survey is None else found | {"images_of_one_value": survey.of_one_value.values()}
