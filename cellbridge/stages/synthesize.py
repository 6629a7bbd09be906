"""`cellbridge synthesize`: plates of synthetic cells, as a laboratory would have them, and beside them the truth.

    OUT/manifest.yaml, load_data.csv, images/, metadata/platemaps/   what `prepare` reads
    OUT/truth/manifest.yaml, load_data.csv, images/, cells.csv       control fields of the test plates under every condition
    OUT/summary.json                                                 counts, and the error that no model can beat

Two truths are rendered per control field and condition, on the same plate with the same noise. In `counterfactual` each cell
responds, or is lost, as chance had it. In `responding` every cell responds and none is lost. A lost cell leaves a hole: its
neighbours keep their outlines, so that nothing but a pixel of blur crosses from one cell into another.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cellbridge import config as configuration
from cellbridge.conditions import Condition
from cellbridge.config import Section
from cellbridge.errors import RunError
from cellbridge.runs import MANIFEST, RunDir, publish_directory, read_manifest, write_json, write_provenance, write_text

if TYPE_CHECKING:
    import numpy as np

    from cellbridge.data.rendering import Cells
    from cellbridge.data.synthetic import Compound, Plate, Response

_KIND = "synthetic plates"
_PLATE_MAP = "synthetic-map-1"


class Config(Section):
    """Which plates to render; few wells of some conditions on purpose."""

    seed: int = 0
    plates: tuple[str, ...] = Field(default=("SY000001", "SY000002", "SY000003", "SY000004"), min_length=1)
    test_plates: tuple[str, ...] | None = None
    """Plates whose control wells get their counterfactual truth; by default the last one."""
    batch: str = "2024_01_15_Synthetic"
    control: str = "DMSO"
    control_wells: PositiveInt = 12
    conditions: tuple[str, ...] = ("taxol@1", "latrunculin@1", "rotenone@1", "tunicamycin@5", "taxol@0.1")
    """Written compound@dose, in micromolar."""
    wells: tuple[PositiveInt, ...] = Field(default=(4, 3, 2, 1, 1), min_length=1)
    """Wells per plate of each condition, in the same order; the last number serves for the rest."""
    compounds: dict[str, str] = {}
    """Further compound names → the compound of the generator that they act like."""
    sites: PositiveInt = 2
    field_px: int = Field(default=256, ge=64, le=4096)
    cells_per_field: NonNegativeInt = 30
    truth: bool = True

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        for name, values in (("plates", self.plates), ("conditions", self.conditions)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} lists the same name twice")
        unknown = [plate for plate in self.test_plates or () if plate not in self.plates]
        if unknown:
            raise ValueError(f'test_plates: "{unknown[0]}" is not one of the plates ({", ".join(self.plates)})')
        used = self.control_wells + sum(self.wells_of(index) for index in range(len(self.conditions)))
        if used > 384:
            raise ValueError(f"{used} wells do not fit a 384-well plate; ask for fewer")
        for name in (*self.plates, self.batch):
            if not name or "/" in name or name.startswith("."):
                raise ValueError(f'"{name}" cannot be a folder; use a name without "/" that does not begin with "."')
        return self

    def wells_of(self, condition: int) -> int:
        """Wells per plate of the condition with this index."""
        return self.wells[min(condition, len(self.wells) - 1)]

    @property
    def truth_plates(self) -> tuple[str, ...]:
        """The plates whose control wells get their counterfactual truth."""
        if not self.truth:
            return ()
        return self.plates[-1:] if self.test_plates is None else self.test_plates


@dataclass(frozen=True)
class _Study:
    """The configuration, resolved."""

    config: Config
    folder: Path
    compounds: "dict[Condition, Compound]"
    wells: tuple[tuple[str, Condition], ...]


@dataclass
class _Tally:
    """What has been rendered so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    truth_rows: list[dict[str, Any]] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    n_cells: dict[str, int] = field(default_factory=dict)
    errors: "dict[str, list[dict[str, np.ndarray[Any, Any]]]]" = field(default_factory=dict)


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Render the plates into `out`, which appears only when it is whole.

    Raises
    ------
    ConditionError : a condition's compound is unknown to the generator, or its dose is missing.
    RunError : `out` holds something else.
    ResourceError : the disk is full.
    """
    compounds = _resolve(config)
    _require_free(out, config)
    wells = tuple(_lay_out_wells(config, tuple(compounds)))
    with publish_directory(out, manifest={"kind": _KIND, "seed": config.seed}) as folder:
        study, tally = _Study(config, folder, compounds, wells), _Tally()
        for _ in _with_progress(_render(study, tally), total=len(config.plates) * len(wells) * config.sites):
            pass
        _write_tables(study, tally)
        write_text(RunDir(folder).config, configuration.dump(config))
        write_provenance(RunDir(folder), seed=config.seed, inputs={})
        summary = _summarise(study, tally)
        write_json(folder / "summary.json", summary)
    return summary


def _resolve(config: Config) -> "dict[Condition, Compound]":
    from cellbridge.data.synthetic import COMPOUNDS, compound_named

    known = dict(COMPOUNDS)
    for name, like in config.compounds.items():
        known[name] = compound_named(Condition(like, 1.0))
    return {c: compound_named(c, known) for c in map(Condition.parse, config.conditions)}


def _require_free(out: Path, config: Config) -> None:
    """Refuse to replace anything but an earlier result of the same configuration."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file() or read_manifest(out).get("kind") != _KIND:
        raise RunError(f"{out}: exists and holds no synthetic plates. Choose another --out, or remove it.")
    if RunDir(out).config.read_text(encoding="utf-8") != configuration.dump(config):
        raise RunError(f"{out}: holds plates of another configuration (see config.yaml there). Choose another --out.")


