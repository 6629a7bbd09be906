"""Tables and manifests that are wrong: refused, in one line with file, row, field and remedy; none is taken silently."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cellbridge.cli import main
from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.concentrations import micromolar
from cellbridge.data.extraction import nucleus_images
from cellbridge.data.images import read_array
from cellbridge.data.manifest import read_manifest
from cellbridge.data.readers.tables import read_table
from cellbridge.data.validation.problems import of_text
from cellbridge.errors import ImageError, ManifestError

KEYS = {"name": "p", "licence": "x", "citation": "x", "channels": ["DNA", "ER"], "nucleus_channel": "DNA"}
PLANES = "path,plate,well,site,channel,compound,concentration\n"
CONTROL = "a.tif,p,A01,1,DNA,DMSO,\nb.tif,p,A01,1,ER,DMSO,\n"


def described(folder: Path, **keys: Any) -> Path:
    (folder / "manifest.yaml").write_text(yaml.safe_dump({**KEYS, **keys}, sort_keys=False))
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_catalogue(*read_manifest(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def told(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    """Return what `validate` finds."""
    code = main(["validate", str(folder), "--json", *options])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["all"]
    assert code == (2 if found else 0)
    return found


# --- the manifest


@pytest.mark.parametrize(
    ("keys", "field", "remedy"),
    [
        ({"tables": ["t.csv", "./t.csv"]}, "tables", "Remove one of the two"),
        ({"columns": {"Compound": "compound"}}, "columns", "Write Metadata_Compound, and after it what the table has"),
        ({"control": "compound=DMSO"}, "control", "Write Metadata_column=value"),
        ({"channel_names": {1: "DNA"}}, "channel_names.1", 'Quote it: "1"'),
        ({"channels": ["DNA", "ER", "ER"]}, "channels", "Remove or rename one of the two"),
        ({"nucleus_channel": "DAPI"}, "nucleus_channel", "Correct it, or add it to them"),
        ({"control_name": "DMSO@1"}, "control_name", 'Write one without "@", such as DMSO'),
        ({"control_name": ""}, "control_name", "Write one"),
        (
            {"platemaps": ["t.csv"], "control": "Metadata_compound=DMSO"},
            "",
            "Copy it there, or correct platemaps in the manifest",
        ),
        ({"pixel_um": "0,65"}, "pixel_um", "Correct it; data_manifests/README.md explains every key"),
        ({"nucleus_chanel": "DNA"}, "nucleus_chanel", 'Did you mean "nucleus_channel"?'),
        ({"tables": ["/elsewhere/t.csv"]}, "tables", "Give it relative to the root, or another root"),
        ({"tables": ["s3://b/t.csv"]}, "tables", "Fetch it, and give its path below the root"),
        ({"tables": ["gone.csv"]}, "", "Copy it there, or correct its name or the root in the manifest"),
        ({"tables": ["."]}, "", "Name the file that is meant"),
        ({"only": ["Metadata_Plat=p"]}, "only", 'Did you mean "Metadata_Plate"?'),
        ({"columns": {"Metadata_Compound": "compund"}}, "columns", 'Did you mean "Metadata_compound"?'),
        ({"control": "Metadata_compund=DMSO"}, "control", 'Did you mean "Metadata_compound"?'),
        ({"control": "Metadata_Site=9", "control_name": "x"}, "control", "Correct `control` in the manifest"),
        (
            {"kind": "pattern", "tables": [], "folders": ["."], "pattern": r"(?P<plate>\w+)/.*"},
            "pattern",
            "give Metadata_Well under constants",
        ),
    ],
)
def test_a_manifest_that_is_wrong_is_told_by_its_key(
    keys: dict[str, Any], field: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(PLANES + CONTROL)
    found = told(described(tmp_path, **{"kind": "planes", "tables": ["t.csv"], **keys}), capsys)
    (problem,) = (one for one in found if one["kind"] != "missing_file")
    assert problem["file"].startswith(str(tmp_path))
    assert problem["field"] == field
    assert remedy in problem["remedy"]


def test_a_manifest_of_another_encoding_says_so(tmp_path: Path) -> None:
    file = described(tmp_path, kind="planes", tables=["t.csv"]) / "manifest.yaml"
    file.write_bytes(file.read_bytes() + "description: 0.5 µm\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"cannot be read .*\. Save it as UTF-8 text\."):
        read_manifest(tmp_path)


# --- tables


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('a,b\n1,x\n\n2,"y\n3,z\n', "t.csv row 4: not a table"),
        ('a,b\n1,"x\ny"\n2\n', "t.csv row 4: 1 fields, the header has 2"),
        ('a,b\n1\n2,"x\ny"\n', "t.csv row 2: 1 fields"),
        ("a|b\n1|x\n", 't.csv row 1: "a|b" is one column. Separate the columns by'),
        ("plate  well\np  A01\n", "is one column"),
        ("a,b\n", "has a header and no row. Export it again with its rows"),
    ],
    ids=["open-quote", "after-two-lines", "before-two-lines", "bars", "blanks", "header-only"],
)
def test_a_row_is_told_by_the_line_that_it_begins_on(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(ManifestError) as caught:
        read_table(tmp_path / "t.csv", root=tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["-0.5", "0,5", "3uM3", "nan", "1e400", "5 pM", "low"])
def test_what_is_no_concentration_is_refused_in_the_tables_own_unit(text: str) -> None:
    with pytest.raises(ManifestError, match=r't\.csv row 2 c: ".*" is no concentration\. .* such as 0\.5 \(in nM\)'):
        micromolar(text, unit="nM", where="t.csv row 2 c")
    assert micromolar("500", unit="nM", where="") == "0.5"
    assert micromolar("500", unit="uM", where="") == "500"
    assert micromolar("500 nM", unit="mM", where="") == "0.5"


FIELDS = "FileName_DNA,FileName_Mito,FileName_ER,Metadata_Plate,Image_Metadata_Plate,Metadata_Well,compound\n"


@pytest.mark.parametrize(
    ("keys", "rows", "message"),
    [
        (
            {"kind": "load_data", "channel_names": {"Mito": "ER"}},
            FIELDS + "a,b,c,p,p,A01,x\n",
            't.csv: columns "FileName_Mito" and "FileName_ER" are both channel "ER". Remove or rename one',
        ),
        (
            {"kind": "load_data"},
            FIELDS + "a,b,c,p,p,A01,x\na,b,c,p,q,A02,x\n",
            't.csv row 3 Image_Metadata_Plate: says "q", and column "Metadata_Plate" "p", but both mean Metadata_Plate.',
        ),
        (
            {"kind": "samplesheet"},
            "channel,path,plate,well,site,row,col\nDNA,a,p,B03,1,2,3\nER,b,p,B03,1,3,3\n",
            "t.csv row 3 row, col: row 3 and column 3 are well C03, well says B03. Correct one of the two.",
        ),
        (
            {"kind": "planes"},
            PLANES + CONTROL + "c,p,A02,1,ER,x,1\n",
            "t.csv row 4: 1 of 2 fields lack a channel: plate p well A02 site 1: no DNA. Add the images",
        ),
        ({"kind": "planes"}, PLANES + "a,,A01,1,DNA,x,\n", "t.csv row 2 plate: the plate is empty."),
        (
            {"kind": "planes", "constants": {"Metadata_Plate": "q"}},
            PLANES + CONTROL,
            't.csv row 2 plate: "p", but constants in the manifest say "q" of every row. Take Metadata_Plate out of them',
        ),
        ({"kind": "planes"}, PLANES + "a,p,A01,,DNA,x,\n", 't.csv row 2 site: "" is no name of a site.'),
        (
            {"kind": "planes", "control": "Metadata_compound=DMSO"},
            PLANES + CONTROL + "c,p,A01,2,DNA,dmso,\nd,p,A01,2,ER,dmso,\n",
            "t.csv row 4: plate p well A01 is dmso here, and DMSO in t.csv row 2. A well has one condition",
        ),
        (
            {"kind": "planes", "control": "Metadata_compound=DMSO", "concentration_unit": "nM"},
            PLANES + CONTROL + "c,p,A02,1,DNA,x,1e400\nd,p,A02,1,ER,x,1e400\n",
            't.csv row 4 concentration: "1e400" is no concentration.',
        ),
    ],
    ids=[
        "channel-twice",
        "plate-twice",
        "well-of-two",
        "no-channel",
        "no-plate",
        "constant",
        "no-site",
        "two-conditions",
        "dose",
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    keys: dict[str, Any], rows: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(rows)
    assert refused(described(tmp_path, tables=["t.csv"], **keys)).startswith(message)


def test_crops_of_which_no_well_is_known_may_have_many_conditions_in_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,Metadata_Plate,Metadata_Well,Metadata_Compound\na,p,A01,DMSO\nb,p,A01,x\n")
    keys = {"kind": "crops", "tables": ["t.csv"], "control": "Metadata_Compound=DMSO"}
    assert "A well has one condition" in refused(described(tmp_path, **keys))
    (tmp_path / "t.csv").write_text("path,Metadata_Plate,Metadata_Compound,Metadata_Well\na,p,DMSO,A01\nb,p,x,A01\n")
    assert len(read_catalogue(*read_manifest(described(tmp_path, **keys, constants={"Metadata_Well": "A01"})))[0]) == 2


# --- one fault is one problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("well\n", "wel\n"), ("wells.csv", None, 'no column "well"')),
        (("A01,DMSO", "A03,DMSO"), ("t.csv", 2, "wells.csv has no entry for A01 (well)")),
        (("compound,well", "compound|well"), ("wells.csv", 1, '"compound|well" is one column')),
    ],
)
def test_what_follows_from_a_fault_is_no_second_one(
    change: tuple[str, str], problem: tuple[str, int | None, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("path,plate,well,site,channel\na.npy,p,A01,1,DNA\nb.npy,p,A01,1,ER\n")
    wells, kinds = "compound,well\nDMSO,A01\n", "name,kind\nDMSO,negcon\n"
    swapped = "well,compound\nA01,DMSO\n"
    text = next(one for one in (wells, swapped) if change[0] in one)
    (tmp_path / "wells.csv").write_text(text.replace(*change))
    (tmp_path / "kinds.csv").write_text(kinds)
    for seed, name in enumerate("ab"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(seed).integers(1, 9999, (16, 16), dtype=np.uint16))
    tables = [{"table": "wells.csv", "keys": {"Metadata_Well": "well"}}]
    tables += [{"table": "kinds.csv", "keys": {"Metadata_compound": "name"}}]
    keys = {"kind": "planes", "tables": ["t.csv"], "metadata_tables": tables, "control": "Metadata_compound=DMSO"}
    (found,) = told(described(tmp_path, **keys), capsys)
    assert (found["file"], found["row"]) == problem[:2]
    assert problem[2] in found["found"]


def test_a_row_that_stands_twice_is_told_once_and_not_by_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate("ab"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(seed).integers(1, 9999, (16, 16), dtype=np.uint16))
    row = "a.npy,b.npy,p,A01,DMSO\n"
    (tmp_path / "t.csv").write_text(
        "FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well,Metadata_Compound\n" + 2 * row
    )
    keys = {"kind": "load_data", "tables": ["t.csv"], "control": "Metadata_Compound=DMSO"}
    (found,) = told(described(tmp_path, **keys), capsys)
    assert (found["kind"], found["row"]) == ("duplicate", 3)


@pytest.mark.parametrize("options", [(), ("--deep",)])
def test_a_crop_of_which_two_axes_fit_is_a_problem_before_prepare_meets_it(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(1, 9999, (2, 16, 2), dtype=np.uint16))
    (tmp_path / "t.csv").write_text("path,Metadata_Plate,Metadata_Well,Metadata_Compound\na.npy,p,A01,DMSO\n")
    keys = {"kind": "crops", "tables": ["t.csv"], "control": "Metadata_Compound=DMSO"}
    (found,) = told(described(tmp_path, **keys), capsys, *options)
    assert (found["kind"], found["remedy"]) == ("shape", "Set axes: HWC or CHW in the manifest.")
    assert told(described(tmp_path, **keys, axes="HWC"), capsys, *options) == []


@pytest.mark.parametrize("found", ["is no array (Failed. Expected 5, found 3.)", '"01. Mrz" is no well'])
def test_what_another_program_or_a_cell_says_is_no_remedy(found: str) -> None:
    problem = of_text("row", f"/d/a.npy: {found}. Copy it again.", default="")
    assert (problem.found, problem.remedy) == (found, "Copy it again.")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"kind": "load_data"}, "no column lists images"),
        ({"kind": "crops", "constants": {"Metadata_Well": "A01"}}, 'no column "path"'),
        ({"kind": "pattern", "tables": [], "folders": ["."], "pattern": "(?P<plate>x)(?P<well>y)"}, "does not match"),
    ],
)
def test_a_table_or_folder_of_another_kind_is_one_problem(
    keys: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("picture,Metadata_Plate,Metadata_Well\na.npy,p,A01\n")
    np.save(tmp_path / "a.npy", np.ones((4, 4), np.uint8))
    (found,) = told(described(tmp_path, **{"tables": ["t.csv"], **keys}), capsys)
    assert problem in found["found"]


def test_rows_that_are_all_wrong_are_told_and_not_the_table_that_has_none_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(PLANES + "a,b\n" * 2)
    found = told(described(tmp_path, kind="planes", tables=["t.csv"]), capsys)
    assert [one["row"] for one in found] == [2, 3]


def test_crops_of_which_none_can_be_read_say_why_and_not_that_they_show_no_nucleus(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 16, 16), np.uint16))
    (tmp_path / "t.csv").write_text("path,Metadata_Plate,Metadata_Well,Metadata_Compound\na.npy,p,A01,DMSO\n")
    keys = {"kind": "crops", "tables": ["t.csv"], "control": "Metadata_Compound=DMSO"}
    manifest, root = read_manifest(described(tmp_path, **keys))
    with pytest.raises(ImageError, match=r"t\.csv row 2: .*a\.npy: shape \(3, 16, 16\), no axis has 2 channels"):
        list(nucleus_images(read_catalogue(manifest, root)[0], manifest, flats={}))


def test_a_file_that_is_no_array_is_not_said_to_be_worth_trusting(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"II*\0 a TIFF")
    with pytest.raises(ImageError, match=r"no whole \.npy array of numbers \(it is none, or holds pickled objects\)"):
        read_array(tmp_path / "a.npy")


# --- OME-Zarr metadata of other hands


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("", {"wells": ["B/3"]}, '"B/3" among its wells is no mapping with a path. Write it again.'),
        ("B/3", {"images": ["0"]}, '"0" among its images is no mapping with a path. Write it again.'),
        ("B/3/0", {"omero": {"channels": None}}, 'channel "0" is not known. Name it under channel_names'),
        ("", {"wells": [{"path": "A/3", "rowIndex": -2, "columnIndex": 0}]}, 'well "A/3" has no rowIndex'),
        (
            "B/3/0",
            {"multiscales": [{"axes": [{"name": "y"}], "datasets": [{"path": "s1"}]}]},
            "no Zarr array with pixels",
        ),
        ("B/3/0", {"omero": None}, 'channel "0" is not known. Name it under channel_names'),
    ],
)
def test_ome_zarr_metadata_of_the_wrong_type_are_told(
    place: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    plate = {"rows": [{"name": "A"}, {"name": "B"}], "columns": [{"name": "3"}]}
    plate |= {"wells": [{"path": "B/3", "rowIndex": 1, "columnIndex": 0}]}
    field = {"multiscales": [{"axes": [{"name": name} for name in "cyx"], "datasets": [{"path": "s0"}]}]}
    labels = [{"label": "DNA"}, {"label": "ER"}]
    ome = {"": {"plate": plate}, "B/3": {"well": {"images": [{"path": "0"}]}}, "B/3/0": field}
    ome["B/3/0"] |= {"omero": {"channels": labels}}
    for part in ome[place].values() if place != "B/3/0" else [ome[place]]:
        part.update(change)
    for name, attributes in ome.items():
        (tmp_path / "p.zarr" / name).mkdir(parents=True, exist_ok=True)
        written = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **attributes}}}
        (tmp_path / "p.zarr" / name / "zarr.json").write_text(json.dumps(written))
    (tmp_path / "p.zarr/B/3/0/s0").mkdir()
    (tmp_path / "p.zarr/B/3/0/s0/zarr.json").write_text(json.dumps({"shape": [2, 8, 8]}))
    (tmp_path / "p.zarr/B/3/0/s1").mkdir()
    (tmp_path / "p.zarr/B/3/0/s1/zarr.json").write_text(json.dumps({"shape": [-2, 8, 8]}))
    assert message in refused(described(tmp_path, kind="ome_zarr", folders=["p.zarr"]))
