"""`cellbridge prepare`: plates of fields, or ready-made crops, into a store of single cells.

tables and plate maps → checked rows → survey of all images → even illumination → nuclei and cells → crops and masks → intensity
maps of the control → store. With `crops_from` the cells of another store are cut out of other images of the same fields.

Fields are worked on by several processes. What is finished lies in `.OUT.preparing` beside OUT until the store is whole: the same
command again, after whatever ended it, goes on from there and writes the store that it would have written undisturbed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellbridge import runs
from cellbridge.data.preparation import Config, Task, checked
from cellbridge.data.store import write_store
from cellbridge.errors import ConfigError, StoreError
from cellbridge.outputs import require_directory
from cellbridge.progress import bar, say

if TYPE_CHECKING:
    from cellbridge.data.collector import Collector
    from cellbridge.data.crew import Crew
    from cellbridge.data.cutting import Cutting
    from cellbridge.data.extraction import Geometry
    from cellbridge.data.survey import Survey

_SAMPLE_FIELDS, _SAMPLE_CROPS = 16, 64


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
    task = checked(config)
    from cellbridge.data.pieces import kept_beside

    with kept_beside(out) as folder:
        from cellbridge.data.collector import Collector
        from cellbridge.data.crew import Crew

        with Crew(task.workers) as crew:
            survey = _survey(task, folder, crew)
            cutting = _cut(task, folder, survey, crew)
        collector = Collector(cutting, splits=task.splits, reference=config.intensity_reference)
        return _publish(task, collector, cutting, survey=survey, out=out)


def _survey(task: Task, folder: Path, crew: "Crew") -> "Survey":
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


def _cut(task: Task, folder: Path, survey: "Survey", crew: "Crew") -> "Cutting":
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


def _known_source(task: Task) -> Any:
    from cellbridge.data.cutting import KnownSource
    from cellbridge.data.manifest import resolve_path

    if task.source is None:
        return None
    name = task.manifest.objects
    objects = None if name is None else resolve_path(name, task.root, where="objects")
    return KnownSource(task.source.path, runs.fingerprint(task.source.path), objects, task.config.match_px)


def _geometry(task: Task, survey: "Survey") -> "Geometry":
    from cellbridge.data.crops import Choice
    from cellbridge.data.extraction import Geometry
    from cellbridge.data.quality import Limits
    from cellbridge.data.survey import saturated_at

    given, nucleus_px = task.config.segmentation, None
    if task.config.border == "reject" and 0 < survey.widest_px < task.crop_px:
        raise ConfigError(
            f"crops of {task.crop_px} px do not fit into any field, of which the largest has {survey.widest_px} px. "
            "Choose a smaller crop_px or crop_um, or set border=reflect."
        )
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


def _measured_nucleus_px(task: Task, survey: "Survey") -> float:
    """Measure the typical nucleus on rows spread evenly over the data set."""
    from cellbridge.data.extraction import nucleus_images
    from cellbridge.data.segmentation import typical_nucleus_px

    sample = _SAMPLE_FIELDS if task.manifest.holds_fields else _SAMPLE_CROPS
    step = max(1, len(task.rows) // sample)
    return typical_nucleus_px(nucleus_images(task.rows[::step], task.manifest, flats=survey.flats))


def _warnings(task: Task, geometry: "Geometry", survey: "Survey") -> list[str]:
    """Return what is allowed and seldom meant."""
    from cellbridge.data.summary import seldom_meant

    return seldom_meant(task.splits, geometry, survey, pixel_um=task.manifest.pixel_um)


def _publish(task: Task, collector: "Collector", cutting: "Cutting", *, survey: "Survey", out: Path) -> dict[str, Any]:
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


def _attributes(task: Task, collector: "Collector", geometry: "Geometry", survey: "Survey") -> dict[str, Any]:
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
