"""The suite `bridge`: plans between pairs whose Schrödinger bridge is known, beside torchcfm's SF2M and SB-CFM and LightSB.

    cellbridge benchmark bridge [--parts gaussian,fields] [--quick] [--out DIR]

| part | what | goal |
|---|---|---|
| gaussian, mixture, curved | conditional BW²-UVP of the neural and the mixture solver, d = 2, 16, 64, reg = 0.1, 1, 10, three seeds | below SF2M where that is a point above the floor, else no worse than by a standard error |
| gaussian | above the sampling floor | neural ≤ 1.0 (1.5 at reg = 10), mixture ≤ 2 |
| mixture | the mixture solver less LightSB | ≤ 0.5 |
| all | conditional-variance ratio | within 0.9 to 1.1, at d = 64 within 0.8 to 1.25 |
| fields | a convolutional network on 5 × 16 × 16 at reg = 1 | UVP of conditional mean and of marginal ≤ 2.5 |
| coupling | a coupling of images beside torchcfm's | ≥ 5 times as fast |

Every fit has 20 processor seconds (fields 40) on one thread. With --out each measurement is kept in DIR/cells, seed by seed, and the same command
goes on where it was stopped; parts can be run apart into the same DIR. The whole takes some two and a half processor hours.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import bridge_fields
import parts as suite_parts
import torch
from bridge_cells import SOLVERS, Cell, measured
from claims import Row, not_measured, row
from coupling_part import coupling

from cellbridge.runtime import pick_device

KINDS = ("gaussian", "mixture", "curved")
PEERS = ("sf2m", "sb_cfm")
_ONE_POINT = 1.0


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Parameters
    ----------
    points : of either side.
    seconds, field_seconds : of a fit, on the processor.
    cells : folder of what is measured already; None keeps nothing.
    """

    dimensions: tuple[int, ...] = (2, 16, 64)
    regs: tuple[float, ...] = (0.1, 1.0, 10.0)
    seeds: int = 3
    points: int = 20_000
    seconds: float = 20.0
    field_points: int = 4000
    field_seconds: float = 40.0
    cells: Path | None = None
    quick: bool = False


FULL = Size()
QUICK = Size(
    dimensions=(2, 16), regs=(1.0,), seeds=1, points=4000, seconds=4.0, field_points=1000, field_seconds=6.0, quick=True
)


def run(
    *, parts: Sequence[str] | None = None, quick: bool = False, device: str = "auto", cells: Path | None = None
) -> dict[str, Any]:
    """Measure the parts asked for (all by default), on one thread.

    Raises
    ------
    ConfigError : there is no such part.
    """
    size = QUICK if quick else FULL
    size = Size(**{**size.__dict__, "cells": cells})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if cells is not None:
            _seed_by_seed(size, PARTS if parts is None else parts)
        return suite_parts.measured("bridge", PARTS, parts, size=size, device=pick_device(device))
    finally:
        torch.set_num_threads(before)


def _seed_by_seed(size: Size, parts: Sequence[str] | Mapping[str, Any]) -> None:
    """Measure and keep all of the first seed before any of the next, so that what is there after a while is a whole table."""
    for seed in range(size.seeds):
        for kind in (part for part in parts if part in KINDS):
            for cell in _cells_of(kind, size, seed):
                measured(cell, size.cells)
        if "fields" in parts:
            bridge_fields.measured(bridge_fields.FieldCell(seed, size.field_points, size.field_seconds), size.cells)


def _cells_of(kind: str, size: Size, seed: int) -> list[Cell]:
    return [
        Cell(kind, dimension, reg, seed, solver, size.points, size.seconds)
        for dimension in size.dimensions
        for reg in size.regs
        for solver in _solvers()
    ]


