"""`cellbridge export`: whole or not at all, over nothing but its own, inputs untouched, and one line for what cannot be done."""

import hashlib
import json
import sys
from pathlib import Path

import anndata
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "exporting"))
from small_stores import PLATES, write_real, write_translated

from cellbridge import runs
from cellbridge.cli import main
from cellbridge.stages import export

OUT = {"anndata": "cells.h5ad", "ome-zarr": "plates", "profiles": "profiles.parquet"}


def tree(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    write_real(folder / "real.zarr")
    write_translated(folder / "ddib.zarr", targets=("NA",))
    return folder


def call(given: Path, out: Path, to: str, *more: str) -> int:
    return main(["export", str(given / "real.zarr"), "--to", to, "--out", str(out), *more])


@pytest.mark.parametrize("to", OUT)
def test_every_form_leaves_its_inputs_alone_and_one_output(given: Path, tmp_path: Path, to: str, capsys) -> None:
    before = tree(given)
    out = tmp_path / "new" / OUT[to]
    assert call(given, out, to, "--translated", str(given / "ddib.zarr"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["cells"] == 32
    assert said["bytes"] > 0
    assert [path.name for path in out.parent.iterdir()] == [OUT[to]]
    assert tree(given) == before


def test_the_file_says_where_it_comes_from(given: Path, tmp_path: Path) -> None:
    sha256 = runs.fingerprint(given / "real.zarr")
    for to, name in OUT.items():
        assert call(given, tmp_path / name, to) == 0
    from cellbridge.tables import parquet_notes

    said = {
        "anndata": json.loads(anndata.read_h5ad(tmp_path / OUT["anndata"]).uns["cellbridge"]["provenance"]),
        "ome-zarr": json.loads((tmp_path / "plates" / runs.PROVENANCE).read_text()),
        "profiles": json.loads(parquet_notes(tmp_path / OUT["profiles"])["export"]),
    }
    for to, provenance in said.items():
        assert provenance["to"] == to
        assert provenance["inputs"] == {str(given / "real.zarr"): sha256}
    assert runs.verify_directory(tmp_path / "plates") == []


@pytest.mark.parametrize("to", OUT)
def test_what_is_there_stays_and_overwrite_replaces_only_exports(given: Path, tmp_path: Path, to: str, capsys) -> None:
    out = tmp_path / OUT[to]
    assert call(given, out, to) == 0
    first = tree(tmp_path)
    assert call(given, out, to) == 2
    assert "exists already" in capsys.readouterr().err
    assert tree(tmp_path) == first
    assert call(given, out, to, "--translated", str(given / "ddib.zarr"), "--overwrite") == 0
    assert tree(tmp_path) != first


@pytest.mark.parametrize("to", OUT)
def test_overwrite_refuses_what_others_made(given: Path, tmp_path: Path, to: str, capsys) -> None:
    out = tmp_path / OUT[to]
    if to == "ome-zarr":
        assert call(given, out, to, "--set", "fields=well") == 0
        (out / "notes.txt").write_text("mine")
    elif to == "anndata":
        anndata.AnnData(obs=pd.DataFrame(index=["a"])).write_h5ad(out)
    else:
        pd.DataFrame({"a": [1]}).to_parquet(out)
    before = tree(tmp_path)
    assert call(given, out, to, "--overwrite") == 2
    assert "replaces only what export made" in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("to", "module", "part"),
    [
        ("anndata", "anndata_file", "_append_images"),
        ("ome-zarr", "ome_zarr", "_table"),
        ("profiles", "profiles", "well_profiles"),
    ],
)
def test_an_export_that_fails_leaves_nothing(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, module: str, part: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"cellbridge.data.exporting.{module}.{part}", fails)
    assert call(given, tmp_path / OUT[to], to) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "anndata", "--out", "x.parquet"], r"one .h5ad file"),
        (["--to", "profiles", "--out", "x.h5ad"], r"one .parquet file"),
        (["--to", "anndata", "--out", "x.h5ad", "--ngff", "0.4"], "ngff says nothing of an export to anndata"),
        (["--to", "ome-zarr", "--out", "x", "--features", "f.csv"], "features says nothing"),
        (["--to", "ome-zarr", "--out", "x", "--ngff", "0.3"], "ngff"),
        (["--to", "csv", "--out", "x"], "to"),
        (["--to", "profiles", "--out", "x.parquet", "--features", "f.csv"], "f.csv: no such file"),
        (["--to", "anndata", "--out", "real.zarr/x.h5ad"], "lies inside the input"),
        (["--to", "anndata", "--out", "x.h5ad", "--translated", "none.zarr"], "no such store"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(given)
    before = tree(given)
    assert main(["export", "real.zarr", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert tree(given) == before


def test_the_version_may_stand_in_yaml_without_quotes() -> None:
    assert export.Config.model_validate({"store": "s", "to": "ome-zarr", "ngff": 0.4}).ngff == "0.4"


def test_control_cells_set_the_scale_of_nothing_outside_their_plate(given: Path, tmp_path: Path) -> None:
    """Real and translated images of a plate share one window, which its real cells alone decide."""
    assert call(given, tmp_path / "alone", "ome-zarr", "--set", "fields=well") == 0
    more = ["--translated", str(given / "ddib.zarr"), "--set", "fields=well"]
    assert call(given, tmp_path / "both", "ome-zarr", *more) == 0
    for plate in (tmp_path / "alone").glob("*.ome.zarr"):
        windows = set()
        images = [plate / "B/02/0", *(tmp_path / "both" / plate.name / "B/02").glob("[01]")]
        for image in images:
            said = json.loads((image / "zarr.json").read_text())["attributes"]["ome"]["omero"]["channels"]
            windows.add(json.dumps([channel["window"] for channel in said]))
        assert len(images) == 3
        assert len(windows) == 1


def test_names_of_plates_are_kept_whatever_their_folders_are_called(given: Path, tmp_path: Path) -> None:
    assert call(given, tmp_path / "plates", "ome-zarr", "--set", "fields=well") == 0
    folders = sorted(path.name for path in (tmp_path / "plates").glob("*.ome.zarr"))
    assert folders == ["0001053597806.ome.zarr", "HYPERLINK_http_x_y.ome.zarr"]
    assert set(pd.read_parquet(tmp_path / "plates/cells.parquet")["Metadata_Plate"]) == set(PLATES)
