"""`cellbridge synthesize`: plates of synthetic cells, as a laboratory would have them, and beside them the truth.

    OUT/manifest.yaml, load_data.csv, images/, metadata/platemaps/   what `prepare` reads
    OUT/truth/manifest.yaml, load_data.csv, images/, cells.csv       control fields of the test plates under every condition
    OUT/summary.json                                                 counts, and the error that no model can beat

Two truths are rendered per control field and condition, on the same plate with the same noise. In `counterfactual` each cell
responds, or is lost, as chance had it. In `responding` every cell responds and none is lost. A lost cell leaves a hole: its
neighbours keep their outlines, so that nothing but a pixel of blur crosses from one cell into another.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt, model_validator

from cellbridge import settings
from cellbridge.conditions import Condition
from cellbridge.errors import RunError
from cellbridge.progress import bar
from cellbridge.runs import MANIFEST, RunDir, begin, is_taken, publish_directory, read_manifest, write_json, write_text
from cellbridge.settings import Section, Seed

if TYPE_CHECKING:
    from cellbridge.data.anatomy import Cells
    from cellbridge.data.synthetic import Compound, Plate, Response, Sums

_KIND = "synthetic plates"
_PLATE_MAP = "synthetic-map-1"


class Config(Section):
    """Which plates to render; few wells of some conditions on purpose."""

    seed: Seed = 0
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
    compounds: dict[str, str] = Field(default_factory=dict)
    """Further compound names → the compound of the generator that they act like."""
    sites: PositiveInt = 2
    field_px: int = Field(default=256, ge=64, le=4096)
    cells_per_field: PositiveInt = 30
    truth: bool = True

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        slugs = [Condition.parse(text).slug for text in self.conditions]
        for name, values in (("plates", self.plates), ("conditions", slugs)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} lists the same name twice")
        if any(Condition.parse(text).compound == self.control for text in self.conditions):
            raise ValueError(f'conditions: "{self.control}" is the control; its wells are control_wells')
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
    wells: dict[str, Condition]


@dataclass(frozen=True)
class _Site:
    """One field of view."""

    plate: "Plate"
    well: str
    site: int
    cells: "Cells"
    place: tuple[int, str, str, int]
    """The seed and where the field lies: what every draw for this field is seeded by."""

    @property
    def columns(self) -> dict[str, Any]:
        """The field's columns of any table."""
        return {"Metadata_Plate": self.plate.name, "Metadata_Well": self.well, "Metadata_Site": self.site}


@dataclass
class _Tally:
    """What has been rendered so far: rows of the tables, number of cells, and errors of the predictors that know the truth."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    truth_rows: list[dict[str, Any]] = field(default_factory=list)
    cells: dict[Condition, list[dict[str, Any]]] = field(default_factory=dict)
    n_cells: dict[str, int] = field(default_factory=dict)
    errors: "dict[Condition, list[Sums]]" = field(default_factory=dict)


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
    wells = _lay_out_wells(config, list(compounds))
    with publish_directory(out, manifest={"kind": _KIND, "seed": config.seed}) as folder:
        study, tally = _Study(config, folder, compounds, wells), _Tally()
        with bar("synthesize", total=len(config.plates) * len(wells) * config.sites, unit="fields") as shown:
            for _ in _render(study, tally):
                shown.advance()
        _write_tables(study, tally)
        begin(RunDir(folder), config=settings.dump(config), seed=config.seed, inputs={})
        summary = _summarise(study, tally)
        write_json(folder / "summary.json", summary)
    return summary


def _resolve(config: Config) -> "dict[Condition, Compound]":
    """Find every condition's compound, so that a wrong name ends the command before anything is rendered."""
    from cellbridge.data.synthetic import COMPOUNDS, compound_named

    known = {**COMPOUNDS, **{name: compound_named(Condition(like, 1.0)) for name, like in config.compounds.items()}}
    return {condition: compound_named(condition, known) for condition in map(Condition.parse, config.conditions)}


