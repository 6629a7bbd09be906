"""What all tests share: real microscopy where it is at hand, and one thread per xdist worker."""

import os
from pathlib import Path

import pytest

if os.environ.get("PYTEST_XDIST_WORKER"):
    # Read when torch is first imported; workers that each take every core slow one another down.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real microscopy, `../shared/data` or $CELLBRIDGE_REAL_DATA; skips the test where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CELLBRIDGE_REAL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real microscopy at {folder}; set CELLBRIDGE_REAL_DATA to its folder")
    return folder
