"""A small data set to fetch: its manifest, and a call of `cellbridge fetch` that waits for nobody."""

import random
from pathlib import Path
from typing import Any

import yaml

from cellbridge.stages.fetch import Config, run

MANIFEST = {
    "name": "small",
    "licence": "CC0-1.0",
    "citation": "none",
    "kind": "load_data",
    "tables": ["load_data.csv"],
    "channels": ["DNA", "ER", "Brightfield"],
    "leave_out": ["Brightfield"],
    "nucleus_channel": "DNA",
}


def noise(n_bytes: int, seed: int = 0) -> bytes:
    """Return bytes that differ everywhere."""
    return random.Random(seed).randbytes(n_bytes)


def write_manifest(folder: Path, fetch: dict[str, Any], **changes: Any) -> Path:
    """Write a manifest whose section `fetch` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "manifest.yaml"
    file.write_text(yaml.safe_dump({**MANIFEST, "root": "data", "fetch": fetch, **changes}))
    return file


def fetch(manifest: Path, **settings: Any) -> dict[str, Any]:
    """Run the stage with short waits."""
    return run(Config(**{"manifest": manifest, "first_wait_s": 0.001, "timeout_s": 10.0, "workers": 2, **settings}))


def visible(root: Path) -> dict[str, bytes]:
    """Return every file that a user sees beneath a root, by its path."""
    files = (path for path in root.rglob("*") if path.is_file() and ".fetch" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def partials(root: Path) -> list[int]:
    """Return the sizes of the files that are not yet whole."""
    return sorted(path.stat().st_size for path in (root / ".fetch" / "partial").glob("*.part"))
