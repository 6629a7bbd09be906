"""`cellbridge prepare`: plates of fields, or ready-made crops, into a store of single cells.

tables and plate maps → checked rows → survey of all images → even illumination → nuclei and cells → crops and masks → intensity
maps of the control → store. With `crops_from` the cells of another store are cut out of other images of the same fields.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from cellbridge import runs
from cellbridge.data.manifest import Manifest, read_manifest
from cellbridge.data.store import StoreInfo, describe, open_store, write_store
from cellbridge.errors import ConfigError, StoreError
from cellbridge.outputs import require_directory
from cellbridge.progress import bar
from cellbridge.settings import Section

if TYPE_CHECKING:
    from cellbridge.data.collector import Collector
    from cellbridge.data.extraction import Extracted, Geometry
    from cellbridge.data.readers.rows import ImageRow
    from cellbridge.data.survey import Flats

_SAMPLE_FIELDS, _SAMPLE_CROPS = 16, 64


class SplitConfig(Section):
    """What is held out whole for testing."""

    by: Literal["plate", "well"] = "plate"
    test: tuple[str, ...] = ()
    """Plates; or wells, as B03 (on every plate) or PLATE/B03."""


class SegmentationConfig(Section):
    """How nuclei and cells are found."""

    nucleus_px: PositiveFloat | None = None
    """Typical nucleus diameter in pixels of the images; by default the manifest's, else it is measured."""
    cell_reach: PositiveFloat | None = None
    """How far a cell may reach from its nucleus, in nucleus diameters; by default 1.2 with a cell stain, 0.7 without."""
    min_area: NonNegativeFloat = 0.25
    max_area: PositiveFloat = 4.0
    """Nuclei outside these shares of a disk of the typical diameter are rejected."""


class Config(Section):
    """What to prepare, and how."""

    manifest: Path
    root: Path | None = None
    """Where the data set's files lie; by default what its manifest says."""
    size_px: PositiveInt = 32
    crop_px: PositiveInt | None = None
    """Width of the square that is cut out of the images and resampled to size_px; by default size_px."""
    split: SplitConfig = SplitConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    illumination: Literal["estimate", "none"] = "estimate"
    illumination_min_fields: PositiveInt = 16
    """With fewer fields a plate's light is left as it is."""
    intensity_reference: Literal["control", "all"] = "control"
    crops_from: Path | None = None
    """A store whose cells are cut out of this data set's images, with the same centres, masks and intensity maps."""
    match_px: PositiveFloat = 6.0
    """How far a cell may lie from the object that is joined to it, in pixels of the field."""


