"""A data set's description: `manifest.yaml` into a frozen `Manifest`, and paths that cannot leave its root."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, PositiveFloat, PrivateAttr, field_validator, model_validator

from cellbridge import settings
from cellbridge.data.controls import ControlName, Query
from cellbridge.data.fetch.section import Fetch
from cellbridge.data.layout import PlateFormat
from cellbridge.errors import ConfigError, ManifestError
from cellbridge.settings import Section

Paths = tuple[str, ...]
Kind = Literal["load_data", "samplesheet", "planes", "bbbc021", "pattern", "ome_zarr", "crops", "benchmark_crops"]
_OF_FOLDERS = ("pattern", "ome_zarr")
_OF_CROPS = ("crops", "benchmark_crops")
_MAP = "Map its beginning to {} with prefixes in the manifest."
_NO_PREFIX = f", and no prefix stands for it. {_MAP.format('a folder beneath the root')}"
_SHIPPED = "manifest:"
"""What the name of a table begins with that lies beside the manifest and not beneath the root."""


class MetadataTable(Section):
    """A table whose columns are added to every row that it has an entry for: JUMP's well, compound and control tables, mechanisms of
    action, a compound library."""

    table: str
    """.csv, .csv.gz, TAB-separated or .parquet, relative to the root, or `manifest:NAME` beside the manifest."""
    keys: Annotated[dict[str, str], Field(min_length=1)]
    """`Metadata_…` column of the rows → the table's column that has to say the same."""
    columns: Paths = ()
    """Which of its columns are added, as `Metadata_…`; by default all."""
    complete: bool = True
    """Whether a row without an entry is an error; otherwise its columns are left empty."""


