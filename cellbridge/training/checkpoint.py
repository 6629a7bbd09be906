"""Checkpoints: safetensors and JSON, published whole or not at all, verified before they are trusted or replace another.

step-00000500/
  weights.safetensors     what is trained, and the buffers
  ema.safetensors         its moving average
  optimizer.safetensors   exp_avg, exp_avg_sq and step of each parameter
  window.safetensors      losses and monitors since the last log step
  averages.safetensors    power-function averages, where they are tracked
  method.safetensors      what the loss remembers, where it does
  state.json              step, training settings, identity of data and base
  manifest.json           sha256 of the files above; written last
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cellbridge.config import TrainingConfig
from cellbridge.errors import CheckpointError, RunError
from cellbridge.runs import MANIFEST, RunDir, discard_directory, publish_directory, verify_directory, write_json
from cellbridge.training.trackers import flattened

Resume = Literal["auto", "never"] | Path

_HARMLESS = (
    "accumulation",
    "log_every",
    "checkpoint_every",
    "keep_last",
    "async_checkpoints",
    "sample_every",
    "compile",
    "channels_last",
    "gradient_checkpointing",
    "profile",
    "trackers",
)


@dataclass(frozen=True)
class Snapshot:
    """Everything that the next step depends on."""

    step: int
    settings: dict[str, Any]
    """The training settings that decide the weights (see `binding_settings`)."""
    identity: dict[str, str]
    """Name → hash of what is trained on: data, base, stage settings."""
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    window: dict[str, Tensor]
    averages: dict[str, Tensor] = field(default_factory=dict)
    """Power-function averages, as `sigma_rel/name`."""
    method: dict[str, Tensor] = field(default_factory=dict)
    """What the loss remembers from one step to the next; of most losses nothing, and there is no such file."""


TENSORS = tuple(field.name for field in fields(Snapshot) if field.name not in ("step", "settings", "identity"))
"""The fields that hold tensors; each is a file."""

_OPTIONAL = {field.name for field in fields(Snapshot) if field.default_factory is not MISSING}
"""Of them, those that have no file where they are empty."""


def binding_settings(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that decide the weights; those that only say when to log, save or compile may change on a resume.

    With a constant learning rate `steps` may change too: the run is extended.
    """
    free = (*_HARMLESS, "steps") if config.decay == "constant" else _HARMLESS
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key not in free}
    tracked = settings.pop("power_ema")["sigma_rel"]
    return settings | ({"power_ema.sigma_rel": tracked} if tracked else {})


def save(run: RunDir, snapshot: Snapshot, *, keep_last: int) -> Path:
    """Publish a checkpoint, verify it from disk, and only then delete the oldest beyond `keep_last`.

    Raises
    ------
    CheckpointError : what was written does not read back; the earlier checkpoints stay.
    ResourceError : the disk is full; the earlier checkpoints stay and no temporary file does.
    """
    target = run.checkpoint(snapshot.step)
    state = {"step": snapshot.step, "settings": snapshot.settings, "identity": snapshot.identity}
    with publish_directory(target, manifest={"kind": "checkpoint", "step": snapshot.step}) as directory:
        for name in _files(snapshot):
            tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(snapshot, name).items()}
            with write_errors(target):
                save_file(tensors, directory / f"{name}.safetensors")
        write_json(directory / "state.json", state)
    problems = verify_directory(target)
    if problems:
        raise CheckpointError(f"{problems[0]}. The disk may be failing; earlier checkpoints were kept.")
    for _, path in [entry for entry in run.saved_checkpoints() if entry[0] <= snapshot.step][:-keep_last]:
        discard_directory(path)
    return target


def _files(snapshot: Snapshot) -> list[str]:
    return [name for name in TENSORS if name not in _OPTIONAL or getattr(snapshot, name)]


