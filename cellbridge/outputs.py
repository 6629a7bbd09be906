"""Where a result may go: never over, around or into what another result is made of."""

import os
from collections.abc import Iterable
from pathlib import Path

from cellbridge.errors import CheckpointError, RunError
from cellbridge.runs import MANIFEST, read_manifest


def require_directory(directory: Path, *, option: str = "--out") -> None:
    """Check that files can be written into a directory, which may be still to be made; nothing is created.

    Parameters
    ----------
    option : what names it on the command line.

    Raises
    ------
    RunError : it, or a directory around it, is a file, a finished result (a store, a model, synthetic plates), or may not be written to.
    """
    path = directory.resolve()
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise RunError(f"{directory}: {place} is a file. Choose another {option}.")
        if _is_published(place):
            raise RunError(
                f"{directory}: {place} is a finished result, which nothing may be added to. Choose another {option}."
            )
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(
            f"{directory}: {nearest} may not be written to. Change its permissions, or choose another {option}."
        )


def require_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raise RunError where `out` is one of the inputs, contains it, or lies inside it."""
    place = out.resolve()
    for given in inputs:
        other = given.resolve()
        if place == other or place in other.parents or other in place.parents:
            relation = "is" if place == other else "contains" if place in other.parents else "lies inside"
            raise RunError(f"{out}: {relation} the input {given}. Choose another --out.")


def _is_published(directory: Path) -> bool:
    if (directory / "zarr.json").is_file():
        return True
    try:
        return (directory / MANIFEST).is_file() and bool(read_manifest(directory))
    except CheckpointError:
        return False