def _lay_out_wells(config: Config, conditions: Sequence[Condition]) -> Iterator[tuple[str, Condition]]:
    """Yield well names with their conditions, scattered over the plate, the same on every plate."""
    from cellbridge.data.synthetic import generator

    contents = [Condition(config.control)] * config.control_wells
    for index, condition in enumerate(conditions):
        contents += [condition] * config.wells_of(index)
    places = generator("wells", config.seed).permutation(384)[: len(contents)]
    for place, condition in sorted(zip(places.tolist(), contents, strict=True), key=lambda pair: pair[0]):
        yield f"{chr(ord('A') + place // 24)}{place % 24 + 1:02d}", condition


def _with_progress(steps: Iterator[None], *, total: int) -> Iterator[None]:
    """Show the fields rendered so far on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("fields"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("fields", total=total)
        for step in steps:
            progress.advance(task)
            yield step


def _render(study: _Study, tally: _Tally) -> Iterator[None]:
    """Render every field, one step each."""
    from cellbridge.data.synthetic import draw_cells, draw_plate, generator

    config = study.config
    for name in config.plates:
        plate = draw_plate(name, generator("plate", config.seed, name))
        for well, condition in study.wells:
            for site in range(1, config.sites + 1):
                place = (config.seed, name, well, site)
                random = generator("cells", *place)
                number = round(config.cells_per_field * float(random.uniform(0.85, 1.15)))
                cells = draw_cells(random, number=number, field_px=config.field_px)
                _render_site(study, tally, cells, plate, place, condition)
                yield


def _render_site(
    study: _Study, tally: _Tally, cells: "Cells", plate: "Plate", place: tuple[int, str, str, int], condition: Condition
) -> None:
    """Render one field, and its truth where it is a control field of a test plate."""
    import numpy as np

    from cellbridge.data import synthetic
    from cellbridge.data.rendering import MECHANISMS, assemble, dissect, render_cells

    field_px, _, is_control = study.config.field_px, *place[:1], condition not in study.compounds
    anatomy = dissect(cells, field_px=field_px)
    untouched = np.zeros((len(cells), len(MECHANISMS)), np.float32)

    def write(folder: str, patches: "np.ndarray[Any, Any]", present: "np.ndarray[Any, Any] | None") -> dict[str, Any]:
        expected = assemble(anatomy, patches, field_px=field_px, present=present)
        counts = synthetic.expose(expected, plate, noise=synthetic.generator("noise", *place))
        return _write_field(study.folder, folder, counts, place)

    if not is_control:
        response = _respond(study, cells, place, condition)
        treated = render_cells(anatomy, untouched + response.strength * response.responds[:, None])
        tally.rows.append(write("", treated, ~response.lost))
        tally.n_cells[condition.name] = tally.n_cells.get(condition.name, 0) + int((~response.lost).sum())
        return
    source = render_cells(anatomy, untouched)
    tally.rows.append(write("", source, None))
    tally.n_cells[condition.name] = tally.n_cells.get(condition.name, 0) + len(cells)
    if plate.name not in study.config.truth_plates:
        return
    for target in study.compounds:
        response = _respond(study, cells, place, target)
        responding = render_cells(anatomy, response.strength)
        drawn = np.where(response.responds[:, None, None, None], responding, source)
        labels = {**_labels(target), "Metadata_pert_type": "trt"}
        for origin, patches, present in (("counterfactual", drawn, ~response.lost), ("responding", responding, None)):
            row = write(f"truth/{origin}/{target.slug}", patches, present)
            tally.truth_rows.append({**row, **labels, "Metadata_Origin": origin})
        tally.cells += _cell_rows(cells, response, place, target)
        tally.errors.setdefault(target.name, []).append(synthetic.floor(anatomy, response, plate, source, responding))


def _respond(study: _Study, cells: "Cells", place: tuple[int, str, str, int], condition: Condition) -> "Response":
    """Draw the response of a field's cells; two doses of a compound share their chance."""
    from cellbridge.data.synthetic import generator, respond

    chance = generator("chance", *place, condition.compound).random((len(cells), 2))
    return respond(cells, study.compounds[condition], condition.dose_um or 0.0, chance=chance)


