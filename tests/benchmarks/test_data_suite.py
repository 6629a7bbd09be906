"""The suite `data` at its smallest size: its structure and what it compares are judged, its speeds are not."""

import pytest
import torch
from data import PARTS, SMALLEST, measure

CPU = torch.device("cpu")


def _row(part, words):
    return next(line for line in part["rows"] if words in line["claim"])


@pytest.mark.slow
def test_script_and_prepare_store_the_same_cells_and_loaders_give_the_same_batches():
    found = measure(["ingest", "loader"], size=SMALLEST, device=CPU)["parts"]
    assert _row(found["ingest"], "identical crops")["value"] == 1.0
    assert _row(found["ingest"], "ingest of")["goal"] == "≥ 1.5"
    assert _row(found["loader"], "bit for bit")["value"] == 1.0
    assert {_row(found["loader"], place)["goal"] for place in (", memory", ", files")} == {"≥ 0.9"}
    for part in found.values():
        for line in part["rows"]:
            assert set(line) == {"claim", "value", "interval", "unit", "goal", "met"}


@pytest.mark.slow
def test_two_processes_store_what_one_does_and_children_tell_their_peaks():
    found = measure(["processes", "memory"], size=SMALLEST, device=CPU)["parts"]
    assert _row(found["processes"], "same store").get("met", True)
    assert _row(found["memory"], "peak of preparing 10 fields")["value"] > 0
    assert list(PARTS) == ["ingest", "processes", "loader", "memory"]
