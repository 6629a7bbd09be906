"""`cellbridge validate`: everything that is wrong with a plate or a store, found in one pass and told by kind; nothing is written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from cellbridge import runs
from cellbridge.data.manifest import read_manifest
from cellbridge.data.selection import Names, Selection, require_data_set
from cellbridge.errors import ConfigError, ManifestError, ProblemsFound
from cellbridge.progress import bar
from cellbridge.settings import Section

if TYPE_CHECKING:
    from cellbridge.data.validation.problems import Findings

SHOWN = 5
"""Problems of each kind that the text shows; the JSON has all."""
_FEW_IMAGES = 400
"""Up to so many images, other processes cost more than they save."""


class Config(Section):
    """Settings of `validate`."""

    path: Path
    """A manifest.yaml, the folder that holds one, or a store."""
    root: Path | None = None
    """Where the data set's files lie; by default what its manifest says."""
    plates: Names = ()
    """Only these plates of a data set; several by commas too."""
    wells: Names = ()
    """Only these wells of a data set, as B03 (on every plate) or PLATE/B03."""
    deep: bool = False
    """Read every pixel and verify every checksum; otherwise tables and the heads of files."""
    strict: bool = False
    """Take remarks for problems, too."""
    max_saturated: float = Field(default=0.01, ge=0, le=1)
    """Share of pixels at the camera's largest count from which a channel is saturated."""
    intensity_reference: str = Field(default="control", pattern="^(control|all)$")
    """As for `prepare`: with `all` plates need no control."""
    workers: PositiveInt | None = None
    """How many processes; by default one for each processor, and one for little work."""


def run(config: Config) -> dict[str, Any]:
    """Look at everything, and return what was looked at.

    Raises
    ------
    ProblemsFound : there are problems; its summary has all of them.
    ConfigError : the path is neither a manifest nor a store, or plates or wells are asked for that are not there.
    """
    from cellbridge.data.validation.problems import Findings

    findings = Findings()
    what = _what(config.path)
    if what == "store":
        require_data_set(config.path, config.plates, config.wells)
        _check_store(config, findings)
    else:
        _check_plate(config, findings)
    problems, remarks = findings.count(remarks=False), findings.count(remarks=True)
    clean = not problems and not (config.strict and remarks)
    values = findings.as_values(show=SHOWN)
    summary = {
        "path": str(config.path),
        "what": what,
        "clean": clean,
        "problems": problems,
        "remarks": remarks,
        "looked_at": findings.looked_at,
        **values,
    }
    told = [_heading(config, problems, remarks), _looked_at(findings, deep=config.deep), *findings.as_text(show=SHOWN)]
    summary["report"] = "\n".join(told)
    if clean:
        return summary
    kinds = ", ".join(f"{len(found)} {kind}" for kind, found in findings.by_kind().items())
    raise ProblemsFound(f"{told[0]} ({kinds}). --json lists every one of them.", summary=summary)


def _what(path: Path) -> str:
    """Say whether a path is a store, maybe a damaged one, or a data set."""
    if (path / "manifest.yaml").is_file() or path.is_file():
        return "data set"
    if (path / "images").is_dir() and ((path / "zarr.json").is_file() or (path / runs.MANIFEST).is_file()):
        return "store"
    try:
        kind = json.loads((path / runs.MANIFEST).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind == "store":
        return "store"
    raise ConfigError(
        f"{path}: is neither a manifest.yaml, nor a folder that holds one, nor a store. Give one of these."
    )


def _check_plate(config: Config, findings: "Findings") -> None:
    from cellbridge.data.crew import each, processors
    from cellbridge.data.validation.looks import Looking, Seen
    from cellbridge.data.validation.plate import Plate, check_plate

    try:
        manifest, root = read_manifest(config.path, root=config.root)
    except ManifestError as error:
        findings.add_text("manifest", str(error), default=config.path)
        return
    file = config.path / "manifest.yaml" if config.path.is_dir() else config.path

    def share(job: Looking, count: int) -> Iterator[tuple[int, list[Seen]]]:
        images = sum(len(row.images) for row in job.rows)
        workers = config.workers or (processors() if images > _FEW_IMAGES else 1)
        with bar("validate", total=images, unit="images") as progress:
            for number, found in each(job, range(count), workers=workers):
                progress.advance(len(found))
                yield number, found

    plate = Plate(
        manifest,
        root,
        file,
        deep=config.deep,
        all_cells=config.intensity_reference == "all",
        max_saturated=config.max_saturated,
        selection=Selection.of(config.plates, config.wells, plate_format=manifest.plate_format),
    )
    check_plate(plate, findings, share=share)


def _check_store(config: Config, findings: "Findings") -> None:
    from cellbridge.data.crew import each, processors
    from cellbridge.data.validation.shard_reading import ReadingShards, SeenCells
    from cellbridge.data.validation.stored import check_store

    def share(job: ReadingShards, count: int) -> Iterator[tuple[int, SeenCells]]:
        workers = config.workers or (processors() if count > 2 else 1)
        with bar("validate", total=job.n_cells, unit="cells") as progress:
            for number, found in each(job, range(count), workers=workers):
                progress.advance(len(found.digests))
                yield number, found

    check_store(config.path, findings, deep=config.deep, max_saturated=config.max_saturated, share=share)


def _heading(config: Config, problems: int, remarks: int) -> str:
    noun = "problem" if problems == 1 else "problems"
    more = f" and {remarks} remark{'' if remarks == 1 else 's'}" if remarks else ""
    return f"{config.path}: {problems or 'no'} {noun}{more}"


def _looked_at(findings: "Findings", *, deep: bool) -> str:
    """Say how much was looked at, and how much was not."""
    seen = findings.looked_at
    unit = "cells" if "cells" in seen else "images"
    whole, total = seen.get(f"{unit}_read_whole", 0), seen.get(unit, 0)
    shown = {name: count for name, count in seen.items() if name not in ("bytes", f"{unit}_read_whole")}
    parts = [f"{count} {name if count != 1 else name.removesuffix('s')}" for name, count in shown.items()]
    size = f" of {seen['bytes'] / 1e6:.1f} MB" if seen.get("bytes") else ""
    left = "" if deep else f"; the pixels of {total - whole} {unit}{size} were not read (--deep reads them)"
    return f"looked at {', '.join(parts) or 'nothing'}{left or f', {whole} {unit} read whole'}"
