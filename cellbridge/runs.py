"""Run directories: the only place that knows file names, where results came from, and how they are published.

A file or directory appears under its name only when it is whole: it is written beside, synced and renamed. A directory counts
once its `manifest.json`, written last, is there and lists every file with size and sha256.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cellbridge.errors import CheckpointError, ResourceError, RunError

MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
"""Says when, where and by which commit something was made, which is no part of what it is: no manifest lists it."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class RunDir:
    """Where a stage's results lie."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / PROVENANCE

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """Profiler traces of a few training steps."""
        return self.path / "profile"

    @property
    def trackers(self) -> Path:
        """What experiment trackers keep on disk."""
        return self.path / "trackers"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after `step` optimiser steps."""
        return self.checkpoints / f"step-{step:08d}"

    def saved_checkpoints(self) -> list[tuple[int, Path]]:
        """Return (step, directory) of every published checkpoint, oldest first, whether or not it still verifies."""
        matches = ((re.fullmatch(r"step-(\d{8,})", path.name), path) for path in self.checkpoints.glob("step-*"))
        return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def averages(self) -> Path:
        """Snapshots of averages of the weights, which other averages are made of."""
        return self.path / "averages"

    @property
    def model(self) -> Path:
        """A diffusers folder, a peft directory or a classifier, with its manifest."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def require_model(self) -> Path:
        """Return the finished model's directory; raise CheckpointError where training has not ended, or a file was changed since."""
        if not (self.model / MANIFEST).is_file():
            raise CheckpointError(
                f"{self.path}: holds no finished model (no model/{MANIFEST}). Run its training command to the end."
            )
        require_intact(self.model)
        return self.model


def begin(run: RunDir, *, config: str, seed: int | None, inputs: Mapping[str, Path]) -> dict[str, str]:
    """Write the resolved configuration and the provenance of a run, and return the hash of each input.

    The provenance is the command, versions, commit, machine, seed, and the path and hash of every input.
    """
    sums = {name: fingerprint(path) for name, path in inputs.items()}
    packages = (
        "torch",
        "diffusers",
        "peft",
        "accelerate",
        "numpy",
        "zarr",
        "anndata",
        "torch-fidelity",
        "scikit-image",
    )
    write_text(run.config, config)
    write_json(
        run.provenance,
        {
            "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **code_version(),
            "python": platform.python_version(),
            "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
            "packages": {name: metadata.version(name) for name in packages},
            "seed": seed,
            "inputs": {name: {"path": str(inputs[name]), "sha256": sums[name]} for name in inputs},
        },
    )
    return sums


def code_version() -> dict[str, str | None]:
    """Return the version of cellbridge, and the commit it runs from where that is known."""
    return {"cellbridge": metadata.version("cellbridge"), "commit": _commit()}


