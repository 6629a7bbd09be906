"""Real microscopy through the readers, as it lies in the folders that it came in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.images import read_plane
from cellbridge.data.manifest import Manifest, read_manifest
from cellbridge.data.readers.rows import ImageRow

SHIPPED = Path(__file__).parents[2] / "data_manifests"
FIVE = ["DNA", "ER", "RNA", "AGP", "Mito"]
RAB30 = {
    "kind": "planes",
    "tables": ["metadata.csv"],
    "columns": {"channel": "channel_name", "Metadata_Compound": "condition"},
    "only": ["Metadata_dataset=cpg0016-jump"],
    "channels": FIVE,
}
PEDIATRIC = {
    "kind": "pattern",
    "folders": ["pediatric_BR00143976"],
    "pattern": r"pediatric_(?P<plate>BR\d+)/r(?P<row>\d\d)c(?P<column>\d\d)f(?P<site>\d\d)p01-ch(?P<channel>\d)sk1fk1fl1\.tiff",
    "ignore": ".*Outlines.*",
    "channels": [*FIVE, "Brightfield"],
    "leave_out": ["Brightfield"],
    "channel_names": {"1": "Brightfield", "2": "ER", "3": "AGP", "4": "Mito", "5": "DNA", "6": "RNA"},
    "constants": {"Metadata_Compound": "untreated"},
}
NF1 = {
    "kind": "pattern",
    "folders": ["images"],
    "pattern": r"images/(?P<well>[A-H]\d)_01_(?P<channel>\d)_(?P<site>\d)_(?:DAPI|GFP|RFP)_001\.tif",
    "channels": ["DNA", "ER", "Actin"],
    "channel_names": {"1": "DNA", "2": "ER", "3": "Actin"},
    "constants": {"Metadata_Plate": "Plate_2"},
    "metadata_tables": [
        {
            "table": "platemap_NF1_plate2.csv",
            "keys": {"Metadata_Well": "well_position"},
            "columns": ["gene_name", "genotype"],
        }
    ],
    "columns": {"Metadata_Compound": "genotype"},
    "control": "Metadata_genotype=WT",
    "plate_format": 96,
}
EXAMPLE_HUMAN = {
    "kind": "load_data",
    "tables": ["Image.csv"],
    "prefixes": {"/usr/local/src/ExampleHuman/images": "."},
    "channels": ["DNA", "PH3", "cellbody"],
    "constants": {"Metadata_Plate": "AS_09125_050116030001", "Metadata_Well": "D03", "Metadata_Compound": "unknown"},
    "bits": 8,
}


def rows_of(keys: dict[str, Any], root: Path) -> tuple[list[ImageRow], Manifest]:
    manifest = Manifest.model_validate({"name": "p", "licence": "x", "citation": "x", "nucleus_channel": "DNA", **keys})
    return read_catalogue(manifest, root)[0], manifest


def field(row: ImageRow, manifest: Manifest) -> np.ndarray:
    channels = manifest.channels_to_read
    return np.stack(
        [read_plane(row.images[c], full_scale=manifest.full_scale, md5=row.digests.get(c, "")) for c in channels]
    )


def test_jump_planes_of_a_zarr_array_are_named_by_their_table(real_data: Path) -> None:
    import zarr

    rows, manifest = rows_of(RAB30, real_data / "cellpainting_5ch")
    assert [(row.plate, row.well) for row in rows] == [("BR00123947", "G01"), ("CP-CC9-R1-05", "L07")]
    whole = np.asarray(
        zarr.open_array(str(real_data / "cellpainting_5ch/jump_rab30_mini/images.zarr/images"), mode="r")[...]
    )
    order = [["AGP", "DNA", "ER", "Mito", "RNA"].index(channel) for channel in manifest.channels_to_read]
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(field(row, manifest), whole[number][order])


def test_the_pediatric_field_has_five_stains_and_brightfield_is_left_out(real_data: Path) -> None:
    (row,), manifest = rows_of(PEDIATRIC, real_data / "cellpainting_5ch")
    assert (row.plate, row.well, row.site) == ("BR00143976", "C03", "3")
    assert list(row.images) == FIVE
    counts = field(row, manifest)
    assert counts.shape == (5, 1080, 1080)
    dna = tifffile.imread(real_data / "cellpainting_5ch/pediatric_BR00143976/r03c03f03p01-ch5sk1fk1fl1.tiff")
    np.testing.assert_array_equal(counts[0], dna)


def test_nf1_fields_have_their_genotypes_and_the_wild_type_is_the_control(real_data: Path) -> None:
    rows, manifest = rows_of(NF1, real_data / "nf1_schwann_3ch")
    found = [
        (row.well, row.site, row.metadata["Metadata_Compound"], row.metadata["Metadata_pert_type"]) for row in rows
    ]
    assert found == [("B07", "3", "Null", "trt"), ("D06", "2", "WT", "negcon"), ("D07", "1", "Null", "trt")]
    assert {field(row, manifest).shape for row in rows} == {(3, 904, 1224)}


def test_cellprofilers_own_table_is_read_and_its_md5_sums_hold(real_data: Path) -> None:
    (row,), manifest = rows_of(EXAMPLE_HUMAN, real_data / "examplehuman_cellprofiler")
    assert set(row.digests) == {"DNA", "PH3", "cellbody"}
    assert field(row, manifest).shape == (3, 512, 512)


def test_bbbc013_is_read_by_the_manifest_that_is_shipped(real_data: Path) -> None:
    manifest, root = read_manifest(SHIPPED / "bbbc013", root=real_data / "bbbc013_fields")
    rows, control = read_catalogue(manifest, root)
    assert (len(rows), control) == (46, "vehicle")
    assert {field(row, manifest).shape for row in rows[:3]} == {(2, 640, 640)}


def test_bbbc022_names_are_understood_by_the_expression_that_is_shipped(real_data: Path) -> None:
    """Only the DNA images of one well are at hand, without their plate map."""
    import re

    manifest, _ = read_manifest(SHIPPED / "bbbc022", root=real_data)
    names = [f"BBBC022_v1_images_20585w1/{file.name}" for file in (real_data / "bbbc022_dna").glob("*_w1*.tif")]
    matches = [re.fullmatch(manifest.pattern or "", name) for name in names]
    groups = [match.groupdict() for match in matches if match is not None]
    assert sorted(group["site"] for group in groups) == ["1", "2", "3"]
    assert {(group["plate"], group["well"], group["channel"]) for group in groups} == {("20585", "A01", "1")}


@pytest.mark.parametrize(
    "keys", [RAB30, PEDIATRIC, NF1, EXAMPLE_HUMAN], ids=["RAB30", "pediatric", "NF1", "ExampleHuman"]
)
def test_the_descriptions_read_back_from_yaml(keys: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    given = {"name": "p", "licence": "x", "citation": "x", "nucleus_channel": "DNA", **keys}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(given))
    assert read_manifest(tmp_path)[0].channels == tuple(keys["channels"])
