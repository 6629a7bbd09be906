"""A child process of the suite `data`: prepares a plate, and prints its peak of memory."""

import json
import sys
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


if __name__ == "__main__":
    cells = prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
    print(json.dumps({"peak_mib": machine.peak_gib(torch.device("cpu"))["host"] * 1024, "cells": cells}))
