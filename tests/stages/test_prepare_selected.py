"""Some plates and wells of a data set: what was fetched of it is validated and prepared, and nothing else is asked for."""

import json
from pathlib import Path

import pytest
import test_prepare as plates

from cellbridge.cli import main
from cellbridge.data.store import open_store


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that lies elsewhere, and the manifest that says where."""
    source = plates.write_plate(tmp_path_factory.mktemp("source"))
    folder = tmp_path_factory.mktemp("my_set")
    fetch = {"url": str(source), "files": [{"path": "load_data.csv"}, {"path": "maps/"}], "images": True}
    plates.write_manifest(folder, fetch=fetch)
    return folder


@pytest.fixture(scope="module")
def tables(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tables are, and the images of one well."""
    root = tmp_path_factory.mktemp("tables")
    assert main(["fetch", str(manifest), "--root", str(root), "--wells", "P2/B02"]) == 0
    return root


def test_a_selection_is_fetched_validated_and_prepared_by_the_same_words(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, store = tmp_path / "data", tmp_path / "s.zarr"
    chosen = ["--root", str(root), "--plates", "P2", "--wells", "B02", "--wells", "P2/c4"]
    assert main(["fetch", str(manifest), *chosen]) == 0
    assert len(list((root / "images").rglob("*.tif"))) == 2 * len(plates.CHANNELS)
    assert main(["validate", str(manifest), "--deep", "--root", str(root)]) == 2
    capsys.readouterr()
    assert main(["validate", str(manifest), "--deep", "--json", *chosen]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["looked_at"]["fields"], set(summary["kinds"])) == (2, {"blank_control", "crlf"})
    settings = ["--set", "crop_px=24", "--set", "size_px=24"]
    assert main(["prepare", "--manifest", str(manifest), *chosen, *settings, "--out", str(store)]) == 0
    obs = open_store(store).obs
    assert set(zip(obs["Metadata_Plate"], obs["Metadata_Well"], strict=True)) == {("P2", "B02"), ("P2", "C04")}


def test_treated_wells_alone_are_refused_with_what_to_add(
    manifest: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--root", str(tables), "--plates", "P2", "--wells", "C04"]
    assert main(["prepare", "--manifest", str(manifest), *chosen, "--out", str(tmp_path / "s.zarr")]) == 2
    assert "Add control wells of the plate to --wells" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["--plates", "P3"], '--plates "P3": the tables have no such plate. Did you mean "P2"?'),
        (["--wells", "H12"], '--wells "H12": the tables have no image of it on the plates asked for.'),
        (["--plates", "P2", "--wells", "P1/B02"], '--wells "P1/B02": the tables have no image of it'),
        (["--wells", "ZZ1"], '--wells: well "ZZ1" is outside a 384-well plate (A01–P24). Give wells as B03'),
    ],
)
@pytest.mark.parametrize("command", ["fetch", "validate", "prepare", "inspect"])
def test_what_is_not_there_is_told_by_every_command(
    command: str,
    chosen: list[str],
    message: str,
    manifest: Path,
    tables: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--manifest", str(manifest)] if command == "prepare" else [str(manifest)]
    out = ["--out", str(tmp_path / "out")] if command in ("prepare", "inspect") else []
    assert main([command, *given, "--root", str(tables), *chosen, *out]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