def _require_free(out: Path, config: Config) -> None:
    """Refuse to replace anything but an earlier result of the same configuration."""
    if not is_taken(out):
        return
    if not (out / MANIFEST).is_file() or read_manifest(out).get("kind") != _KIND:
        raise RunError(f"{out}: exists and holds no synthetic plates. Choose another --out, or remove it.")
    if RunDir(out).config.read_text(encoding="utf-8") != settings.dump(config):
        raise RunError(f"{out}: holds plates of another configuration (see config.yaml there). Choose another --out.")


def _lay_out_wells(config: Config, conditions: list[Condition]) -> dict[str, Condition]:
    """Scatter the wells over the plate; all plates share the map."""
    from cellbridge.data.synthetic import generator, scatter_wells

    contents = [Condition(config.control)] * config.control_wells
    for index, condition in enumerate(conditions):
        contents += [condition] * config.wells_of(index)
    return scatter_wells(contents, generator("wells", config.seed))


def _render(study: _Study, tally: _Tally) -> Iterator[None]:
    """Render every field, one step each, and its truth where it is a control field of a test plate."""
    from cellbridge.data.synthetic import draw_cells, draw_plate, generator

    config = study.config
    for name in config.plates:
        plate = draw_plate(name, generator("plate", config.seed, name))
        for well, condition in study.wells.items():
            for number in range(1, config.sites + 1):
                place = (config.seed, name, well, number)
                random = generator("cells", *place)
                n = max(1, round(config.cells_per_field * float(random.uniform(0.85, 1.15))))
                cells = draw_cells(random, number=n, field_px=config.field_px)
                site = _Site(plate, well, number, cells, place)
                if condition in study.compounds:
                    _render_treated(study, tally, site, condition)
                else:
                    _render_control(study, tally, site)
                yield


def _render_treated(study: _Study, tally: _Tally, site: _Site, condition: Condition) -> None:
    from cellbridge.data.anatomy import dissect
    from cellbridge.data.rendering import render_cells

    response = _respond(study, site, condition)
    anatomy = dissect(site.cells, field_px=study.config.field_px)
    patches = render_cells(anatomy, response.strength * response.responds[:, None])
    tally.rows.append(_write(study, site, anatomy, patches, ~response.lost))
    tally.n_cells[condition.name] = tally.n_cells.get(condition.name, 0) + int((~response.lost).sum())


def _render_control(study: _Study, tally: _Tally, site: _Site) -> None:
    import numpy as np

    from cellbridge.data.anatomy import dissect
    from cellbridge.data.rendering import MECHANISMS, render_cells
    from cellbridge.data.synthetic import squared_errors

    anatomy = dissect(site.cells, field_px=study.config.field_px)
    source = render_cells(anatomy, np.zeros((len(site.cells), len(MECHANISMS)), np.float32))
    tally.rows.append(_write(study, site, anatomy, source, None))
    tally.n_cells[study.config.control] = tally.n_cells.get(study.config.control, 0) + len(site.cells)
    if site.plate.name not in study.config.truth_plates:
        return
    for target in study.compounds:
        response = _respond(study, site, target)
        responding = render_cells(anatomy, response.strength)
        drawn = np.where(response.responds[:, None, None, None], responding, source)
        for origin, patches, present in (("counterfactual", drawn, ~response.lost), ("responding", responding, None)):
            row = _write(study, site, anatomy, patches, present, truth=(origin, target))
            tally.truth_rows.append({**row, "Metadata_Origin": origin})
        tally.cells.setdefault(target, []).extend(_truth_of_cells(site, response, target))
        errors = squared_errors(anatomy, response, site.plate, source=source, responding=responding)
        tally.errors.setdefault(target, []).append(errors)


def _respond(study: _Study, site: _Site, condition: Condition) -> "Response":
    """Draw the response of a field's cells; two doses of a compound share their chance."""
    from cellbridge.data.synthetic import draw_chance, generator, respond

    chance = draw_chance(site.cells, generator("chance", *site.place, condition.compound))
    return respond(site.cells, study.compounds[condition], condition.dose_um or 0.0, chance=chance)