def load(directory: Path) -> Snapshot:
    """Read a checkpoint that verifies.

    Raises
    ------
    CheckpointError : it is incomplete, damaged, or no checkpoint.
    """
    problems = verify_directory(directory)
    if problems:
        raise CheckpointError(f"{problems[0]}. The checkpoint is damaged.")
    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        there = [name for name in TENSORS if name not in _OPTIONAL or (directory / f"{name}.safetensors").is_file()]
        tensors = {name: load_file(directory / f"{name}.safetensors") for name in there}
        return Snapshot(step=state["step"], settings=state["settings"], identity=state["identity"], **tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: is no training checkpoint ({error}).") from None


@dataclass(frozen=True)
class Resumption:
    """Where training begins: from a checkpoint, or (None) from the start."""

    path: Path | None = None
    snapshot: Snapshot | None = None
    warnings: tuple[str, ...] = ()


def newest(run: RunDir) -> Resumption:
    """Read the newest checkpoint that verifies, with a warning for each damaged one passed over.

    Raises
    ------
    CheckpointError : there are checkpoints and none verifies; training never starts over by itself.
    """
    damage: list[str] = []
    for _, path in reversed(run.saved_checkpoints()):
        try:
            snapshot = load(path)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        return Resumption(path, snapshot, tuple(f"{text} Resuming from {path} instead." for text in damage))
    if damage:
        raise CheckpointError(
            f"no checkpoint in {run.checkpoints} verifies (newest: {damage[0]}) Restore one, or give another --out to start over."
        )
    return Resumption()


def as_resume(text: str) -> Resume:
    """Read what `--resume` was given: auto, never, or a checkpoint's path."""
    words: dict[str, Resume] = {"auto": "auto", "never": "never"}
    return words.get(text) or Path(text)


def resolve(run: RunDir, resume: Resume) -> Resumption:
    """Find what training continues from; nothing is created.

    Parameters
    ----------
    resume : "auto" takes the run's newest that verifies; "never" demands a run without checkpoints; a path names a
        checkpoint, or a run whose newest is taken. A run that went on from elsewhere continues from its own newest, so that
        the same command again loses nothing; a path inside the run goes back to it.

    Raises
    ------
    CheckpointError : the path holds no checkpoint, or none that verifies.
    RunError : "never", and the run holds checkpoints, which would be overwritten.
    """
    if resume == "auto":
        return newest(run)
    if resume == "never":
        saved = run.saved_checkpoints()
        if saved:
            raise RunError(
                f"{run.path}: holds checkpoints up to step {saved[-1][0]}, and resume is never. Delete them, or give another --out."
            )
        return Resumption()
    path = Path(resume)
    if run.saved_checkpoints() and not path.resolve().is_relative_to(run.path.resolve()):
        own = newest(run)
        warning = f"{run.path}: has checkpoints of its own, and continues from {own.path}, not from {path}."
        return replace(own, warnings=(*own.warnings, warning))
    if (path / MANIFEST).is_file():
        return Resumption(path, load(path))
    found = newest(RunDir(path))
    if found.path is None:
        raise CheckpointError(f"no checkpoint in {path}. Give a checkpoint directory (…/step-…) or a run directory.")
    return found


def differences(snapshot: Snapshot, *, settings: Mapping[str, Any], identity: Mapping[str, str]) -> list[str]:
    """Return each of the data, base and settings that a checkpoint was made with and that is another one now.

    Settings that were binding once and are free now do not count.
    """
    then = {key: value for key, value in snapshot.settings.items() if key not in _HARMLESS}
    saved, now = {**snapshot.identity, **then}, {**identity, **settings}
    changed = [key for key in {**saved, **now} if saved.get(key) != now.get(key)]
    parts = [part for key in changed for part in _parts(key, saved.get(key), now.get(key))]
    return [f"{key}: {_short(then)} there, {_short(value)} now" for key, then, value in parts]


def _parts(key: str, then: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Return (key, then, now) of what differs; of two sections of settings, which are held as JSON, each setting that does."""
    if not all(isinstance(value, str) and value.startswith("{") for value in (then, now)):
        return [(key, then, now)]
    old, new = (flattened(json.loads(value), f"{key}.") for value in (then, now))
    return [(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{40,}", text) else text


@contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Turn safetensors' own error into the OSError that it was, which `publish_directory` and `publish_file` explain."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(target)) from error