@dataclass(frozen=True)
class _Task:
    """One call, its tables read and checked."""

    config: Config
    manifest: Manifest
    root: Path
    rows: "list[ImageRow]"
    control: str
    source: StoreInfo | None
    splits: dict[tuple[str, str], str]

    @property
    def size_px(self) -> int:
        return self.config.size_px if self.source is None else self.source.size_px

    @property
    def crop_px(self) -> int:
        if self.source is not None:
            return int(self.source.attributes.get("crop_px", self.source.size_px))
        return self.config.crop_px or self.config.size_px


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Write the store `out`; nothing appears under that name unless everything is whole.

    Raises
    ------
    ManifestError, ImageError, LeakError : what is wrong with the data set, with file, row and remedy.
    StoreError : `out` exists, or `crops_from` is no store of fields.
    ConfigError : the split names what is not there, or settings do not fit the store of `crops_from`.
    """
    if runs.is_taken(out):
        raise StoreError(f"{out}: exists already. Remove it, or choose another --out.")
    require_directory(out.parent)
    task = _check(config)
    from cellbridge.data.collector import Collector

    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder,
        Collector(
            Path(folder),
            channels=task.manifest.stains,
            full_scale=task.manifest.full_scale,
            size_px=task.size_px,
            reference=config.intensity_reference,
        ) as collector,
    ):
        flats = _survey(task)
        geometry = _geometry(task, flats)
        with bar("cells", total=len(task.rows), unit=_unit(task)) as progress:
            for extracted in _extract(task, geometry, flats, advance=progress.advance):
                collector.add(extracted)
        return _publish(task, collector, geometry, flats=flats, out=out)


def _check(config: Config) -> _Task:
    """Read everything but images."""
    source = None if config.crops_from is None else describe(config.crops_from)
    manifest, root = read_manifest(config.manifest, root=config.root)
    if source is not None:
        manifest = manifest.model_copy(update={"control_name": manifest.control_name or source.control})
        _check_source(config, manifest, source)
    from cellbridge.data.annotation import require_control
    from cellbridge.data.catalogue import read_catalogue

    rows, control = read_catalogue(manifest, root)
    if source is not None:
        return _Task(config, manifest, root, rows, control, source, {})
    if config.intensity_reference == "control":
        require_control(rows, manifest)
    return _Task(config, manifest, root, rows, control, None, _splits(rows, config.split))


def _check_source(config: Config, manifest: Manifest, source: StoreInfo) -> None:
    """Refuse settings that do not fit the store whose cells are cut again."""
    if not manifest.holds_fields:
        raise ConfigError("crops_from: cells can be cut again out of fields only; this manifest's kind is crops.")
    for what, own, theirs in (
        ("channels", manifest.stains, source.channels),
        ("full scale (bits)", manifest.full_scale, source.full_scale),
        ("control_name", manifest.control_name, source.control),
    ):
        if own != theirs:
            raise ConfigError(
                f"crops_from: {what} is {own} in {config.manifest}, {theirs} in {source.path}. Make them agree."
            )
    for key in ("size_px", "crop_px", "split", "segmentation", "intensity_reference", "illumination"):
        if key in config.model_fields_set:
            raise ConfigError(f"crops_from: {key} is that of {source.path}. Leave it out.")


def _splits(rows: "Sequence[ImageRow]", split: SplitConfig) -> dict[tuple[str, str], str]:
    """Return plate, well → train or test."""
    import pandas as pd

    from cellbridge.data.splits import assign

    wells = pd.DataFrame(sorted({(row.plate, row.well) for row in rows}), columns=["Metadata_Plate", "Metadata_Well"])
    sides = assign(wells, by=split.by, test=split.test)
    return dict(zip(zip(wells["Metadata_Plate"], wells["Metadata_Well"], strict=True), sides, strict=True))


def _unit(task: _Task) -> str:
    return "fields" if task.manifest.holds_fields else "crops"


def _survey(task: _Task) -> "Flats":
    """Look at every field, and return each plate's light; ready-made crops and known cells are looked at as they are read."""
    from cellbridge.data.survey import survey_fields

    if not task.manifest.holds_fields or task.source is not None:
        return {}
    with bar("survey", total=len(task.rows), unit=_unit(task)) as progress:
        return survey_fields(
            task.rows,
            task.manifest.channels_to_read,
            full_scale=task.manifest.full_scale,
            splits=task.splits,
            min_fields=task.config.illumination_min_fields if task.config.illumination == "estimate" else None,
            advance=progress.advance,
        )


def _geometry(task: _Task, flats: "Flats") -> "Geometry":
    from cellbridge.data.extraction import Geometry

    given, nucleus_px = task.config.segmentation, None
    if task.manifest.nucleus_channel is not None and task.source is None:
        nucleus_px = given.nucleus_px or task.manifest.nucleus_px or _measured_nucleus_px(task, flats)
    return Geometry(
        crop_px=task.crop_px,
        size_px=task.size_px,
        nucleus_px=nucleus_px,
        cell_reach=given.cell_reach,
        min_area=given.min_area,
        max_area=given.max_area,
    )


