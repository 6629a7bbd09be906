"""`cellbridge inspect`: what a plate or a store looks like: plate maps, histograms and a montage, as PNG files and one page."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from cellbridge.data.manifest import read_manifest
from cellbridge.data.selection import Names, Selection, require_data_set
from cellbridge.errors import ImageError, StoreError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.progress import bar
from cellbridge.runs import RunDir, is_taken, publish_directory
from cellbridge.settings import Section
from cellbridge.tables import write_csv

if TYPE_CHECKING:
    import numpy as np

    from cellbridge.data.manifest import Manifest
    from cellbridge.data.overview import Glancing, Overview
    from cellbridge.data.readers.rows import ImageRow
    from cellbridge.data.store import Store
    from cellbridge.reporting.inspection import Scene

_SEED = 0
"""Cells of the montage are drawn evenly over the plates; two calls show the same."""


class Config(Section):
    """Settings of `inspect`."""

    path: Path
    """A store, a manifest.yaml, or the folder that holds one."""
    root: Path | None = None
    """Where a data set's files lie; by default what its manifest says."""
    plates: Names = ()
    """Only these plates of a data set; several by commas too."""
    wells: Names = ()
    """Only these wells of a data set, as B03 (on every plate) or PLATE/B03."""
    plate_format: Literal[96, 384, 1536] | None = None
    """Layout in which a store's plates are drawn; by default the smallest that has all of its wells."""
    sites_per_well: PositiveInt = 1
    """How many fields of each well of a data set are looked at."""
    conditions: PositiveInt = 8
    """How many conditions the montage shows: the control, and those with the most cells."""
    cells_per_condition: PositiveInt = 12
    fields_per_condition: PositiveInt = 4
    """Pictures in a row of the montage, of cells or of fields."""
    workers: PositiveInt | None = None
    """How many processes look at a data set's fields; by default one for each processor, and one for little work."""


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Write the pictures, `wells.csv` and `report.html` into a new folder.

    Raises
    ------
    StoreError : `out` exists, or the store is not whole.
    ManifestError, ImageError : the data set's tables do not hold together, or none of its images can be read.
    """
    if is_taken(out):
        raise StoreError(f"{out}: exists already. Remove it, or choose another --out.")
    require_directory(out.parent)
    require_apart(out, [config.path])
    from cellbridge.reporting.inspection import page_view, well_rows
    from cellbridge.reporting.pages import rendered

    is_set = config.path.is_file() or (config.path / "manifest.yaml").is_file()
    if not is_set:
        require_data_set(config.path, config.plates, config.wells)
    scene = _data_set(config) if is_set else _store(config)
    with publish_directory(out) as folder:
        view = page_view(scene, folder)
        columns, wells = well_rows(scene)
        write_csv(folder / "wells.csv", columns, wells)
        RunDir(folder).report.write_text(rendered("inspection.html.j2", **view), encoding="utf-8")
        files = sorted(file.name for file in folder.iterdir())
    return {
        "report": str(RunDir(out).report),
        "wells": len(wells),
        "plates": sorted(scene.overview.plates),
        "rejected": dict(scene.rejected),
        "files": files,
    }


def _store(config: Config) -> "Scene":
    """Measure every cell of a store."""
    import numpy as np

    from cellbridge.data.layout import smallest_format
    from cellbridge.data.overview import overview_of_store
    from cellbridge.data.store import open_store
    from cellbridge.reporting.inspection import Scene

    store = open_store(config.path)
    info = store.info
    with bar("inspect", total=info.n_cells, unit="cells") as progress:
        overview = overview_of_store(store, advance=progress.advance)
    counts = Counter(store.condition_names.tolist())
    pictures = {
        name: store.images(_some(store, name, config.cells_per_condition))
        for name in _shown(config, counts, info.control)
    }
    wells = {well for plate in overview.plates.values() for well in plate}
    rejected = info.attributes.get("rejected") or {}
    masked = "over each cell's mask" if store.masks(np.arange(1)) is not None else "over whole crops"
    told = "no crop was rejected" if not rejected else f"{sum(rejected.values())} crops were rejected"
    return Scene(
        title=f"Store {info.path.name}",
        overview=overview,
        plate_format=config.plate_format or smallest_format(wells),
        pixel_um=info.pixel_um,
        per_unit=False,
        what=f"Counts of the camera, {masked}.",
        pictures=pictures,
        limits_of=next(iter(pictures.values())),
        conditions=_ordered(counts, info.control),
        rejected=rejected,
        facts=(
            f"{info.n_cells} cells",
            f"{len(info.plates)} plates",
            f"{len(wells)} wells",
            f"channels {', '.join(info.channels)}",
        ),
        notes=(
            f"Of what `prepare` found, {told}."
            if "rejected" in info.attributes
            else "The store does not say what was rejected.",
        ),
    )


def _some(store: "Store", condition: str, n: int) -> "np.ndarray":
    from cellbridge.data.balance import draw_evenly

    rows = store.select(conditions=[condition])
    return draw_evenly(rows, store.plates[rows], n=n, seed=_SEED)


def _shown(config: Config, counts: Mapping[str, int], control: str) -> list[str]:
    return list(_ordered(counts, control))[: config.conditions]


def _ordered(counts: Mapping[str, int], control: str) -> dict[str, int]:
    """Return the conditions, the control first, then those with the most cells."""
    names = sorted(counts, key=lambda name: (name != control, -counts[name], name))
    return {name: counts[name] for name in names}


def _data_set(config: Config) -> "Scene":
    """Look at some fields of every well of a data set, or at every crop."""
    import numpy as np

    from cellbridge.data.annotation import condition_of
    from cellbridge.data.catalogue import read_catalogue
    from cellbridge.data.overview import Glancing, spread_rows
    from cellbridge.reporting.inspection import Scene

    manifest, root = read_manifest(config.path, root=config.root)
    selection = Selection.of(config.plates, config.wells, plate_format=manifest.plate_format)
    listed, control = read_catalogue(manifest, root, selection)
    rows = spread_rows(listed, each_well=config.sites_per_well) if manifest.holds_fields else listed
    names = [condition_of(row, control=control).name for row in rows]
    counts = Counter(names)
    shown = {name: _numbers(names, name, config, manifest) for name in _shown(config, counts, control)}
    nucleus_px, note = _nucleus_px(rows, manifest)
    picture_px = 160 if manifest.holds_fields else 96
    glancing = Glancing(rows, manifest, nucleus_px, frozenset(n for some in shown.values() for n in some), picture_px)
    overview, pictures, n_lost = _look(glancing, config)
    drawn = _rows_of_pictures(shown, pictures)
    unit = "fields" if manifest.holds_fields else "crops"
    lost = (
        (f"{n_lost} of {len(rows)} {unit} could not be read; `cellbridge validate` lists them all.",) if n_lost else ()
    )
    wells = {well for plate in overview.plates.values() for well in plate}
    return Scene(
        title=f"Data set {manifest.name}",
        overview=overview,
        plate_format=config.plate_format or _layout(manifest, wells),
        pixel_um=None if manifest.pixel_um is None else manifest.pixel_um * _step(rows[0], manifest, picture_px),
        per_unit=manifest.holds_fields,
        what="Counts of the camera as they are stored, whole images with their background; uneven light is not corrected.",
        pictures=drawn,
        limits_of=np.concatenate(list(drawn.values())),
        conditions=_ordered(counts, control),
        facts=(
            f"{len(rows)} of {len(listed)} {unit} looked at",
            f"{len(overview.plates)} plates",
            f"channels {', '.join(manifest.stains)}",
        ),
        notes=(*note, *lost),
    )


def _layout(manifest: "Manifest", wells: Iterable[str]) -> int:
    from cellbridge.data.layout import smallest_format

    return manifest.plate_format if manifest.plate_format >= 96 else smallest_format(wells)


def _numbers(names: list[str], name: str, config: Config, manifest: "Manifest") -> list[int]:
    """Return the numbers of some rows of a condition, evenly over all of them."""
    import numpy as np

    own = [number for number, other in enumerate(names) if other == name]
    wanted = config.fields_per_condition if manifest.holds_fields else config.cells_per_condition
    return [own[place] for place in np.unique(np.linspace(0, len(own) - 1, min(wanted, len(own))).round().astype(int))]


def _nucleus_px(rows: "list[ImageRow]", manifest: "Manifest") -> tuple[float | None, tuple[str, ...]]:
    """Return the typical nucleus of fields, and a note where none can be found."""
    from cellbridge.data.extraction import nucleus_images
    from cellbridge.data.segmentation import typical_nucleus_px

    if not manifest.holds_fields:
        return None, ()
    found = "Nuclei are counted in the fields as they are, those at the edge too: `prepare` counts what it keeps."
    if manifest.nucleus_px is not None:
        return manifest.nucleus_px, (found,)
    try:
        return typical_nucleus_px(nucleus_images(rows[:: max(1, len(rows) // 6)], manifest, flats={})), (found,)
    except ImageError as error:
        return None, (f"Nuclei were not counted: {error}",)


def _look(glancing: "Glancing", config: Config) -> "tuple[Overview, dict[int, np.ndarray], int]":
    """Look at every row, in several processes where there are many; return the sums, the pictures by number, and how many were lost.

    Raises
    ------
    ImageError : not one picture could be made.
    """
    from cellbridge.data.annotation import is_control
    from cellbridge.data.crew import each, processors
    from cellbridge.data.overview import Overview, Well

    manifest, count = glancing.manifest, len(glancing.rows)
    few, unit = (32, "fields") if manifest.holds_fields else (4000, "crops")
    overview, pictures, n_lost, first = Overview(manifest.stains, manifest.full_scale), {}, 0, "there is none"
    workers = config.workers or (processors() if count > few else 1)
    with bar("inspect", total=count, unit=unit) as progress:
        for number, seen in each(glancing, range(count), workers=workers, in_order=True):
            progress.advance()
            row = glancing.rows[number]
            if seen.sums is None or seen.bins is None:
                first = first if n_lost else f"{row.where}: {seen.problem}"
                n_lost += 1
                continue
            overview.add(row.plate, row.well, Well(is_control(row), 1, seen.cells, seen.sums, seen.pixels), seen.bins)
            if seen.picture is not None:
                pictures[number] = seen.picture
    if not pictures:
        raise ImageError(f"none of the images can be read: {first}")
    return overview, pictures, n_lost


def _rows_of_pictures(shown: Mapping[str, list[int]], pictures: "Mapping[int, np.ndarray]") -> "dict[str, np.ndarray]":
    """Return condition → pictures, all cut to the smallest width among them."""
    import numpy as np

    side = min(min(picture.shape[-2:]) for picture in pictures.values())
    rows = {name: [pictures[n][:, :side, :side] for n in numbers if n in pictures] for name, numbers in shown.items()}
    return {name: np.stack(some).astype(np.float32) for name, some in rows.items() if some}


def _step(row: "ImageRow", manifest: "Manifest", picture_px: int) -> int:
    """Return how many image pixels one pixel of a picture stands for."""
    from cellbridge.data.image_headers import read_header

    if not manifest.holds_fields:
        return 1
    shape = [size for size in read_header(next(iter(row.images.values()))).shape if size > 1]
    return 2 if min(shape[-2:]) >= 2 * picture_px else 1
