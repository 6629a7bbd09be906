"""What all tests share: real microscopy where it is at hand, one thread per xdist worker, and how the work is shared out."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("PYTEST_XDIST_WORKER"):
    # Read when torch is first imported; workers that each take every core slow one another down.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `--dist loadfile`, share out units of work that cost about as much."""
    from work_units import WorkUnits

    return WorkUnits(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_finish() -> None:
    """Keep the libraries, millions of objects that stay, out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real microscopy, `../shared/data` or $CELLBRIDGE_REAL_DATA; skips the test where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CELLBRIDGE_REAL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real microscopy at {folder}; set CELLBRIDGE_REAL_DATA to its folder")
    return folder