def plans(kind: str, size: Size, device: torch.device) -> dict[str, Any]:
    """Measure every solver on the pairs of a kind; all is done on the processor, whatever the device."""
    solvers = _solvers()
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for dimension in size.dimensions:
        for reg in size.regs:
            found = {
                solver: [
                    measured(Cell(kind, dimension, reg, seed, solver, size.points, size.seconds), size.cells)
                    for seed in range(size.seeds)
                ]
                for solver in solvers
            }
            name = f"{kind} d={dimension} reg={reg:g}"
            details[name] = found
            rows += _rows(name, found, kind=kind, dimension=dimension, reg=reg)
    if "sf2m" not in solvers:
        rows.append(
            not_measured("beside SF2M and SB-CFM", "torchcfm is not installed; pip install 'cellbridge[bench]'")
        )
    return {"rows": rows, "cells": details}


def _solvers() -> list[str]:
    try:
        import torchcfm.conditional_flow_matching  # noqa: F401
    except ImportError:
        return [solver for solver in SOLVERS if solver not in PEERS]
    return list(SOLVERS)


def _rows(name: str, found: Mapping[str, list[dict[str, Any]]], *, kind: str, dimension: int, reg: float) -> list[Row]:
    uvp = {solver: [cell["conditional_uvp"] for cell in cells] for solver, cells in found.items()}
    mean = {solver: statistics.fmean(values) for solver, values in uvp.items()}
    rows = []
    for solver in ("neural", "mixture"):
        limit = _limit(uvp[solver], uvp["sf2m"], floor=mean["floor"]) if "sf2m" in uvp else None
        rows.append(row(f"{name} {solver}", mean[solver], interval=_range(uvp[solver]), at_most=limit, unit="%"))
        ratio = statistics.fmean(cell["variance_ratio"] for cell in found[solver])
        wide = dimension >= 64
        spread = max(ratio, 1 / ratio) if wide else 1 + abs(ratio - 1)
        rows.append(row(f"{name} {solver}: variance ratio off 1, as a factor", spread, at_most=1.25 if wide else 1.1))
    rows += [
        row(f"{name} {solver}", mean[solver], interval=_range(uvp[solver]), unit="%")
        for solver in uvp
        if solver not in ("neural", "mixture")
    ]
    if kind == "gaussian":
        allowed = 1.5 if reg >= 10 else 1.0
        rows.append(row(f"{name} neural above the floor", mean["neural"] - mean["floor"], at_most=allowed))
        rows.append(row(f"{name} mixture above the floor", mean["mixture"] - mean["floor"], at_most=2.0))
    if kind == "mixture":
        rows.append(row(f"{name} mixture less LightSB", mean["mixture"] - mean["lightsb"], at_most=0.5))
    return rows


def _limit(ours: Sequence[float], theirs: Sequence[float], *, floor: float) -> float:
    """Return SF2M's mean where it is more than a point above the floor, elsewhere that and a standard error of the difference."""
    mean = statistics.fmean(theirs)
    if mean > floor + _ONE_POINT or len(theirs) < 2:
        return mean
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return mean + statistics.stdev(differences) / len(differences) ** 0.5


def _range(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the least and the greatest of the seeds; three are too few for an interval."""
    return (min(values), max(values)) if len(values) > 1 else None


def fields(size: Size, device: torch.device) -> dict[str, Any]:
    """Measure the convolutional network on pairs of fields."""
    found = [
        bridge_fields.measured(bridge_fields.FieldCell(seed, size.field_points, size.field_seconds), size.cells)
        for seed in range(size.seeds)
    ]
    rows = []
    for key, goal in (("mean_uvp", 2.5), ("mean_floor", None), ("marginal_uvp", 2.5), ("marginal_floor", None)):
        values = [cell[key] for cell in found]
        claim = f"fields 5 × 16 × 16 reg=1: {key.replace('_', ' ')}"
        rows.append(row(claim, statistics.fmean(values), interval=_range(values), at_most=goal, unit="%"))
    return {"rows": rows, "cells": found}


def _coupling(size: Size, device: torch.device) -> dict[str, Any]:
    return coupling(quick=size.quick, device=device)


Part = Callable[[Size, torch.device], dict[str, Any]]
PARTS: Mapping[str, Part] = MappingProxyType(
    {
        **{kind: partial(plans, kind) for kind in KINDS},
        "fields": fields,
        "coupling": _coupling,
    }
)
