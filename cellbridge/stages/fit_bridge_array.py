"""`cellbridge fit-bridge --source-array`: the Schrödinger bridge between two unpaired samples of vectors."""

from pathlib import Path
from typing import Any

from pydantic import Field

from cellbridge.config import BridgeConfig
from cellbridge.errors import RunError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.runs import RunDir, begin, is_taken, write_json
from cellbridge.settings import Section, Seed, dump


class Config(Section):
    """Settings of `fit-bridge --source-array`."""

    source_array: Path
    """A .npy array (n, d) of the source, such as the control's embeddings."""
    target_array: Path
    """A .npy array (m, d) of the target: the same columns, other cells."""
    reg: float = Field(gt=0.0)
    """Squared volatility of the reference process, in squared units of the data: how much of the row need not be kept."""
    bridge: BridgeConfig = BridgeConfig()
    seed: Seed = 0


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Fit the bridge, and write settings, provenance, what was found, and the model.

    Raises
    ------
    CouplingError : arrays that are missing, empty, not finite, or do not fit together.
    NumericalError : a side that does not vary, or a loss that is not finite.
    RunError : `out` is taken, or is not apart from the inputs.
    """
    inputs = {"source_array": config.source_array, "target_array": config.target_array}
    require_directory(out)
    require_apart(out, inputs.values())
    if is_taken(out):
        raise RunError(f"{out}: exists already. Remove it, or choose another --out.")

    from cellbridge.vector_files import read_vectors, save_vector_bridge
    from cellbridge.vectors import fit_vectors

    source, target = (read_vectors(path) for path in inputs.values())
    bridge = fit_vectors(source, target, reg=config.reg, seed=config.seed, config=config.bridge)
    run_dir = RunDir(out)
    begin(run_dir, config=dump(config), seed=config.seed, inputs=inputs)
    write_json(run_dir.metrics, {"solver": bridge.solver, **bridge.facts})
    save_vector_bridge(run_dir, bridge)
    return {
        "run": str(out),
        "solver": bridge.solver,
        "components": bridge.facts["components"],
        "processor seconds": bridge.facts["processor_seconds"],
    }
