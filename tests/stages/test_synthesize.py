"""`synthesize` writes what a laboratory has, twice the same, and refuses to overwrite anything else."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from cellbridge import settings
from cellbridge.data.manifest import read_manifest
from cellbridge.errors import ConditionError, ConfigError, RunError
from cellbridge.runs import verify_directory
from cellbridge.stages.synthesize import Config, run

SMALL: dict[str, Any] = {
    "plates": ("0001053597806", "P2"),
    "control_wells": 2,
    "conditions": ("NA@1", "None@0.5", "null@1"),
    "compounds": {"NA": "taxol", "None": "latrunculin", "null": "rotenone"},
    "wells": (1,),
    "sites": 1,
    "field_px": 96,
    "cells_per_field": 5,
}


def rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter=delimiter))


def image(folder: Path, row: dict[str, str], channel: str) -> np.ndarray:
    return tifffile.imread(folder / row[f"PathName_{channel}"] / row[f"FileName_{channel}"])


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "plates"
    run(Config(**SMALL), out=out)
    return out


def test_same_seed_gives_identical_files_and_another_seed_other_images(plates: Path, tmp_path: Path) -> None:
    run(Config(**SMALL), out=tmp_path / "again")
    run(Config(**SMALL, seed=1), out=tmp_path / "other")
    own = {"manifest.json", "provenance.json"}
    files = [p.relative_to(plates) for p in sorted(plates.rglob("*")) if p.is_file() and p.name not in own]
    assert files
    for file in files:
        assert (plates / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    images = sorted(p.read_bytes() for p in plates.rglob("*.tif"))
    assert images != sorted(p.read_bytes() for p in (tmp_path / "other").rglob("*.tif"))


def test_fields_are_five_uint16_images_listed_in_load_data(plates: Path) -> None:
    table = rows(plates / "load_data.csv")
    assert len(table) == 2 * (2 + 3)
    assert {row["Metadata_Plate"] for row in table} == {"0001053597806", "P2"}
    for row in table:
        for channel in ("DNA", "ER", "RNA", "AGP", "Mito"):
            field = image(plates, row, channel)
            assert field.shape == (96, 96)
            assert field.dtype == np.uint16


def test_platemap_has_the_communitys_columns_and_strings_survive(plates: Path) -> None:
    folder = plates / "metadata" / "platemaps" / "2024_01_15_Synthetic"
    barcodes = rows(folder / "barcode_platemap.csv")
    assert [row["Assay_Plate_Barcode"] for row in barcodes] == ["0001053597806", "P2"]
    wells = rows(folder / "platemap" / f"{barcodes[0]['Plate_Map_Name']}.txt", "\t")
    assert sorted(row["compound"] for row in wells) == ["DMSO", "DMSO", "NA", "None", "null"]
    assert {row["well_position"] for row in wells} == {row["Metadata_Well"] for row in rows(plates / "load_data.csv")}
    assert {row["pert_type"] for row in wells if row["compound"] == "DMSO"} == {"negcon"}


def test_manifests_are_read_by_prepare_and_nothing_is_left_unlisted(plates: Path) -> None:
    for folder in (plates, plates / "truth"):
        manifest, root = read_manifest(folder)
        assert root == folder
        assert manifest.stains == ("DNA", "ER", "RNA", "AGP", "Mito")
    assert verify_directory(plates) == []
    assert yaml.safe_load((plates / "truth" / "manifest.yaml").read_text())["objects"] == "cells.csv"


def test_truth_is_of_control_wells_of_test_plates_and_differs_from_the_source_only_where_a_cell_changed(
    plates: Path,
) -> None:
    sources = {(r["Metadata_Plate"], r["Metadata_Well"]): r for r in rows(plates / "load_data.csv")}
    truth = rows(plates / "truth" / "load_data.csv")
    cells = rows(plates / "truth" / "cells.csv")
    assert len(truth) == 2 * 3 * 2
    assert {row["Metadata_Plate"] for row in truth} == {"P2"}
    y, x = np.mgrid[:96, :96]
    for row in truth:
        source = image(plates, sources[row["Metadata_Plate"], row["Metadata_Well"]], "DNA").astype(int)
        changed = image(plates / "truth", row, "DNA").astype(int) != source
        key = ("Metadata_Well", "Metadata_Compound")
        near = np.zeros((96, 96), bool)
        for cell in cells:
            counterfactual = row["Metadata_Origin"] == "counterfactual"
            moved = cell["Truth_Responder"] == "1" or cell["Truth_Lost"] == "1"
            if all(cell[k] == row[k] for k in key) and (moved or not counterfactual):
                near |= np.hypot(x - float(cell["x"]), y - float(cell["y"])) < 26
        assert not changed[~near].any()


def test_lost_cells_are_absent_from_the_counterfactual_and_present_in_responding(tmp_path: Path) -> None:
    run(Config(**{**SMALL, "control_wells": 12, "plates": ("P2",)}), out=tmp_path / "plates")
    folder = tmp_path / "plates" / "truth"
    fields = {
        (r["Metadata_Well"], r["Metadata_Compound"], r["Metadata_Origin"]): image(folder, r, "DNA").astype(float)
        for r in rows(folder / "load_data.csv")
    }
    lost = [c for c in rows(folder / "cells.csv") if c["Truth_Lost"] == "1"]
    assert lost
    for cell in lost:
        at = (round(float(cell["y"])), round(float(cell["x"])))
        place = (cell["Metadata_Well"], cell["Metadata_Compound"])
        assert fields[(*place, "counterfactual")][at] < 1500 < fields[(*place, "responding")][at]


def test_summary_reports_a_floor_below_every_other_predictor(plates: Path) -> None:
    summary = json.loads((plates / "summary.json").read_text())
    assert set(summary["truth"]) == {"NA@1", "None@0.5", "null@1"}
    for entry in summary["truth"].values():
        assert entry["cells"] > 0
        for channel, floor in entry["rms_counts"]["bayes"].items():
            assert floor <= entry["rms_counts"]["copy"][channel]
            assert floor <= entry["rms_counts"]["respond"][channel]


def test_existing_folder_is_replaced_only_by_the_same_study(plates: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="holds no synthetic plates"):
        run(Config(**SMALL), out=foreign)
    with pytest.raises(RunError, match="another configuration"):
        run(Config(**SMALL, seed=5), out=plates)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_unknown_condition_ends_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConditionError, match='Did you mean "taxol"'):
        run(Config(conditions=("taxl@1",)), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"test_plates": ["P9"]}, "is not one of the plates"),
        ({"conditions": ["taxol@1", "taxol@1.0"]}, "lists the same name twice"),
        ({"conditions": ["DMSO@1"]}, "is the control"),
        ({"plates": ["../up"]}, "cannot be a folder"),
        ({"control_wells": 400}, "do not fit"),
    ],
)
def test_configuration_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.validate(Config, values, source="test")
