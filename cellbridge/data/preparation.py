"""What a preparation is asked for, held against tables and plate maps: everything before the first image is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cellbridge.data.manifest import Manifest, read_manifest
from cellbridge.data.selection import Names, Selection
from cellbridge.data.store import StoreInfo, describe, open_store
from cellbridge.errors import ConfigError
from cellbridge.settings import Section

if TYPE_CHECKING:
    from cellbridge.data.readers.rows import ImageRow

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
class Task:
    """One call, its tables read and checked.

    Parameters
    ----------
    root : where the data set's files lie.
    control : the control's name.
    source : the store whose cells are cut again; None finds them.
    splits : plate, well → train or test; {} where cells are cut again.
    """

    config: Config
    manifest: Manifest
    root: Path
    rows: "list[ImageRow]"
    control: str
    source: StoreInfo | None
    splits: dict[tuple[str, str], str]

    @property
    def size_px(self) -> int:
        """Width of an image in the store."""
        return self.config.size_px if self.source is None else self.source.size_px

    @property
    def crop_px(self) -> int:
        """Width of the square that is cut out of the images; raise ConfigError where micrometres cannot be told in pixels."""
        if self.source is not None:
            return int(self.source.attributes.get("crop_px", self.source.size_px))
        if self.config.crop_um is not None:
            if self.manifest.pixel_um is None:
                raise ConfigError("crop_um: the manifest has no pixel_um. Add it, or give crop_px.")
            return max(1, round(self.config.crop_um / self.manifest.pixel_um))
        return self.config.crop_px or self.config.size_px

    @property
    def unit(self) -> str:
        """What a row of the tables is."""
        return "fields" if self.manifest.holds_fields else "crops"

    @property
    def workers(self) -> int:
        """How many processes share the rows."""
        from cellbridge.data.crew import processors

        segmented = self.manifest.holds_fields and self.source is None
        each = _FIELDS_PER_WORKER if segmented else _CROPS_PER_WORKER
        return self.config.workers or min(processors(), max(1, len(self.rows) // each))


def checked(config: Config) -> Task:
    """Read everything but images.

    Raises
    ------
    ManifestError : a manifest, table or plate map is wrong, with file, row and remedy.
    StoreError : `crops_from` is no store, or does not hold the fields.
    ConfigError : the split, plates or wells name what is not there, or settings do not fit the store of `crops_from`.
    """
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
        return Task(config, manifest, root, rows, control, source, {})
    if config.intensity_reference == "control":
        require_control(rows, manifest, selection)
    task = Task(config, manifest, root, rows, control, None, _splits(rows, config.split, control=control))
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
