"""Nuclei by Cellpose: what is asked of the package, and what becomes of its answer. The network itself is an extra, replaced here."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cellbridge.data import cellpose_nuclei
from cellbridge.data.segmentation import segment
from cellbridge.errors import ConfigError


class Model:
    """Stands for `cellpose.models.CellposeModel`: keeps what it is asked, and answers with labels that have gaps."""

    asked: list[dict[str, Any]]

    def __init__(self, *, gpu: bool, pretrained_model: str):
        Model.asked = [{"gpu": gpu, "pretrained_model": pretrained_model}]

    def eval(self, image: np.ndarray, *, diameter: float, channels: list[int]) -> tuple[np.ndarray, ...]:
        Model.asked.append({"shape": image.shape, "diameter": diameter, "channels": channels})
        labels = np.zeros(image.shape, np.uint16)
        labels[2:6, 8:12], labels[10:14, 2:6] = 9, 4
        return labels, np.zeros(0), np.zeros(0)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package, models = ModuleType("cellpose"), ModuleType("cellpose.models")
    models.CellposeModel = Model  # type: ignore[attr-defined]
    package.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cellpose", package)
    monkeypatch.setitem(sys.modules, "cellpose.models", models)
    cellpose_nuclei._model.cache_clear()
    (tmp_path / "nuclei").write_bytes(b"weights")
    return str(tmp_path / "nuclei")


def test_labels_are_numbered_from_one_in_order_and_cells_grow_from_them(weights: str) -> None:
    image = np.random.default_rng(0).poisson(100, (20, 20)).astype(np.uint16)
    nuclei = cellpose_nuclei.find_nuclei(image, nucleus_px=4.5, weights=weights)
    assert nuclei.dtype == np.int32
    assert [nuclei[3, 9], nuclei[11, 3], nuclei[0, 0], nuclei.max()] == [1, 2, 0, 2]
    assert Model.asked[0] == {"gpu": False, "pretrained_model": weights}
    assert Model.asked[1] == {"shape": (20, 20), "diameter": 4.5, "channels": [0, 0]}
    objects = segment(image, None, nucleus_px=4.5, nuclei=nuclei)
    np.testing.assert_array_equal(objects.nuclei, nuclei)
    np.testing.assert_array_equal(objects.cells[nuclei > 0], nuclei[nuclei > 0])


def test_missing_weights_and_a_missing_package_are_told(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        cellpose_nuclei.find_nuclei(np.zeros((4, 4), np.uint16), nucleus_px=2, weights=weights + "x")
    monkeypatch.setitem(sys.modules, "cellpose", None)
    with pytest.raises(ConfigError, match=r"pip install 'cellbridge\[cellpose\]'"):
        cellpose_nuclei.find_nuclei(np.zeros((4, 4), np.uint16), nucleus_px=2, weights=weights)
