"""`cellbridge prepare`: plates of fields, or ready-made crops, into a store of single cells.

tables and plate maps → checked rows → survey of all images → even illumination → nuclei and cells → crops and masks → intensity
maps of the control → store. With `crops_from` the cells of another store are cut out of other images of the same fields.

Fields are worked on by several processes. What is finished lies in `.OUT.preparing` beside OUT until the store is whole: the same
command again, after whatever ended it, goes on from there and writes the store that it would have written undisturbed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cellbridge import runs
from cellbridge.data.manifest import Manifest, read_manifest
from cellbridge.data.selection import Names, Selection
from cellbridge.data.store import StoreInfo, describe, open_store, write_store
from cellbridge.errors import ConfigError, StoreError
from cellbridge.outputs import require_directory
from cellbridge.progress import bar, say
from cellbridge.settings import Section

if TYPE_CHECKING:
    from cellbridge.data.collector import Collector
    from cellbridge.data.crew import Crew
    from cellbridge.data.cutting import Cutting
    from cellbridge.data.extraction import Geometry
    from cellbridge.data.readers.rows import ImageRow
    from cellbridge.data.survey import Survey

_SAMPLE_FIELDS, _SAMPLE_CROPS = 16, 64
_FIELDS_PER_WORKER, _CROPS_PER_WORKER = 24, 2048
"""How many rows make it worth to start a process, which takes a second or two of a processor."""


class SplitConfig(Section):
    """What is held out whole for testing."""

    by: Literal["plate", "well", "compound", "dose"] = "plate"
    test: Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)] = ()
    """Plates; or wells, as B03 (on every plate) or PLATE/B03; or compounds; or compounds at a dose, as taxol@1."""


class SegmentationConfig(Section):
    """How nuclei and cells are found."""

    nucleus_px: PositiveFloat | None = None
    """Typical nucleus diameter in pixels of the images; by default the manifest's, else it is measured."""
    cell_reach: PositiveFloat | None = None
    """How far a cell may reach from its nucleus, in nucleus diameters; by default 1.2 with a cell stain, 0.7 without."""
    min_area: NonNegativeFloat = 0.25
    max_area: PositiveFloat = 4.0
    """Nuclei outside these shares of a disk of the typical diameter are rejected."""
    touching: Literal["keep", "reject"] = "keep"
    """What becomes of cells that touch others; their number stands in the table in any case."""
    cellpose: Path | None = None
    """A file with the weights of a Cellpose model, which then finds the nuclei (pip install 'cellbridge[cellpose]'; mind its licence)."""


class QualityConfig(Section):
    """Which crops are rejected; the numbers behind each limit stand in the table (Quality_…)."""

    empty_channel: bool = True
    """Reject a crop with a channel of one value only."""
    min_focus: float | None = Field(default=None, ge=0, le=1)
    """Least focus of the sharpest channel: about 0.25 for an image that is smooth over four pixels, 0.5 for sharp edges."""
    max_saturation: float | None = Field(default=None, ge=0, le=1)
    """Largest share of saturated pixels of any channel."""
    max_debris: float | None = Field(default=None, ge=0, le=1)
    """Largest share of the crop that stands out in the nucleus stain and belongs to no nucleus."""


