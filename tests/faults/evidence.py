"""What a run left behind, read without cellbridge's own readers."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file

TENSORS = ("weights", "ema", "optimizer")


def checkpoints(run: Path) -> list[int]:
    """Return the steps of the published checkpoints, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def sums(run: Path, step: int) -> dict[str, str]:
    """Return the sha256 of every tensor of a checkpoint's weights, EMA and optimiser."""
    found = {}
    for name in TENSORS:
        for key, tensor in load_file(checkpoint(run, step) / f"{name}.safetensors").items():
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            found[f"{name}/{key}"] = hashlib.sha256(content).hexdigest()
    return found


def events(run: Path) -> list[dict[str, Any]]:
    """Return the lines of events.jsonl, which must be strict JSON: no NaN, no Infinity, nothing cut short."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} in {run}/events.jsonl")

    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def started_at(run: Path) -> int:
    """Return the step at which training last began."""
    return [event["step"] for event in events(run) if event["event"] == "started"][-1]


def losses(run: Path) -> dict[int, str]:
    """Return step → loss, as the text that stands in events.jsonl; a step that stands there twice is an error."""
    found: dict[int, str] = {}
    for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        loss = re.search(r'"step": (\d+),.*"loss": ([^,}]+)', line)
        if loss is not None:
            assert int(loss[1]) not in found
            found[int(loss[1])] = loss[2]
    return found


def temporaries(run: Path) -> list[Path]:
    """Return what an unfinished write left: files and directories whose names begin with a dot, but for the lock."""
    return [path for path in run.rglob(".*") if path.name != ".lock"]


def tree(folder: Path) -> dict[str, str]:
    """Return path → sha256 of every file but a run's lock, and path → "" of every directory."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def sign_again(directory: Path) -> None:
    """Make a changed directory agree with its manifest again, so that only a look at the contents can find the change."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / "manifest.json"
    }
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
