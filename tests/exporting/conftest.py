"""The stores that all tests of exporting read; nothing may change them."""

from pathlib import Path

import pytest
from small_stores import write_real, write_translated

from cellbridge.data.exporting.cells import Cells, gather_cells
from cellbridge.data.store import open_store


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of real.zarr, ddib.zarr and bridge.zarr."""
    folder = tmp_path_factory.mktemp("stores")
    write_real(folder / "real.zarr")
    write_translated(folder / "ddib.zarr")
    write_translated(folder / "bridge.zarr", model="bridge", targets=("NA",), seed=2)
    return folder


@pytest.fixture(scope="session")
def cells(stores: Path) -> Cells:
    """Return the real cells, and those of both models."""
    return gather_cells([open_store(stores / f"{name}.zarr") for name in ("real", "ddib", "bridge")])
