"""Where a translation goes: the store and what lies beside it, never over or into anything else. Nothing here imports torch."""

from pathlib import Path

from cellbridge.config import prior_run
from cellbridge.data.store import describe
from cellbridge.errors import StoreError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.runs import is_taken
from cellbridge.translating.settings import Config

_OWN = {"share_clipped", "x_T_references", "trajectories"}
"""Attributes of which every store of `translate` has one."""


def references(out: Path) -> Path:
    """Return where the noise that x_T is held against goes."""
    return out.with_name(f"{out.stem}_x_T.zarr")


def trajectories(out: Path) -> Path:
    """Return where the frames of trajectories go."""
    return out.with_name(f"{out.stem}_trajectories.zarr")


def pictures(out: Path) -> tuple[Path, Path]:
    """Return where the pictures of trajectories go: the moving one and the strip."""
    store = trajectories(out)
    return store.with_suffix(".gif"), store.with_suffix(".png")


def check_places(config: Config, out: Path) -> None:
    """Check that all of a translation can be written, before any work.

    Raises
    ------
    StoreError : a name is taken, and not by what `translate` may replace. RunError : `out` is not apart from the inputs.
    """
    prior = prior_run(config.x_T)
    models = [*config.adapters, *config.bridge, *config.solver.guides.values()]
    models += [path for path in (config.base, config.baseline, prior) if path is not None]
    require_apart(out, (config.store, *models))
    require_directory(out.parent)
    stores = [out, *([references(out)] if config.x_T_references else [])]
    if config.trajectories:
        stores.append(trajectories(out))
        for picture in pictures(out):
            _check_picture(picture, overwrite=config.overwrite)
    for path in stores:
        _check_store(path, overwrite=config.overwrite)


def _check_store(out: Path, *, overwrite: bool) -> None:
    if not is_taken(out):
        return
    if not overwrite:
        raise StoreError(f"{out}: exists already. Remove it, choose another name, or set overwrite=true.")
    try:
        replaceable = not _OWN.isdisjoint(describe(out).attributes)
    except StoreError:
        replaceable = False
    if not replaceable:
        raise StoreError(
            f"{out}: is not a store that translate made, and overwrite=true replaces nothing else. Remove it, or choose another name."
        )


def _check_picture(path: Path, *, overwrite: bool) -> None:
    if is_taken(path) and not (overwrite and path.is_file()):
        raise StoreError(
            f"{path}: exists already. Remove it, choose another name, or set overwrite=true for a picture."
        )
