"""`cellbridge translate --input-array`: vectors carried over a bridge that `fit-bridge` fitted."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveInt

from cellbridge.errors import RunError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.runs import is_taken
from cellbridge.settings import Section, Seed


def _only_one(value: Any) -> Any:
    """Take the one path out of a list, as the command line gives it."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise ValueError(f"vectors go over one bridge, found {len(value)}; give one")
        return value[0]
    return value


class Config(Section):
    """Settings of `translate --input-array`."""

    bridge: Annotated[Path, BeforeValidator(_only_one)]
    """The run directory of `fit-bridge`."""
    input_array: Path
    """A .npy array (n, d) with the columns that the bridge was fitted to."""
    direction: Literal["forward", "backward"] = "forward"
    """`backward`, from target to source, needs the neural solver."""
    flow: Literal["sde", "ode"] = "sde"
    """`ode`: the probability flow, of right marginal and no conditional spread; needs the neural solver."""
    seed: Seed = 0
    batch_size: PositiveInt = 8192
    overwrite: bool = False
    """Replace the file `out`."""


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Translate each row with a seed of its own, and write a .npy array, float32.

    Raises
    ------
    CheckpointError, ModelError : no finished bridge between vectors, or one that does not know the direction.
    CouplingError : an array that does not fit the bridge.
    RunError : `out` is taken, or is not apart from the inputs.
    """
    require_directory(out.parent)
    require_apart(out, (config.bridge, config.input_array))
    if is_taken(out) and not (config.overwrite and out.is_file()):
        raise RunError(f"{out}: exists already. Remove it, choose another name, or set overwrite=true for a file.")

    from cellbridge.vector_files import load_vector_bridge, read_vectors, write_vectors

    bridge, rows = load_vector_bridge(config.bridge), read_vectors(config.input_array)
    moved = bridge.translate(
        rows, seed=config.seed, direction=config.direction, method=config.flow, batch_size=config.batch_size
    )
    write_vectors(out, moved)
    return {"array": str(out), "rows": len(moved), "solver": bridge.solver}
