"""What is particular to one format, and what is wrong with it: file, row or place, and remedy in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.manifest import Manifest
from cellbridge.data.planes import Plane, split_index
from cellbridge.data.readers.load_data import read_load_data
from cellbridge.data.readers.ome_zarr import read_ome_zarr
from cellbridge.data.readers.pattern import read_pattern
from cellbridge.data.readers.plane_table import read_plane_table
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.samplesheet import read_samplesheet
from cellbridge.errors import ManifestError


def manifest(**keys: Any) -> Manifest:
    given = {"name": "p", "licence": "x", "citation": "x", "channels": ["DNA", "ER"], "nucleus_channel": "DNA"}
    return Manifest.model_validate({**given, **keys})


@pytest.mark.parametrize(
    ("text", "path", "index"),
    [
        ("images.zarr/images[0,1]", "images.zarr/images", (0, 1)),
        ("a b.tif[2]", "a b.tif", (2,)),
        ("x.npy[ 3 , 4 ]", "x.npy", (3, 4)),
        ("plain.tif", "plain.tif", ()),
        ("odd[1].tif", "odd[1].tif", ()),
        ("a[-1]", "a[-1]", ()),
        ("[1]", "[1]", ()),
    ],
)
def test_an_index_stands_in_brackets_at_the_end(text: str, path: str, index: tuple[int, ...]) -> None:
    assert split_index(text) == (path, index)
    if index:
        assert str(Plane(Path(path), index)) == text.replace(" ,", ",").replace(", ", ",").replace("[ ", "[").replace(
            " ]", "]"
        )


# --- load_data


def load_data(folder: Path, text: str, **keys: Any) -> list[ImageRow]:
    (folder / "load_data.csv").write_text(text)
    return read_load_data(manifest(kind="load_data", tables=["load_data.csv"], **keys), folder)


def test_an_absolute_path_without_a_prefix_says_so(tmp_path: Path) -> None:
    text = (
        "FileName_DNA,PathName_DNA,FileName_ER,Metadata_Plate,Metadata_Well\nd.tif,/home/ubuntu/images/,e.tif,p,A01\n"
    )
    with pytest.raises(
        ManifestError, match=r"row 2 FileName_DNA: .*absolute path outside the root .* no prefix stands for it"
    ):
        load_data(tmp_path, text)
    (row,) = load_data(tmp_path, text, prefixes={"/home/ubuntu/": "."})
    assert row.images["DNA"] == Plane(tmp_path / "images/d.tif")


def test_constants_stand_for_columns_that_a_table_does_not_have(tmp_path: Path) -> None:
    text = "FileName_DNA,FileName_ER\nd.tif,e.tif\n"
    with pytest.raises(ManifestError, match=r'no column "Metadata_Plate"\. Add it, or give it under constants'):
        load_data(tmp_path, text)
    (row,) = load_data(tmp_path, text, constants={"Metadata_Plate": "p", "Metadata_Well": "b3"})
    assert (row.plate, row.well, row.site) == ("p", "B03", "1")


@pytest.mark.parametrize(
    ("frame", "series", "message"), [("x", "0", 'row 2 Frame_DNA: "x" is no page'), ("0", "1", "Series_DNA: series")]
)
def test_a_frame_is_a_page_and_series_are_refused(frame: str, series: str, message: str, tmp_path: Path) -> None:
    header = "FileName_DNA,Frame_DNA,Series_DNA,FileName_ER,Metadata_Plate,Metadata_Well\n"
    with pytest.raises(ManifestError) as caught:
        load_data(tmp_path, f"{header}d.tif,{frame},{series},e.tif,p,A01\n")
    assert message in str(caught.value)


# --- one row per plane


def planes(folder: Path, rows: str, **keys: Any) -> list[ImageRow]:
    (folder / "t.csv").write_text("path,plate,well,site,channel,compound,focus\n" + rows)
    return read_plane_table(manifest(kind="planes", tables=["t.csv"], **keys), folder)


def test_columns_that_differ_between_planes_describe_the_plane_and_are_left_away(tmp_path: Path) -> None:
    (row,) = planes(tmp_path, "d.tif,p,A01,1,DNA,taxol,3\ne.tif,p,A01,1,ER,taxol,4\n")
    assert row.metadata["Metadata_compound"] == "taxol"
    assert "Metadata_focus" not in row.metadata


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("d,p,A01,1,DNA,x,1\ne,p,A01,1,ER,y,1\n", 'row 3: Metadata_compound is "y", but "x" in t.csv row 2'),
        (
            "d,p,A01,1,DNA,x,1\ne,p,a1,1,DNA,x,1\n",
            "row 3: channel DNA of plate p well A01 site 1 is listed already, in t.csv row 2",
        ),
        ("d,p,A01,1,DAPI,x,1\n", 'row 2: channel "DAPI" is not known. Name it under channel_names'),
        ("d,p,A01,1,DNA,x,1\n", "1 of 1 fields lack a channel: plate p well A01 site 1: no ER"),
        ("d,p,Q25,1,DNA,x,1\n", "row 2 well: well"),
        (",p,A01,1,DNA,x,1\n", "row 2 path: no path is given"),
    ],
)
def test_planes_that_do_not_make_fields_are_refused(rows: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        planes(tmp_path, rows)
    assert message in str(caught.value)


def test_of_many_fields_without_a_channel_five_are_shown_and_all_counted(tmp_path: Path) -> None:
    rows = "".join(f"{site}.tif,p,A01,{site},DNA,x,1\n" for site in range(1, 9))
    with pytest.raises(ManifestError, match=r"8 of 8 fields lack a channel: .*site 5: no ER \| … 3 more"):
        planes(tmp_path, rows)


def test_a_samplesheet_without_wells_has_rows_and_columns(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("channel,path,plate,site,row,col\nDNA,d.tif,p,1,2,3\nER,e.tif,p,1,2,3\n")
    described = manifest(kind="samplesheet", tables=["s.csv"])
    (row,) = read_samplesheet(described, tmp_path)
    assert row.well == "B03"
    (tmp_path / "s.csv").write_text("channel,path,plate,site,row,col\nDNA,d.tif,p,1,2,x\n")
    with pytest.raises(ManifestError, match=r's\.csv row 2 row, col: row "2" and column "x" are no well'):
        read_samplesheet(described, tmp_path)


# --- names


def named(folder: Path, names: list[str], **keys: Any) -> list[ImageRow]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    given: dict[str, Any] = {
        "pattern": r"(?P<plate>\w+)/(?P<well>[A-P]\d\d)_s(?P<site>\d+)_(?P<channel>\w+)\.tif",
        "folders": ["."],
    }
    return read_pattern(manifest(kind="pattern", **{**given, **keys}), folder)


def test_names_that_the_pattern_does_not_match_are_refused_unless_ignored(tmp_path: Path) -> None:
    names = ["p/A01_s01_DNA.tif", "p/A01_s01_ER.tif", "p/overview.tif", "p/notes.txt", ".fetch/p/A02_s1_DNA.tif"]
    with pytest.raises(ManifestError, match=r"1 images below .* do not match the pattern: p/overview\.tif"):
        named(tmp_path, names)
    (row,) = named(tmp_path, names, ignore=r".*/overview\.tif")
    assert (row.plate, row.well, row.site) == ("p", "A01", "1")


def test_a_copy_that_was_not_finished_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"A01_s2_DNA\.tif\.incomplete: a copy that was not finished"):
        named(tmp_path, ["p/A01_s1_DNA.tif", "p/A01_s1_ER.tif", "p/A01_s2_DNA.tif.incomplete"])


def test_parts_of_a_plates_name_are_joined_and_other_groups_become_columns(tmp_path: Path) -> None:
    pattern = r"(?P<plate_1>[\w-]+)/Plate(?P<plate_2>\d)/(?P<day>\d)_(?P<well>\w+)_(?P<channel>\w+)\.tif"
    names = ["HUVEC-01/Plate2/7_B03_DNA.tif", "HUVEC-01/Plate2/7_B03_ER.tif"]
    (row,) = named(tmp_path, names, pattern=pattern)
    assert (row.plate, row.well, row.metadata["Metadata_day"]) == ("HUVEC-01_2", "B03", "7")
    many = pattern.replace("plate_1", "plate_10")
    assert named(tmp_path, names, pattern=many)[0].plate == "2_HUVEC-01"


def test_what_fetch_has_not_finished_is_no_image(tmp_path: Path) -> None:
    names = ["p/A01_s1_DNA.tif", "p/A01_s1_ER.tif", ".fetch/partial/A01_s2_DNA.tif", ".fetch/unpacked/p/A01_s2_ER.tif"]
    assert len(named(tmp_path, names, folders=["."])) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folders": ["gone"]}, '"gone" is no folder'),
        ({"folders": ["../x"]}, "outside the root"),
        ({"ignore": ".*"}, "no image below"),
    ],
)
def test_folders_without_images_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        named(tmp_path, ["p/A01_s1_DNA.tif"], **keys)
    assert message in str(caught.value)


# --- OME-Zarr


def ome_plate(folder: Path, change: dict[str, Any]) -> list[ImageRow]:
    """A plate of one field in version 0.5; `change` replaces parts of its metadata."""
    import zarr

    well = {"path": "B/3", "rowIndex": 1, "columnIndex": 0, **change.get("well", {})}
    plate = {"rows": [{"name": "A"}, {"name": "B"}], "columns": [{"name": "3"}], "wells": [well]}
    axes = [{"name": name} for name in change.get("axes", "czyx")]
    labels = [{"label": label} for label in change.get("labels", ("DNA", "ER"))]
    groups = {
        "": {"version": change.get("version", "0.5"), "plate": plate},
        "B/3": {"version": "0.5", "well": {"images": [{"path": "0"}]}},
        "B/3/0": {
            "version": "0.5",
            "multiscales": [{"axes": axes, "datasets": [{"path": "s0"}]}],
            "omero": {"channels": labels},
        },
    }
    for place, ome in groups.items():
        (folder / "P7.zarr" / place).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})
        (folder / "P7.zarr" / place / "zarr.json").write_text(text)
    shape = change.get("shape", (2, 1, 4, 4))
    zarr.create_array(str(folder / "P7.zarr/B/3/0/s0"), shape=shape, dtype="uint16", chunks=shape)
    keys = change.get("keys", {})
    return read_ome_zarr(manifest(kind="ome_zarr", folders=["P7.zarr"], **keys), folder)


def test_a_field_is_found_by_its_paths_and_channels_by_their_labels(tmp_path: Path) -> None:
    (row,) = ome_plate(tmp_path, {"labels": ("ER", "DNA")})
    assert (row.plate, row.well, row.site) == ("P7", "B03", "0")
    assert row.images["DNA"] == Plane(tmp_path / "P7.zarr/B/3/0/s0", (1, 0))


def test_channels_without_known_labels_are_told_by_number_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r'channel "Cy5" is not known\. Name it under channel_names'):
        ome_plate(tmp_path / "a", {"labels": ("Cy5", "FITC")})
    (row,) = ome_plate(tmp_path / "b", {"labels": ("Cy5", "FITC"), "keys": {"channel_names": {"0": "ER", "1": "DNA"}}})
    assert row.images["DNA"].index == (1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.3"}, "version 0.3, expected 0.4 or 0.5"),
        ({"well": {"rowIndex": 0}}, 'well "B/3" lies at row A, column 3 by its indices'),
        ({"well": {"columnIndex": 9}}, "no rowIndex and columnIndex"),
        ({"well": {"path": "../../x"}}, "by its indices"),
        ({"shape": (2, 5, 4, 4)}, "5 focal planes, expected one"),
        ({"axes": "zyxc"}, "axes zyxc"),
    ],
)
def test_a_plate_that_does_not_hold_together_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        ome_plate(tmp_path, change)
    assert message in str(caught.value)


def test_a_folder_that_is_no_plate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(ManifestError, match="no OME-Zarr group"):
        read_ome_zarr(manifest(kind="ome_zarr", folders=["x"]), tmp_path)


@pytest.mark.parametrize("version", ["v04", "v05"])
def test_the_specifications_own_examples_are_understood(version: str, real_data: Path, tmp_path: Path) -> None:
    """Plate example 2 is sparse: wells C5 and D7 of 96."""
    import zarr

    def describe(folder: Path, attributes: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        whole = attributes if version == "v04" else {"attributes": {"ome": attributes}}
        (folder / (".zattrs" if version == "v04" else "zarr.json")).write_text(json.dumps(whole))

    example = json.loads((real_data / "tables/ngff_examples" / version / "plate_example_2.json").read_text())
    describe(tmp_path / "p.zarr", {"plate": example} if version == "v04" else example["ome"])
    labels = {"omero": {"channels": [{"label": "DNA"}, {"label": "ER"}]}}
    for well in ("C/5", "D/7"):
        describe(tmp_path / "p.zarr" / well, {"well": {"images": [{"path": "0", "acquisition": 1}]}})
        scales = [{"axes": [{"name": name} for name in "cyx"], "datasets": [{"path": "s0"}]}]
        describe(tmp_path / "p.zarr" / well / "0", {"multiscales": scales, **labels})
        zarr.create_array(str(tmp_path / "p.zarr" / well / "0/s0"), shape=(2, 4, 4), dtype="uint8", chunks=(1, 4, 4))
    rows = read_ome_zarr(manifest(kind="ome_zarr", folders=["p.zarr"], plate_format=96), tmp_path)
    assert [(row.plate, row.well) for row in rows] == [("sparse test", "C05"), ("sparse test", "D07")]


# --- more than one table


def test_the_same_field_in_two_tables_is_refused(tmp_path: Path) -> None:
    text = "FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well,Metadata_Compound,Metadata_pert_type\nd,e,p,A01,DMSO,negcon\n"
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=r"b\.csv row 2: .* is listed already, in a\.csv row 2"):
        read_catalogue(manifest(kind="load_data", tables=["a.csv", "b.csv"]), tmp_path)


def test_a_page_is_read_as_the_plane_that_it_is(tmp_path: Path) -> None:
    from cellbridge.data.images import read_plane

    stack = np.random.default_rng(0).integers(0, 99, (3, 6, 5)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    for page in range(3):
        np.testing.assert_array_equal(read_plane(Plane(tmp_path / "x.tif", (page,)), full_scale=65535), stack[page])