def _write_field(
    root: Path, folder: str, counts: "np.ndarray[Any, Any]", place: tuple[int, str, str, int]
) -> dict[str, Any]:
    """Write one field as a TIFF per channel, and return its row of load_data.csv (paths from the manifest's root)."""
    import tifffile

    from cellbridge.data.rendering import CHANNELS

    _, plate, well, site = place
    images = root / folder.partition("/")[0] / "images" / folder.partition("/")[2] / plate
    base = root / "truth" if folder else root
    images.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": site}
    for channel, image in zip(CHANNELS, counts, strict=True):
        name = f"{well}_s{site}_{channel}.tif"
        tifffile.imwrite(images / name, image, photometric="minisblack", metadata=None)
        row[f"FileName_{channel}"], row[f"PathName_{channel}"] = name, images.relative_to(base).as_posix()
    return row


def _labels(condition: Condition) -> dict[str, str]:
    dose = "" if condition.dose_um is None else f"{condition.dose_um:g}"
    return {"Metadata_Compound": condition.compound, "Metadata_Concentration": dose}


def _cell_rows(
    cells: "Cells", response: "Response", place: tuple[int, str, str, int], target: Condition
) -> Iterator[dict[str, Any]]:
    _, plate, well, site = place
    for index in range(len(cells)):
        yield {
            "Metadata_Plate": plate,
            "Metadata_Well": well,
            "Metadata_Site": site,
            **_labels(target),
            "Truth_Cell": index,
            "x": f"{cells.x[index]:.2f}",
            "y": f"{cells.y[index]:.2f}",
            "Truth_Responder": int(response.responds[index]),
            "Truth_PResponse": f"{response.probability[index]:.5f}",
            "Truth_Lost": int(response.lost[index]),
            "Truth_Phase": f"{cells.phase[index]:.4f}",
            "Truth_Size": f"{cells.size[index]:.4f}",
        }


