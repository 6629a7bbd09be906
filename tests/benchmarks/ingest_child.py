"""A child process of the suite `data`: prepares a plate, and prints its peaks of memory, when all is imported and at the end."""

import json
import sys
from importlib import import_module
from pathlib import Path

import machine
import torch
from painted_plate import CROP_PX

from cellbridge.settings import validate
from cellbridge.stages.prepare import Config, run


def prepare(folder: Path, out: Path, *, workers: int) -> int:
    """Prepare a plate of the suite, and return how many cells it has."""
    values = {
        "manifest": str(folder),
        "crop_px": CROP_PX,
        "size_px": CROP_PX,
        "illumination": "none",
        "workers": workers,
    }
    return int(run(validate(Config, values, source="benchmark"), out=out)["cells"])


def peak_mib() -> float:
    """Return the most memory that this process has held."""
    return machine.peak_gib(torch.device("cpu"))["host"] * 1024


if __name__ == "__main__":
    for name in ("collector", "crew", "cutting", "extraction", "splits", "survey", "writing"):
        import_module(f"cellbridge.data.{name}")
    started_mib = peak_mib()
    cells = prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
    print(json.dumps({"started_mib": started_mib, "peak_mib": peak_mib(), "cells": cells}))
