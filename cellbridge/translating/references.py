"""What the x_T of a translation is held against, as a store beside it."""

from pathlib import Path
from typing import Any

from cellbridge import assembly
from cellbridge.assembly import Model
from cellbridge.config import SolverConfig
from cellbridge.data.store import Store
from cellbridge.inverting import Inverter, write_references
from cellbridge.translating.cells import Machine, Rows


def write_noise_references(
    out: Path,
    store: Store,
    rows: Rows,
    model: Model,
    machine: Machine,
    *,
    solver: SolverConfig,
    n: int,
    attributes: dict[str, Any],
    overwrite: bool,
) -> None:
    """Invert n of the cells, and what they are held against, under the source's model; all processes share the work."""
    inverter = Inverter(
        model,
        assembly.build_inversion(solver),
        machine.device,
        machine.dtype,
        purpose="translate",
        seed=machine.seed,
        batch_size=machine.batch_size,
    )
    write_references(
        out,
        store,
        rows,
        inverter,
        sampler=assembly.build_sampler(solver),
        doubled=assembly.build_inversion(solver.model_copy(update={"steps": 2 * solver.steps})),
        attributes=attributes | {"x_T_references": n},
        n=n,
        overwrite=overwrite,
    )
