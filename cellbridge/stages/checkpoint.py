"""`cellbridge checkpoint list|verify RUN`: what a run could be resumed from, and whether it is whole."""

from pathlib import Path
from typing import Any, Literal

from cellbridge.errors import CheckpointError
from cellbridge.runs import MANIFEST, RunDir, read_manifest, verify_directory
from cellbridge.settings import Section


class Config(Section):
    """Settings of `checkpoint`."""

    action: Literal["list", "verify"]
    run: Path
    """A run directory, or one checkpoint or model."""


def run(config: Config, *, out: Path | None = None) -> dict[str, Any]:
    """List what is published under a run, or hold every byte of it against its manifest; `out` is not used.

    Raises
    ------
    CheckpointError : there is no checkpoint, or (verify) a file is missing, changed or not listed: each is named.
    """
    directories = _published(config.run)
    if not directories:
        raise CheckpointError(f"no checkpoint in {config.run}. Give the run directory of a training command.")
    entries: dict[str, Any] = {}
    problems: list[str] = []
    for directory in directories:
        name = directory.relative_to(config.run).as_posix() if directory != config.run else directory.name
        found = _check(directory) if config.action == "verify" else []
        problems += found
        entries[name] = "; ".join(found) if found else _describe(directory, verified=config.action == "verify")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{'; '.join(problem.rstrip('.') for problem in problems[:5])}{more}. Resume from a checkpoint that verifies, or train again."
        )
    return entries


def _published(path: Path) -> list[Path]:
    if (path / MANIFEST).is_file():
        return [path]
    run_dir = RunDir(path)
    model = [run_dir.model] if run_dir.model.is_dir() else []
    return [directory for _, directory in run_dir.saved_checkpoints()] + model


def _check(directory: Path) -> list[str]:
    try:
        return verify_directory(directory)
    except CheckpointError as error:
        return [str(error)]


def _describe(directory: Path, *, verified: bool) -> str:
    try:
        manifest = read_manifest(directory)
    except CheckpointError as error:
        return str(error)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    step = f"step {manifest['step']}, " if "step" in manifest else ""
    return f"{manifest.get('kind', 'model')}, {step}{size} bytes{', verified' if verified else ''}"