class Config(Section):
    """What to prepare, and how."""

    manifest: Path
    root: Path | None = None
    """Where the data set's files lie; by default what its manifest says."""
    plates: Names = ()
    """Only these plates; several by commas too."""
    wells: Names = ()
    """Only these wells, as B03 (on every plate) or PLATE/B03."""
    size_px: PositiveInt = 32
    crop_px: PositiveInt | None = None
    """Width of the square that is cut out of the images and resampled to size_px; by default size_px."""
    crop_um: PositiveFloat | None = None
    """The same in micrometres, by the manifest's pixel_um."""
    border: Literal["reject", "reflect"] = "reject"
    """Reject cells whose crop would leave the field, or reflect the field at its edges. Nuclei that touch the edge are rejected."""
    split: SplitConfig = SplitConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    quality: QualityConfig = QualityConfig()
    illumination: Literal["estimate", "none"] = "estimate"
    """The illumination functions that the tables name go first; `estimate` estimates the rest, per plate and channel. `none` corrects nothing."""
    illumination_min_fields: PositiveInt = 16
    """With fewer fields a plate's light is left as it is."""
    intensity_reference: Literal["control", "all"] = "control"
    crops_from: Path | None = None
    """A store whose cells are cut out of this data set's images, with the same centres, masks and intensity maps."""
    match_px: PositiveFloat = 6.0
    """How far a cell may lie from the object that is joined to it, in pixels of the field."""
    workers: PositiveInt | None = None
    """How many processes; by default one for each processor, and fewer for little work. Each holds a few fields in memory."""

    @model_validator(mode="after")
    def _one_width(self) -> "Config":
        if self.crop_px is not None and self.crop_um is not None:
            raise ValueError("crop_px and crop_um are two names of one width; give one of them")
        return self


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
        if self.config.crop_um is not None:
            if self.manifest.pixel_um is None:
                raise ConfigError("crop_um: the manifest has no pixel_um. Add it, or give crop_px.")
            return max(1, round(self.config.crop_um / self.manifest.pixel_um))
        return self.config.crop_px or self.config.size_px

    @property
    def unit(self) -> str:
        return "fields" if self.manifest.holds_fields else "crops"

    @property
    def workers(self) -> int:
        """How many processes share the rows."""
        from cellbridge.data.crew import processors

        segmented = self.manifest.holds_fields and self.source is None
        each = _FIELDS_PER_WORKER if segmented else _CROPS_PER_WORKER
        return self.config.workers or min(processors(), max(1, len(self.rows) // each))


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Write the store `out`; nothing appears under that name unless everything is whole.

    Raises
    ------
    ManifestError, ImageError, LeakError : what is wrong with the data set, with file, row and remedy.
    StoreError : `out` exists, or `crops_from` is no store of fields.
    ConfigError : the split, plates or wells name what is not there, or settings do not fit the store of `crops_from`.
    RunError : another call is preparing `out`.
    StoppedBySignal : what was finished is kept; the same command goes on.
    """
    if runs.is_taken(out):
        raise StoreError(f"{out}: exists already. Remove it, or choose another --out.")
    require_directory(out.parent)
    task = _check(config)
    from cellbridge.data.pieces import kept_beside

    with kept_beside(out) as folder:
        from cellbridge.data.collector import Collector
        from cellbridge.data.crew import Crew

        with Crew(task.workers) as crew:
            survey = _survey(task, folder, crew)
            cutting = _cut(task, folder, survey, crew)
        collector = Collector(cutting, splits=task.splits, reference=config.intensity_reference)
        return _publish(task, collector, cutting, survey=survey, out=out)


def _check(config: Config) -> _Task:
    """Read everything but images."""
    source = None if config.crops_from is None else describe(config.crops_from)
    manifest, root = read_manifest(config.manifest, root=config.root)
    if source is not None:
        manifest = manifest.model_copy(update={"control_name": manifest.control_name or source.control})
        _check_source(config, manifest, source)
    from cellbridge.data.annotation import require_control
    from cellbridge.data.catalogue import read_catalogue

    selection = Selection.of(config.plates, config.wells, plate_format=manifest.plate_format)
    rows, control = read_catalogue(manifest, root, selection)
    light = config.illumination if source is None else source.attributes["config"].get("illumination", "estimate")
    if light == "none":
        rows = [replace(row, illumination={}) for row in rows]
    if source is not None:
        from cellbridge.data.recutting import require_known

        require_known(rows, open_store(source.path))
        return _Task(config, manifest, root, rows, control, source, {})
    if config.intensity_reference == "control":
        require_control(rows, manifest, selection)
    task = _Task(config, manifest, root, rows, control, None, _splits(rows, config.split, control=control))
    _ = task.crop_px  # an error of its setting is told before images are read
    return task


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
    free = {"manifest", "root", "plates", "wells", "crops_from", "match_px", "workers"}
    for key in sorted(config.model_fields_set - free):
        raise ConfigError(f"crops_from: {key} is that of {source.path}. Leave it out.")


def _splits(rows: "Sequence[ImageRow]", split: SplitConfig, *, control: str) -> dict[tuple[str, str], str]:
    """Return plate, well → train or test; refuse wells that a split by compound or dose would put on both sides."""
    import pandas as pd

    from cellbridge.data.splits import assign, by_well

    names = ("Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Compound", "Metadata_Concentration")
    table = pd.DataFrame([[row.metadata[name] for name in names] for row in rows], columns=list(names))
    table["Metadata_Split"] = assign(table, by=split.by, test=split.test, control=control)
    return by_well(table, where=[row.where for row in rows])


def _survey(task: _Task, folder: Path, crew: "Crew") -> "Survey":
    """Look at every field, and find each plate's light; ready-made crops and known cells are looked at as they are read."""
    from cellbridge.data.cutting import Looking
    from cellbridge.data.pieces import Pieces
    from cellbridge.data.survey import Survey

    estimated = task.config.illumination == "estimate"
    survey = Survey(task.splits, task.config.illumination_min_fields if estimated else None)
    if not task.manifest.holds_fields or task.source is not None:
        return survey
    looking = Looking(
        task.rows,
        task.manifest.channels_to_read,
        task.manifest.full_scale,
        estimated,
        Pieces.under(folder, "looks"),
    )
    _finish(looking, len(task.rows), crew, what="survey", unit="fields")
    for number, row in enumerate(task.rows):
        survey.add(row, looking.seen(number))
    survey.finish()
    return survey


def _cut(task: _Task, folder: Path, survey: "Survey", crew: "Crew") -> "Cutting":
    """Cut the cells out of every row; afterwards all pieces are there."""
    from cellbridge.data.cutting import Cutting
    from cellbridge.data.images import require_all
    from cellbridge.data.pieces import Pieces

    geometry = _geometry(task, survey)
    for line in _warnings(task, geometry, survey):
        say(f"prepare: {line}")
    source = _known_source(task)
    cutting = Cutting(task.rows, task.manifest, geometry, survey.flats, source, Pieces.under(folder, "cells"))
    unit = task.unit if len(cutting.units) == len(task.rows) else "parts"
    problems = _finish(cutting, len(cutting.units), crew, what="cells", unit=unit)
    require_all([line for number in sorted(problems) for line in problems[number]], total=len(task.rows))
    return cutting


def _finish(job: "Cutting | Any", count: int, crew: "Crew", *, what: str, unit: str) -> dict[int, list[str]]:
    """Do what is not finished yet of a job's pieces, and return the problems by number."""
    with bar(what, total=count, unit=unit) as progress:
        left = [n for n in range(count) if job.pieces.find(n, fingerprint=job.fingerprint(n)) is None]
        if len(left) < count:
            progress.start_at(count - len(left))
            say(f"{what}: {count - len(left)} of {count} are finished already")
        problems = {}
        for number, found in crew.each(job, left):
            if found:
                problems[number] = found
            progress.advance()
    return problems


def _known_source(task: _Task) -> Any:
    from cellbridge.data.cutting import KnownSource
    from cellbridge.data.manifest import resolve_path

    if task.source is None:
        return None
    name = task.manifest.objects
    objects = None if name is None else resolve_path(name, task.root, where="objects")
    return KnownSource(task.source.path, runs.fingerprint(task.source.path), objects, task.config.match_px)


def _geometry(task: _Task, survey: "Survey") -> "Geometry":
    from cellbridge.data.crops import Choice
    from cellbridge.data.extraction import Geometry
    from cellbridge.data.quality import Limits
    from cellbridge.data.survey import saturated_at

    given, nucleus_px = task.config.segmentation, None
    if task.source is not None:
        border = task.source.attributes.get("border", "reject")
        return Geometry(task.crop_px, task.size_px, None, choice=Choice(border=border))
    if task.manifest.nucleus_channel is not None:
        nucleus_px = given.nucleus_px or task.manifest.nucleus_px or _measured_nucleus_px(task, survey)
    return Geometry(
        crop_px=task.crop_px,
        size_px=task.size_px,
        nucleus_px=nucleus_px,
        cell_reach=given.cell_reach,
        weights=None if given.cellpose is None else str(given.cellpose),
        choice=Choice(task.config.border, given.touching, given.min_area, given.max_area),
        limits=Limits(**task.config.quality.model_dump()),
        saturated_at=saturated_at(survey.bits.values(), full_scale=task.manifest.full_scale),
    )


def _measured_nucleus_px(task: _Task, survey: "Survey") -> float:
    """Measure the typical nucleus on rows spread evenly over the data set."""
    from cellbridge.data.extraction import nucleus_images
    from cellbridge.data.segmentation import typical_nucleus_px

    sample = _SAMPLE_FIELDS if task.manifest.holds_fields else _SAMPLE_CROPS
    step = max(1, len(task.rows) // sample)
    return typical_nucleus_px(nucleus_images(task.rows[::step], task.manifest, flats=survey.flats))


def _warnings(task: _Task, geometry: "Geometry", survey: "Survey") -> list[str]:
    """Return what is allowed and seldom meant."""
    from cellbridge.data.summary import seldom_meant

    return seldom_meant(task.splits, geometry, survey, pixel_um=task.manifest.pixel_um)


def _publish(task: _Task, collector: "Collector", cutting: "Cutting", *, survey: "Survey", out: Path) -> dict[str, Any]:
    """Fit the intensity maps, write the store, and say what is in it."""
    from cellbridge.data.origin import provenance
    from cellbridge.data.summary import summary
    from cellbridge.data.survey import stored_bits

    obs = collector.obs()
    plates = sorted(set(obs["Metadata_Plate"]))
    source, manifest, geometry = task.source, task.manifest, cutting.geometry
    pixel_um = None if manifest.pixel_um is None else manifest.pixel_um * geometry.crop_px / geometry.size_px
    shifted = stored_bits([*survey.bits.values(), collector.bits], full_scale=manifest.full_scale)
    attributes = _attributes(task, collector, geometry, survey)
    attributes |= {} if shifted is None else {"stored_bits": shifted}
    counts, masks = collector.images()
    info = write_store(
        out,
        obs=obs,
        counts=counts,
        masks=masks,
        channels=manifest.stains,
        full_scale=manifest.full_scale,
        size_px=geometry.size_px,
        pixel_um=pixel_um,
        control=task.control,
        intensity=collector.intensity(plates) if source is None else source.intensity_maps().subset(plates),
        attributes=attributes,
        provenance=provenance(task.config.model_dump(mode="json")),
    )
    told = summary(
        info,
        task.rows,
        manifest,
        collector,
        geometry,
        survey=survey if source is None else None,
        warnings=_warnings(task, geometry, survey),
        by_split={str(name): int(count) for name, count in obs["Metadata_Split"].value_counts().items()},
    )
    return {"store": str(out), **told}


def _attributes(task: _Task, collector: "Collector", geometry: "Geometry", survey: "Survey") -> dict[str, Any]:
    """Return where the cells come from, as it stands in the store."""
    from cellbridge.data.origin import attributes
    from cellbridge.data.summary import empty_fields

    found = attributes(
        task.manifest, task.rows, geometry, flats=survey.flats, config=task.config.model_dump(mode="json")
    )
    found["rejected"] = dict(sorted(collector.rejected.items()))
    found |= empty_fields(task.manifest, collector, survey if task.source is None else None)
    if task.source is None:
        return found
    again = ("illumination", "illumination_given", "split")
    return {
        **{key: value for key, value in found.items() if key not in again},
        "aliases": found["aliases"] or dict(task.source.aliases),
        "crops_from_sha256": runs.fingerprint(task.source.path),
        "split": task.source.attributes.get("split"),
    }