def fingerprint(path: Path) -> str:
    """Return the sha256 of a file, or of a published directory's manifest (which holds the sums of all its files)."""
    if path.is_dir():
        for candidate in (path / MANIFEST, path / "model" / MANIFEST, path / "zarr.json"):
            if candidate.is_file():
                return file_sha256(candidate)
        raise RunError(f"{path}: is neither a finished model nor a store (no {MANIFEST} and no zarr.json).")
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either the old one or the new one, whatever happens."""
    with publish_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_taken(path: Path) -> bool:
    """Say whether a name holds any file; empty directories, as a workflow engine makes ahead of a job, leave it free."""
    return any(p.is_file() for p in path.rglob("*")) if path.is_dir() else path.exists()


@contextmanager
def publish_file(target: Path) -> Iterator[Path]:
    """Yield the name of a sibling to write, and publish it as `target` when the block ends without an error.

    Raises
    ------
    ResourceError : the disk is full (path and bytes are named).
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with _disk_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def publish_directory(target: Path, *, manifest: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yield an empty sibling directory to write into, and publish it as `target` when the block ends without an error.

    On an error nothing appears under `target` and the sibling is removed. An existing `target` is replaced only by the rename.

    Parameters
    ----------
    manifest : entries that stand in `manifest.json` beside `files`; None writes no manifest (for formats with their own).

    Raises
    ------
    ResourceError : the disk is full (path and bytes are named).
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    discarded = target.with_name(f".{target.name}.{os.getpid()}.old")
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            if manifest is not None:
                write_json(temporary / MANIFEST, {**manifest, "files": _file_sums(temporary)})
            _sync_tree(temporary)
            if target.exists():
                os.replace(target, discarded)
            os.replace(temporary, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _remove(discarded)


@contextmanager
def exclusive(run: RunDir) -> Iterator[None]:
    """Hold a run directory for this process, and clear what a killed process left half written in it.

    The lock is the kernel's (`flock`), so that it ends with its process however that ends.

    Raises
    ------
    RunError : another process holds the directory.
    """
    missing = [path for path in (run.path, *run.path.parents) if not path.exists()]
    run.path.mkdir(parents=True, exist_ok=True)
    with _removed_if_unused(run, missing), run.lock.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise RunError(
                f"{run.path}: in use by {stream.read().strip() or 'another process'}. Wait for it to end, stop it, or give another --out."
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        for directory in (run.path, run.checkpoints, run.averages, run.profile, run.samples):
            remove_leftovers(directory)
        yield


@contextmanager
def publish_model(run: RunDir, *, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """Publish `model/` as `publish_directory` does, holding the run, so that the same command started again clears nothing away.

    Raises
    ------
    RunError : another process holds the directory.
    """
    with exclusive(run), publish_directory(run.model, manifest=manifest) as directory:
        yield directory


@contextmanager
def _removed_if_unused(run: RunDir, made: Sequence[Path]) -> Iterator[None]:
    """Where the block ends with an error and left nothing but the lock in a directory made for it, remove that directory again."""
    try:
        yield
    except BaseException:
        if made and [path.name for path in run.path.iterdir()] == [run.lock.name]:
            run.lock.unlink()
            with suppress(OSError):
                for path in made:
                    path.rmdir()
        raise


def remove_leftovers(directory: Path) -> None:
    """Remove what killed writers left in `directory`; a result that was moved aside and not yet replaced goes back."""
    for path in directory.glob(".*"):
        match = re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", path.name)
        if match is None:
            continue
        target = directory / match[1]
        if match[2] == "old" and not target.exists():
            os.replace(path, target)
        else:
            _remove(path)


def discard_directory(directory: Path) -> None:
    """Delete a published directory so that, killed half way, it is never seen as an incomplete one."""
    aside = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    os.replace(directory, aside)
    _remove(aside)


def _remove(path: Path) -> None:
    """Delete a file, a tree, or a link to either but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return a published directory's manifest; raise CheckpointError where it is absent or not JSON."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: incomplete (no {MANIFEST}); it was never published.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}/{MANIFEST}: cannot be read ({error}).") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        raise CheckpointError(f"{directory}/{MANIFEST}: is no manifest (no list of files with bytes and sha256).")
    return manifest


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("bytes"), int) and isinstance(value.get("sha256"), str)


def require_intact(directory: Path) -> None:
    """Raise CheckpointError where a file of a published directory is missing or was changed; a file too many does no harm."""
    problems = verify_directory(directory, unlisted=False)
    if problems:
        raise CheckpointError(
            f"{problems[0]}. The model is damaged: restore it from a copy, or train it again in another --out."
        )


def verify_directory(directory: Path, *, unlisted: bool = True) -> list[str]:
    """Return what is wrong with a published directory: one line per missing, changed or (if asked for) unlisted file."""
    listed = read_manifest(directory)["files"]
    present = _file_sums(directory)
    problems = [f"{directory / name}: listed in {MANIFEST} but missing" for name in listed if name not in present]
    for name, entry in present.items():
        if name not in listed:
            problems += [f"{directory / name}: not listed in {MANIFEST}"] if unlisted else []
        elif entry["bytes"] != listed[name]["bytes"]:
            problems.append(f"{directory / name}: {entry['bytes']} bytes, {MANIFEST} says {listed[name]['bytes']}")
        elif entry["sha256"] != listed[name]["sha256"]:
            problems.append(f"{directory / name}: sha256 differs from {MANIFEST}")
    return problems


def _file_sums(directory: Path) -> dict[str, dict[str, Any]]:
    apart = (directory / MANIFEST, directory / PROVENANCE)
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p not in apart)
    return {p.relative_to(directory).as_posix(): {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files}


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        short = error.errno is None and "requested and" in str(error)  # numpy's tofile says no more of a short write
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not short:
            raise
        parent = next(p for p in (target, *target.parents) if p.exists())
        free = shutil.disk_usage(parent).free
        raise ResourceError(
            f"{target}: cannot be written ({error.strerror or error}; {free} bytes free). Free some space and run the same command again."
        ) from error


def _commit() -> str | None:
    here = str(Path(__file__).parent)
    command = ["git", "--no-optional-locks", "-C", here, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
