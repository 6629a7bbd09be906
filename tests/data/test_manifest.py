"""Descriptions of data sets, and paths that stay beneath their root."""

import json
from pathlib import Path

import pytest
import yaml

from cellbridge.data.manifest import Manifest, dump_manifest, manifest_schema, read_manifest, resolve_path
from cellbridge.errors import ManifestError

SHIPPED = Path(__file__).parents[2] / "data_manifests"
SMALL = {
    "name": "p",
    "licence": "CC0-1.0",
    "citation": "none",
    "kind": "load_data",
    "tables": ["load_data.csv"],
    "channels": ["DNA", "Brightfield", "ER"],
    "nucleus_channel": "DNA",
}


def write(folder: Path, **changes: object) -> Path:
    file = folder / "manifest.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    return file


@pytest.mark.parametrize("name", sorted(file.parent.name for file in SHIPPED.glob("*/manifest.yaml")))
def test_every_shipped_manifest_is_valid_and_has_licence_and_citation(name: str) -> None:
    manifest, _ = read_manifest(SHIPPED / name)
    assert manifest.licence
    assert manifest.citation


def test_the_shipped_schema_is_the_one_of_the_model() -> None:
    assert json.loads((SHIPPED / "manifest.schema.json").read_text(encoding="utf-8")) == manifest_schema()


def test_every_key_stands_in_the_column_dictionary() -> None:
    readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert [key for key in Manifest.model_fields if f"`{key}`" not in readme] == []


def test_a_dumped_manifest_reads_back_equal(tmp_path: Path) -> None:
    file = write(tmp_path, columns={"Metadata_Compound": "x"}, pixel_um=0.65)
    manifest, _ = read_manifest(file)
    file.write_text(dump_manifest(manifest))
    assert read_manifest(file)[0] == manifest


def test_a_control_that_is_written_out_stays_so(tmp_path: Path) -> None:
    for changes in ({}, {"control": "Metadata_pert_type=negcon"}):
        manifest, _ = read_manifest(write(tmp_path, **changes))
        (tmp_path / "again.yaml").write_text(dump_manifest(manifest))
        assert read_manifest(tmp_path / "again.yaml")[0].says_control is manifest.says_control is bool(changes)


def test_channels_are_left_out_by_name_and_keep_their_order(tmp_path: Path) -> None:
    manifest, root = read_manifest(write(tmp_path, leave_out=["Brightfield"]))
    assert manifest.stains == ("DNA", "ER")
    assert root == tmp_path


def test_a_channel_that_only_segmentation_needs_is_read_but_not_stored(tmp_path: Path) -> None:
    manifest, _ = read_manifest(write(tmp_path, leave_out=["DNA", "Brightfield"]))
    assert manifest.stains == ("ER",)
    assert manifest.channels_to_read == ("DNA", "ER")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chanels": ["DNA"]}, 'unknown key "chanels". Did you mean "channels"'),
        ({"nucleus_channel": "Hoechst"}, 'nucleus_channel "Hoechst" is not one of the channels'),
        ({"nucleus_channel": None}, "nucleus_channel is missing"),
        ({"leave_out": ["BF"]}, 'leave_out "BF" is not one of the channels'),
        ({"channels": ["DNA", "DNA"]}, "listed twice"),
        ({"tables": []}, "no table is listed"),
        ({"kind": "hcs"}, "kind"),
        ({"control": "DMSO"}, "control"),
        ({"only": ["B03"]}, "only"),
        ({"constants": {"Plate": "p"}}, "constants"),
        ({"channel_names": {"1": "Hoechst"}}, 'channel_names "Hoechst" is not one of the channels'),
        ({"kind": "pattern", "folders": ["x"]}, "give both or neither"),
        ({"kind": "pattern", "folders": ["x"], "pattern": "("}, "is no regular expression"),
        ({"kind": "ome_zarr"}, "folders is missing"),
        ({"kind": "benchmark_crops"}, "give both or neither"),
        ({"metadata_tables": [{"table": "x.csv"}]}, "metadata_tables.0.keys"),
        ({"metadata_tables": [{"table": "x.csv", "keys": {"a": "b"}, "column": ["c"]}]}, 'Did you mean "columns"'),
        ({"plate_format": 100}, "plate_format"),
        ({"bits": 32}, "bits"),
    ],
)
def test_a_wrong_manifest_is_refused_by_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(write(tmp_path, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / "manifest.yaml"
    file.write_text(f"name: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(ManifestError, match=r"manifest\.yaml: not plain YAML") as caught:
        read_manifest(file)
    assert "<unicode string>" not in str(caught.value)
    assert not canary.exists()


def test_a_table_may_lie_beside_the_manifest_but_not_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "data").mkdir()
    manifest, root = read_manifest(write(tmp_path / "set"), root=tmp_path / "data")
    assert manifest.locate("manifest:wells.csv", root, where="t") == tmp_path / "set/wells.csv"
    assert manifest.locate("wells.csv", root, where="t") == tmp_path / "data/wells.csv"
    for name in ("manifest:../x.csv", "../x.csv", "manifest:/etc/passwd"):
        with pytest.raises(ManifestError, match="outside the root"):
            manifest.locate(name, root, where="t")


def test_a_missing_manifest_or_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match="is no folder"):
        read_manifest(write(tmp_path, root="gone"))


@pytest.mark.parametrize(
    "text",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "images/../../etc/passwd",
        "../data-of-others/x.tif",
        "\\\\?\\C:\\x",
        "..\\x",
        "https://host/x.tif",
        "s3://bucket/../../etc/passwd",
        "",
        "a\x00b",
    ],
)
def test_a_path_that_leaves_the_root_is_refused(text: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with pytest.raises(ManifestError, match=r"t\.csv row 2"):
        resolve_path(text, root, where="t.csv row 2", prefixes={"s3://bucket/": "images"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("images/x.tif", "images/x.tif"),
        ("./a/../x.tif", "x.tif"),
        ("s3://bucket/x.tif", "x.tif"),
        ("s3://bucket/plate 1/x.tif", "one/x.tif"),
        ("/home/lab/x.tif", "lab/x.tif"),
    ],
)
def test_a_path_beneath_the_root_or_under_a_mapped_prefix_is_found(text: str, expected: str, tmp_path: Path) -> None:
    prefixes = {"s3://bucket/": ".", "s3://bucket/plate 1/": "one", "/home/lab": "lab"}
    assert resolve_path(text, tmp_path, where="t", prefixes=prefixes) == tmp_path / expected
    assert resolve_path(str(tmp_path / "x.tif"), tmp_path, where="t") == tmp_path / "x.tif"