def _write_tables(study: _Study, tally: _Tally) -> None:
    """Write load_data.csv, plate maps and manifests, in the community's columns."""
    config, folder = study.config, study.folder
    _write_csv(folder / "load_data.csv", tally.rows)
    maps = folder / "metadata" / "platemaps" / config.batch
    barcodes = [{"Assay_Plate_Barcode": plate, "Plate_Map_Name": _PLATE_MAP} for plate in config.plates]
    _write_csv(maps / "barcode_platemap.csv", barcodes)
    wells = [
        {
            "plate_map_name": _PLATE_MAP,
            "well_position": well,
            "compound": condition.compound,
            "concentration_um": _labels(condition)["Metadata_Concentration"],
            "solvent": "DMSO",
            "pert_type": "trt" if condition in study.compounds else "negcon",
        }
        for well, condition in study.wells
    ]
    _write_csv(maps / "platemap" / f"{_PLATE_MAP}.txt", wells, delimiter="\t")
    columns = {
        "Metadata_Compound": "compound",
        "Metadata_Concentration": "concentration_um",
        "Metadata_pert_type": "pert_type",
    }
    maps_of = {"platemaps": (maps.relative_to(folder).as_posix(),), "columns": columns}
    _write_manifest(folder / "manifest.yaml", name="synthetic", extra={**maps_of, "control_name": config.control})
    if tally.truth_rows:
        _write_csv(folder / "truth" / "load_data.csv", tally.truth_rows)
        _write_csv(folder / "truth" / "cells.csv", tally.cells)
        extra = {"objects": "cells.csv", "control_name": config.control}
        _write_manifest(folder / "truth" / "manifest.yaml", name="synthetic-truth", extra=extra)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], *, delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else [], delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_manifest(path: Path, *, name: str, extra: dict[str, Any]) -> None:
    from cellbridge.data.manifest import Manifest, dump_manifest
    from cellbridge.data.rendering import CHANNELS
    from cellbridge.data.synthetic import PIXEL_UM

    manifest = Manifest(
        name=name,
        description="Synthetic Cell Painting with known counterfactuals, made by `cellbridge synthesize`.",
        licence="CC0-1.0",
        citation="none (synthetic)",
        kind="load_data",
        tables=("load_data.csv",),
        channels=CHANNELS,
        nucleus_channel="DNA",
        cell_channel="RNA",
        concentration_unit="uM",
        pixel_um=PIXEL_UM,
        **extra,
    )
    write_text(path, dump_manifest(manifest))


def _summarise(study: _Study, tally: _Tally) -> dict[str, Any]:
    """Return counts, and per condition the root mean square errors (counts) of three predictors that know the truth."""
    import numpy as np

    from cellbridge.data.rendering import CHANNELS

    conditions: dict[str, Any] = {}
    for name, parts in tally.errors.items():
        cells = [
            row
            for row in tally.cells
            if Condition(row["Metadata_Compound"], float(row["Metadata_Concentration"])).name == name
        ]
        pixels = max(float(sum(part["pixels"] for part in parts)), 1.0)
        rms = {key: np.sqrt(sum(part[key] for part in parts) / pixels) for key in ("bayes", "copy", "respond")}
        conditions[name] = {
            "truth_cells": len(cells),
            "lost": sum(row["Truth_Lost"] for row in cells),
            "responders": sum(row["Truth_Responder"] for row in cells),
            "rms_counts": {
                key: {channel: round(float(v), 2) for channel, v in zip(CHANNELS, values, strict=True)}
                for key, values in rms.items()
            },
            "floor_over_copy": round(float(np.mean(rms["bayes"] / np.maximum(rms["copy"], 1e-9))), 4),
        }
    return {
        "fields": len(tally.rows),
        "truth_fields": len(tally.truth_rows),
        "cells": tally.n_cells,
        "test_plates": list(study.config.truth_plates),
        "truth": conditions,
    }