def _measured_nucleus_px(task: _Task, flats: "Flats") -> float:
    """Measure the typical nucleus on rows spread evenly over the data set."""
    from cellbridge.data.extraction import nucleus_images
    from cellbridge.data.segmentation import typical_nucleus_px

    sample = _SAMPLE_FIELDS if task.manifest.holds_fields else _SAMPLE_CROPS
    step = max(1, len(task.rows) // sample)
    return typical_nucleus_px(nucleus_images(task.rows[::step], task.manifest, flats=flats))


def _extract(
    task: _Task, geometry: "Geometry", flats: "Flats", *, advance: Callable[[], None]
) -> "Iterator[Extracted]":
    from cellbridge.data.extraction import cells_of_crops, cells_of_fields

    if task.source is not None:
        return _extract_again(task, geometry, advance=advance)
    if task.manifest.holds_fields:
        return cells_of_fields(task.rows, task.manifest, geometry, flats=flats, splits=task.splits, advance=advance)
    return cells_of_crops(task.rows, task.manifest, geometry, splits=task.splits, advance=advance)


def _extract_again(task: _Task, geometry: "Geometry", *, advance: Callable[[], None]) -> "Iterator[Extracted]":
    from cellbridge.data.manifest import resolve_path
    from cellbridge.data.objects import KnownObjects
    from cellbridge.data.readers.tables import read_table
    from cellbridge.data.recutting import KnownCells, same_cells

    assert task.source is not None
    objects = None
    if task.manifest.objects is not None:
        table = read_table(resolve_path(task.manifest.objects, task.root, where="objects"))
        objects = KnownObjects(table, plate_format=task.manifest.plate_format)
    known = KnownCells.of_store(open_store(task.source.path), objects=objects, radius_px=task.config.match_px)
    return same_cells(task.rows, task.manifest, geometry, known=known, advance=advance)


def _publish(task: _Task, collector: "Collector", geometry: "Geometry", *, flats: "Flats", out: Path) -> dict[str, Any]:
    """Fit the intensity maps, write the store, and say what is in it."""
    obs = collector.obs()
    plates = sorted(set(obs["Metadata_Plate"]))
    source, manifest = task.source, task.manifest
    pixel_um = None if manifest.pixel_um is None else manifest.pixel_um * geometry.crop_px / geometry.size_px
    info = write_store(
        out,
        obs=obs,
        counts=collector.counts.batches(),
        masks=collector.masks.batches() if collector.has_masks else None,
        channels=manifest.stains,
        full_scale=manifest.full_scale,
        size_px=geometry.size_px,
        pixel_um=pixel_um,
        control=task.control,
        intensity=collector.intensity(plates) if source is None else source.intensity_maps().subset(plates),
        attributes=_attributes(task, collector, geometry, flats),
    )
    return {
        "store": str(out),
        "cells": info.n_cells,
        _unit(task): len(task.rows),
        "channels": list(info.channels),
        "channels_left_out": [name for name in manifest.channels if name not in manifest.stains],
        "plates": list(info.plates),
        "cells_by_condition": dict(info.n_by_condition),
        "cells_by_split": {str(name): int(count) for name, count in obs["Metadata_Split"].value_counts().items()},
        "rejected": dict(sorted(collector.rejected.items())),
        "without_mask": collector.without_mask,
        "nucleus_px": geometry.nucleus_px,
        "illumination_corrected": sorted(flats),
    }


def _attributes(task: _Task, collector: "Collector", geometry: "Geometry", flats: "Flats") -> dict[str, Any]:
    """Return where the cells come from, as it stands in the store."""
    from cellbridge.data.annotation import aliases

    manifest, source = task.manifest, task.source
    file = task.config.manifest / "manifest.yaml" if task.config.manifest.is_dir() else task.config.manifest
    attributes: dict[str, Any] = {
        "aliases": aliases(task.rows) or (dict(source.aliases) if source is not None else {}),
        "rejected": dict(sorted(collector.rejected.items())),
        "crop_px": geometry.crop_px,
        "data_set": {
            **{key: getattr(manifest, key) for key in ("name", "description", "licence", "citation", "source")},
            "manifest_sha256": runs.file_sha256(file),
        },
        "split": task.config.split.model_dump(mode="json"),
        "made_by": runs.code_version(),
        "config": task.config.model_dump(mode="json"),
    }
    if source is not None:
        return {
            **attributes,
            "crops_from_sha256": runs.fingerprint(source.path),
            "split": source.attributes.get("split"),
        }
    if manifest.holds_fields:
        attributes["illumination"] = {
            plate: {channel: list(flat.coefficients) for channel, flat in channels.items()}
            for plate, channels in sorted(flats.items())
        }
    if geometry.nucleus_px is not None:
        keys = ("nucleus_px", "cell_reach", "min_area", "max_area")
        attributes["segmentation"] = {key: getattr(geometry, key) for key in keys}
    return attributes
