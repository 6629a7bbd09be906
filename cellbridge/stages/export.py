"""`cellbridge export STORE --to anndata|ome-zarr|profiles`: cells in the files that other communities open.

store, and stores translated from it → one table → features given, or measured in the counts → .h5ad; or profiles of wells; or, without
features, OME-Zarr plates in which real and translated images are acquisitions of a well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, field_validator, model_validator

from cellbridge import runs
from cellbridge.data.store import open_store
from cellbridge.errors import CheckpointError, ManifestError, RunError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.progress import bar
from cellbridge.settings import Section

if TYPE_CHECKING:
    import pandas as pd

    from cellbridge.data.exporting.cells import Cells
    from cellbridge.data.exporting.feature_tables import Features
    from cellbridge.data.exporting.ngff import Stain
    from cellbridge.data.exporting.plates import Plate

Form = Literal["anndata", "ome-zarr", "profiles"]
KIND = "export"
_SUFFIX = {"anndata": ".h5ad", "profiles": ".parquet"}
_KEYS: dict[Form, tuple[str, ...]] = {
    "anndata": ("features", "rows_of", "images"),
    "ome-zarr": ("ngff", "fields"),
    "profiles": ("features", "rows_of", "aggregate"),
}
"""Settings that only some forms have."""
_CONTRAST_CELLS = 256


class Config(Section):
    """What to export, and as what."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    store: Path
    """A store that `prepare`, `translate` or `generate` made."""
    to: Form
    """anndata: one .h5ad of cells; ome-zarr: a folder of plates; profiles: one .parquet of wells."""
    translated: tuple[Path, ...] = ()
    """Stores translated from it, whose cells go beside the real ones."""
    features: Path | None = None
    """anndata, profiles: features of the cells (or wells): .csv, .csv.gz or .parquet with Metadata_Cell, or plate and well; .npy with a
    row per cell. By default area and intensities are measured in the store's counts."""
    rows_of: Path | None = None
    """A table that says whose the rows of a .npy are; by default the cells of the stores, in their order."""
    images: Literal["embed", "reference"] = "embed"
    """anndata: put the counts into obsm["images"], or leave them in the stores that obs and uns name."""
    aggregate: Literal["median", "mean"] = "median"
    """profiles: what stands for the cells of a well."""
    ngff: Literal["0.5", "0.4"] = "0.5"
    """ome-zarr: the version, 0.5 (Zarr v3) or 0.4 (Zarr v2) for older viewers."""
    fields: Literal["cell", "well"] = "cell"
    """ome-zarr: each cell an image, or all cells of a well and acquisition one, each in a tile that its translations share."""
    overwrite: bool = False
    """Replace what an earlier export left under that name, and nothing else."""

    @field_validator("ngff", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, float) else value

    @model_validator(mode="after")
    def _keys_of_the_form(self) -> "Config":
        others = {key for form, keys in _KEYS.items() if form != self.to for key in keys} - set(_KEYS[self.to])
        given = sorted(others & self.model_fields_set)
        if given:
            raise ValueError(f"{given[0]} says nothing of an export to {self.to}; leave it out")
        if self.rows_of is not None and self.features is None:
            raise ValueError("rows_of says whose the rows of features are; give features, too")
        return self


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Write `out`: a .h5ad, a folder of OME-Zarr plates, or a .parquet; nothing but `out` is written.

    Raises
    ------
    RunError : the name is taken, is an input's, or has another ending than its form.
    StoreError : a store is damaged, or does not belong to the others.
    ManifestError : a table of features does not hold together, or is not of these cells.
    """
    from cellbridge.data.exporting.cells import gather_cells

    given = [config.store, *config.translated, config.features, config.rows_of]
    inputs = [path for path in given if path is not None]
    require_apart(out, inputs)
    require_directory(out.parent)
    _require_free(out, config)
    cells = gather_cells([open_store(path) for path in (config.store, *config.translated)])
    missing = [path for path in (config.features, config.rows_of) if path is not None and not path.is_file()]
    if missing:
        raise ManifestError(f"{missing[0]}: no such file. Correct --features or rows_of.")
    provenance = {
        "to": config.to,
        **runs.code_version(),
        "settings": config.model_dump(mode="json", exclude={"overwrite"}),
        "inputs": {str(path): runs.fingerprint(path) for path in inputs},
    }
    write = {"anndata": _to_anndata, "ome-zarr": _to_ome_zarr, "profiles": _to_profiles}[config.to]
    summary = write(config, cells, out, provenance)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) if out.is_dir() else out.stat().st_size
    return {"out": str(out), "cells": len(cells), **summary, "bytes": size}


def _require_free(out: Path, config: Config) -> None:
    """Refuse a name of the wrong kind, or one that is taken by anything but an earlier export that may be overwritten."""
    ending = _SUFFIX.get(config.to)
    if ending is not None and out.suffix != ending:
        raise RunError(f"{out}: --to {config.to} writes one {ending} file. Give --out a name with that ending.")
    if ending is not None and out.is_dir():
        raise RunError(f"{out}: is a folder, and --to {config.to} writes one file. Choose another --out.")
    if not runs.is_taken(out):
        return
    if not config.overwrite:
        raise RunError(f"{out}: exists already. Choose another --out, or replace an earlier export with --overwrite.")
    reason = _not_ours(out, config.to)
    if reason is not None:
        raise RunError(f"{out}: {reason}; --overwrite replaces only what export made. Choose another --out.")


def _not_ours(out: Path, to: Form) -> str | None:
    """Say why a name does not hold what export itself wrote in this form, and nothing more; None where it does."""
    if to == "anndata":
        from cellbridge.data.exporting.anndata_file import made_here

        return None if out.is_file() and made_here(out) else "is no .h5ad that export wrote"
    if to == "profiles":
        from cellbridge.tables import parquet_notes

        return None if out.is_file() and KIND in parquet_notes(out) else "is no .parquet that export wrote"
    try:
        manifest = runs.read_manifest(out)
    except CheckpointError:
        return "is no folder that export wrote"
    if manifest.get("kind") != KIND:
        return "is no folder that export wrote"
    listed = {*manifest["files"], runs.MANIFEST, runs.PROVENANCE}
    found = (file.relative_to(out).as_posix() for file in sorted(out.rglob("*")) if not file.is_dir())
    other = next((name for name in found if name not in listed), None)
    return None if other is None else f"holds {other}, which export did not write"


def _to_anndata(config: Config, cells: "Cells", out: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    from cellbridge.data.exporting.anndata_file import write_anndata
    from cellbridge.data.exporting.intensities import measured_intensities

    left_out: Sequence[str] = ()
    if config.features is None:
        values = measured_intensities(cells)
    else:
        from cellbridge.data.exporting.joining import rows_of_cells

        features = _features(config, cells)
        values = features.values.iloc[rows_of_cells(features, cells, file=config.features)]
        left_out = features.left_out
    write_anndata(out, cells, values, with_images=config.images == "embed", provenance=provenance)
    return {"features": values.shape[1], "images": config.images, **_listed("columns_left_out", left_out)}


def _to_profiles(config: Config, cells: "Cells", out: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    import json

    from cellbridge.data.exporting.intensities import measured_intensities
    from cellbridge.data.exporting.joining import described
    from cellbridge.data.exporting.profiles import well_profiles
    from cellbridge.tables import write_parquet

    left_out: Sequence[str] = ()
    metadata: pd.DataFrame
    if config.features is None:
        metadata, values = cells.obs.filter(regex="^Metadata_"), measured_intensities(cells)
    else:
        features = _features(config, cells)
        metadata, values = described(features, cells, file=config.features), features.values
        left_out = features.left_out
    profiles = well_profiles(metadata, values, by=config.aggregate)
    write_parquet(profiles.table, out, notes={KIND: json.dumps(provenance, ensure_ascii=False)})
    return {
        "profiles": len(profiles.table),
        "features": len(profiles.features),
        **_listed("columns_left_out", left_out),
        **_listed("metadata_left_out", profiles.varying),
        **_listed("features_with_missing_values", profiles.incomplete),
    }


def _features(config: Config, cells: "Cells") -> "Features":
    from cellbridge.data.exporting.feature_tables import read_features

    assert config.features is not None
    return read_features(config.features, cells=cells, rows_of=config.rows_of)


def _listed(key: str, names: Sequence[str]) -> dict[str, str]:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return {key: ", ".join(names[:12]) + more} if names else {}


def _to_ome_zarr(config: Config, cells: "Cells", out: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    from cellbridge.data.exporting.ome_zarr import Look, write_plates
    from cellbridge.data.exporting.plates import arrange

    plates = arrange(cells, fields=config.fields)
    look = Look(config.ngff, {plate.name: _stains(cells, plate) for plate in plates})
    n_images = sum(len(plate.fields) for plate in plates)
    with runs.publish_directory(out, manifest={"kind": KIND, "to": config.to, "ngff": config.ngff}) as folder:
        with bar("export", total=n_images, unit="images") as shown:
            write_plates(folder, plates, cells, look, advance=shown.advance)
        runs.write_json(folder / runs.PROVENANCE, provenance)
    acquisitions = {one.number: one.name for plate in plates for one in plate.acquisitions}
    return {
        "plates": [plate.folder for plate in plates],
        "images": n_images,
        "acquisitions": [acquisitions[number] for number in sorted(acquisitions)],
    }


def _stains(cells: "Cells", plate: "Plate") -> "list[Stain]":
    """Return how a plate's channels are shown: one pair of limits for its real and its translated images, by the first acquisition."""
    import numpy as np

    from cellbridge.data.exporting.ngff import Stain
    from cellbridge.plots.composite import contrast_limits, stain_colour

    first = min(field.acquisition for field in plate.fields)
    rows = np.concatenate([field.rows for field in plate.fields if field.acquisition == first])
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _CONTRAST_CELLS).astype(np.int64))]
    limits = contrast_limits(cells.counts(np.sort(chosen)).astype(np.float64))
    stains = []
    for index, (name, (black, white)) in enumerate(zip(cells.info.channels, limits, strict=True)):
        colour = "".join(f"{round(255 * part):02X}" for part in stain_colour(name, position=index))
        stains.append(Stain(name, colour, float(np.floor(black)), float(max(np.ceil(white), np.floor(black) + 1))))
    return stains