class Manifest(Section):
    """What a data set is, where its tables and images lie, and what its columns and channels mean.

    Every key is explained, with an example, in `data_manifests/README.md`.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Short name, of letters, digits, point, dash and underscore."""
    description: str = ""
    """What was imaged, in which cells."""
    licence: str
    """Under which terms the images may be used."""
    citation: str
    """What to cite."""
    source: str = ""
    """Where the data set is published."""
    kind: Kind
    """How the images are listed: fields by a `load_data` table, an nf-core `samplesheet`, a table of `planes`, the `bbbc021` table, file
    names by a `pattern`, or `ome_zarr` plates; ready-made `crops` of one cell each by a table, or in the layout of `benchmark_crops`."""
    root: str = "."
    """Folder beneath which every table and image lies; relative to the manifest's own folder."""
    tables: Paths = ()
    """The tables that list the images, relative to the root, or `manifest:NAME` beside the manifest."""
    folders: Paths = ()
    """For `pattern` the folders that are searched, for `ome_zarr` the plates; relative to the root."""
    pattern: str | None = None
    """For `pattern`: a regular expression that an image's path below the root matches whole; its named groups say what it shows."""
    ignore: str | None = None
    """A regular expression of image files that are left alone (thumbnails, masks); any other that the pattern does not match is an error."""
    platemaps: Paths = ()
    """Folders with barcode_platemap.csv and platemap/*.txt, relative to the root, or `manifest:NAME` beside the manifest."""
    metadata_tables: tuple[MetadataTable, ...] = ()
    """Tables that say more of plates, wells or compounds, joined in this order after the plate maps."""
    constants: dict[Annotated[str, Field(pattern=r"^Metadata_\w+$")], str] = Field(default_factory=dict)
    """`Metadata_…` column → what it is for every row, where the tables have no such column."""
    only: tuple[Query, ...] = ()
    """`Metadata_column=value`: rows for which none of these holds are left out; none given: all are kept."""
    prefixes: dict[str, str] = Field(default_factory=dict)
    """What URLs or absolute paths in the tables begin with → the folder, relative to the root, that stands for it."""
    channels: Annotated[Paths, Field(min_length=1)]
    """Stain names; the order is the store's (for crops also that of the files)."""
    channel_names: dict[str, str] = Field(default_factory=dict)
    """What tables or file names call a channel → its name under `channels`."""
    leave_out: Paths = ()
    """Channels, listed under `channels` as well, that do not go into the store (Brightfield …)."""
    nucleus_channel: str | None = None
    """The stain that nuclei are found in; crops without it get no masks."""
    cell_channel: str | None = None
    """The stain that shows the whole cell; without it cells are grown from their nuclei."""
    nucleus_px: PositiveFloat | None = None
    """Typical nucleus diameter in pixels of the images; without it it is measured."""
    benchmark: Literal["bbbc021", "cpg0000", "rxrx1"] | None = None
    """For `benchmark_crops`: which of the published sets it is, and so how a key says where its crop lies."""
    axes: Literal["HWC", "CHW"] | None = None
    """Order of the axes of crop files; needed only where the shape leaves it open."""
    columns: dict[str, str] = Field(default_factory=dict)
    """`Metadata_…` name → the column of a table or plate map that holds it; for `planes` also `path`, `channel` and `md5`."""
    concentration_unit: Literal["nM", "uM", "mM"] | None = None
    """Unit of concentrations that are written without one; micromolar by default."""
    control: Query = "Metadata_pert_type=negcon"
    """Which rows are the control: `Metadata_column=value`; with nothing after the `=`, those where the column is empty."""
    control_name: ControlName | None = None
    """Name of the control condition, where the tables leave it empty or give several; otherwise the tables' own."""
    bits: Literal[8, 10, 12, 14, 16] = 16
    """Full scale of the counts is 2^bits - 1."""
    pixel_um: PositiveFloat | None = None
    """Width of a pixel of the images in micrometres."""
    plate_format: PlateFormat = 384
    """Number of wells of the plates."""
    objects: str | None = None
    """Table of known objects (plate, well, site, x, y and columns to be joined to the nearest cell), relative to the root."""
    fetch: Fetch | None = None
    """Where the files come from, for `cellbridge fetch`."""

    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> str:
        """What messages call the manifest itself."""
        return "manifest.yaml" if self._file is None else str(self._file)

    @property
    def holds_fields(self) -> bool:
        """Whether the images are fields of view, to be segmented and cut; otherwise they are ready-made crops."""
        return self.kind not in _OF_CROPS

    @property
    def says_control(self) -> bool:
        """Whether `control` is written out; otherwise it leaves open what a row with neither compound nor pert_type is."""
        return "control" in self.model_fields_set

    @property
    def full_scale(self) -> int:
        """The largest count."""
        return 2**self.bits - 1

    @property
    def stains(self) -> tuple[str, ...]:
        """The channels that go into the store, in order."""
        return tuple(channel for channel in self.channels if channel not in self.leave_out)

    @property
    def channels_to_read(self) -> tuple[str, ...]:
        """The channels that are stored, and those that only segmentation needs, in order."""
        wanted = {*self.stains, self.nucleus_channel, self.cell_channel}
        return tuple(channel for channel in self.channels if channel in wanted)

    def locate(self, name: str, root: Path, *, where: str) -> Path:
        """Return the file or folder that the manifest names: beneath the root, or for `manifest:NAME` beside the manifest.

        Raises
        ------
        ManifestError : it leads outside the root, or outside the manifest's folder.
        """
        where = f"{self.file}: {where}"
        if name.startswith(_SHIPPED) and self._file is not None:
            beside = Path(os.path.abspath(self._file.parent))
            return resolve_path(name.removeprefix(_SHIPPED), beside, where=where)
        return resolve_path(name, root, where=where)

    @field_validator("pattern", "ignore")
    @classmethod
    def _is_an_expression(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        return text

    @model_validator(mode="after")
    def _lists_images(self) -> "Manifest":
        if self.kind in _OF_FOLDERS and not self.folders:
            raise ValueError(f"folders is missing; kind {self.kind} looks for its images there")
        if self.kind not in _OF_FOLDERS and not self.tables:
            raise ValueError("no table is listed under tables; name the one that lists the images")
        if (self.kind == "pattern") != (self.pattern is not None):
            raise ValueError("kind pattern and the key pattern go together; give both or neither")
        if (self.kind == "benchmark_crops") != (self.benchmark is not None):
            raise ValueError("kind benchmark_crops and the key benchmark go together; give both or neither")
        return self

    @model_validator(mode="after")
    def _lists_nothing_twice(self) -> "Manifest":
        for key in ("tables", "folders", "platemaps"):
            names = [os.path.normpath(name) for name in getattr(self, key)]
            repeated = next((name for name in names if names.count(name) > 1), None)
            if repeated is not None:
                raise ValueError(f'{key}: "{repeated}" is listed twice. Remove one of the two')
        special = ("path", "channel", "md5") if self.kind == "planes" else ()
        for name in self.columns:
            if not name.startswith("Metadata_") and name not in special:
                raise ValueError(
                    f'columns: "{name}" is no name that kind {self.kind} knows. Write Metadata_{name}, and after it what the table has'
                )
        return self

    @model_validator(mode="after")
    def _channels_exist(self) -> "Manifest":
        for key in ("nucleus_channel", "cell_channel"):
            name = getattr(self, key)
            if name is not None and name not in self.channels:
                known = ", ".join(self.channels)
                raise ValueError(f'{key} "{name}" is not one of the channels ({known}). Correct it, or add it to them')
        for key, names in (("leave_out", self.leave_out), ("channel_names", tuple(self.channel_names.values()))):
            unknown = [name for name in names if name not in self.channels]
            if unknown:
                remedy = f"Name it there, too: channels lists all that the tables have, {key} refers to them"
                raise ValueError(
                    f'{key} "{unknown[0]}" is not one of the channels ({", ".join(self.channels)}). {remedy}'
                )
        repeated = [name for name in self.channels if self.channels.count(name) > 1]
        if repeated:
            raise ValueError(f'channels: "{repeated[0]}" is listed twice. Remove or rename one of the two')
        if not self.stains:
            raise ValueError("every channel is left out. Take those out of leave_out that the store is to have")
        if self.holds_fields and self.nucleus_channel is None:
            raise ValueError("nucleus_channel is missing; name the stain that shows the nuclei")
        return self


def read_manifest(path: Path, *, root: Path | None = None) -> tuple[Manifest, Path]:
    """Return the manifest and the absolute folder that its paths start from.

    Parameters
    ----------
    path : a manifest.yaml, or the folder that holds one.
    root : where the data lies; by default the manifest's own `root`, relative to its folder.

    Raises
    ------
    ManifestError : there is no such file, it is not plain YAML, a key is unknown or missing, or the root is no folder.
    """
    file = path / "manifest.yaml" if path.is_dir() else path
    if not file.is_file():
        raise ManifestError(
            f"{file}: no such manifest. Give the path of a manifest.yaml (data_manifests/template shows one)."
        )
    try:
        manifest = settings.load(Manifest, file=file)
    except ConfigError as error:
        # A manifest has no --set of its own.
        told = str(error).partition(", or as --set")[0].rstrip(".")
        remedy = "" if re.search(r"[.?] [A-Z]", told) else " Correct it; data_manifests/README.md explains every key."
        raise ManifestError(f"{told}.{remedy}") from None
    manifest._file = file
    folder = Path(os.path.abspath(root if root is not None else file.parent / manifest.root))
    if not folder.is_dir():
        raise ManifestError(
            f'{file}: the root "{folder}" is no folder. Set root to where the data lies (--set root=DIR).'
        )
    return manifest, folder


def manifest_schema() -> dict[str, Any]:
    """Return the JSON schema that editors check a manifest.yaml with, as kept in data_manifests/manifest.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def dump_manifest(manifest: Manifest) -> str:
    """Return the manifest as YAML, without the keys that have their default; `control` says more where it is written out."""
    values = manifest.model_dump(mode="json", exclude_defaults=True)
    values |= {"control": manifest.control} if manifest.says_control else {}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def resolve_path(text: str, root: Path, *, where: str, prefixes: dict[str, str] | None = None) -> Path:
    """Return the file that a table names, beneath the root; nothing is opened.

    Parameters
    ----------
    text : a path relative to the root, or a URL or absolute path that begins with one of `prefixes` or lies beneath the root.
    prefixes : what the text begins with → the folder beneath the root that stands for it; the longest match wins.
    where : file, row and column, for the message.

    Raises
    ------
    ManifestError : the path is empty, leaves the root, or is a URL that no prefix covers.
    """
    if not text.strip():
        raise ManifestError(f"{where}: no path is given. Fill it in, or remove the row.")
    local = text.strip()
    matches = [prefix for prefix in (prefixes or {}) if local.startswith(prefix)]
    if matches:
        prefix = max(matches, key=len)
        local = str(PurePosixPath((prefixes or {})[prefix] or ".") / local.removeprefix(prefix).lstrip("/"))
    elif "://" in local:
        raise ManifestError(
            f'{where}: "{text}" is a URL. '
            + ("Fetch it, and give its path below the root." if prefixes is None else _MAP.format("a local folder"))
        )
    elif local.startswith("/") and not Path(os.path.normpath(local)).is_relative_to(root):
        raise ManifestError(
            f'{where}: "{text}" is an absolute path outside the root {root}'
            + (". Give it relative to the root, or another root." if prefixes is None else _NO_PREFIX)
        )
    if "\x00" in local or "\\" in local:
        raise ManifestError(
            f'{where}: "{text}" is not a plain path with forward slashes. Rewrite it relative to the root.'
        )
    path = Path(os.path.normpath(root / local))
    if not path.is_relative_to(root):
        raise ManifestError(
            f'{where}: "{text}" leads outside the root {root}. Only files beneath the root are read; fix the path.'
        )
    return path