def _write(
    study: _Study, site: _Site, anatomy: Any, patches: Any, present: Any, *, truth: tuple[str, Condition] | None = None
) -> dict[str, Any]:
    """Image a field of patches with the site's noise, write it, and return its row of load_data.csv."""
    from cellbridge.data.anatomy import CHANNELS
    from cellbridge.data.plate_folder import condition_columns, write_field
    from cellbridge.data.rendering import assemble
    from cellbridge.data.synthetic import expose, generator

    expected = assemble(anatomy, patches, field_px=study.config.field_px, present=present)
    counts = expose(expected, site.plate, noise=generator("noise", *site.place))
    root, folder, labels = study.folder, f"images/{site.plate.name}", {}
    if truth is not None:
        origin, condition = truth
        root, folder = study.folder / "truth", f"images/{origin}/{condition.slug}/{site.plate.name}"
        labels = {**condition_columns(condition), "Metadata_pert_type": "trt"}
    files = write_field(counts, root, folder, channels=CHANNELS, well=site.well, site=site.site)
    return {**site.columns, **labels, **files}


def _truth_of_cells(site: _Site, response: "Response", condition: Condition) -> Iterator[dict[str, Any]]:
    from cellbridge.data.plate_folder import condition_columns

    cells, shared = site.cells, {**site.columns, **condition_columns(condition)}
    for index in range(len(cells)):
        yield {
            **shared,
            "x": f"{cells.x[index]:.2f}",
            "y": f"{cells.y[index]:.2f}",
            "Truth_Cell": index,
            "Truth_Responder": int(response.responds[index]),
            "Truth_PResponse": f"{response.probability[index]:.5f}",
            "Truth_Lost": int(response.lost[index]),
            "Truth_Phase": f"{cells.phase[index]:.4f}",
            "Truth_Size": f"{cells.size[index]:.4f}",
        }


def _write_tables(study: _Study, tally: _Tally) -> None:
    """Write load_data.csv, plate maps and manifests, in the community's columns."""
    from cellbridge.data.plate_folder import write_platemaps, write_table

    config, folder = study.config, study.folder
    maps = f"metadata/platemaps/{config.batch}"
    write_table(folder / "load_data.csv", tally.rows)
    write_platemaps(folder / maps, name=_PLATE_MAP, plates=config.plates, wells=study.wells, control=config.control)
    names = {"Compound": "compound", "Concentration": "concentration_um", "pert_type": "pert_type"}
    columns = {f"Metadata_{name}": column for name, column in names.items()}
    _write_manifest(folder, "synthetic", platemaps=(maps,), columns=columns, control_name=config.control)
    if tally.truth_rows:
        write_table(folder / "truth" / "load_data.csv", tally.truth_rows)
        write_table(folder / "truth" / "cells.csv", [row for rows in tally.cells.values() for row in rows])
        _write_manifest(folder / "truth", "synthetic-truth", objects="cells.csv", control_name=config.control)


def _write_manifest(folder: Path, name: str, **keys: Any) -> None:
    from cellbridge.data.anatomy import CHANNELS
    from cellbridge.data.manifest import Manifest, dump_manifest
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
        **keys,
    )
    write_text(folder / "manifest.yaml", dump_manifest(manifest))


def _summarise(study: _Study, tally: _Tally) -> dict[str, Any]:
    """Return counts, and per condition the root mean square errors of the predictors that know the truth."""
    from cellbridge.data.synthetic import rms_counts

    truth = {
        condition.name: {
            "cells": len(tally.cells[condition]),
            "lost": sum(row["Truth_Lost"] for row in tally.cells[condition]),
            "responders": sum(row["Truth_Responder"] for row in tally.cells[condition]),
            "rms_counts": rms_counts(errors),
        }
        for condition, errors in tally.errors.items()
    }
    return {
        "fields": len(tally.rows),
        "truth_fields": len(tally.truth_rows),
        "cells": tally.n_cells,
        "test_plates": list(study.config.truth_plates),
        "truth": truth,
    }
