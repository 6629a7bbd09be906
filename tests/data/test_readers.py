"""Tables, plate maps and load_data as the community writes them."""

import gzip
from pathlib import Path

import pytest

from cellbridge.conditions import Condition
from cellbridge.data.annotation import aliases, annotate, condition_of, is_control, require_control
from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.manifest import Manifest
from cellbridge.data.planes import Plane
from cellbridge.data.readers.crop_table import read_crop_table
from cellbridge.data.readers.load_data import read_load_data
from cellbridge.data.readers.platemap import read_platemaps
from cellbridge.data.readers.tables import read_table
from cellbridge.data.selection import EVERYTHING, Selection
from cellbridge.errors import ManifestError

AWKWARD = ("NA", "None", "nan", "null", "N/A", "0001053597806", "1e5", "=1+1")


def manifest(**changes: object) -> Manifest:
    given = {"name": "p", "licence": "x", "citation": "x", "kind": "load_data", "tables": ("load_data.csv",)}
    return Manifest.model_validate({**given, "channels": ("DNA", "ER"), "nucleus_channel": "DNA", **changes})


def load_data(folder: Path, text: str, **changes: object) -> list:
    (folder / "load_data.csv").write_text(text, encoding="utf-8")
    return read_load_data(manifest(**changes), folder)


def test_texts_that_look_like_missing_values_or_numbers_stay_texts(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("Metadata_Compound,n\n" + "".join(f"{name},{i}\n" for i, name in enumerate(AWKWARD)))
    assert [row["Metadata_Compound"] for row in read_table(file).rows] == list(AWKWARD)


@pytest.mark.parametrize(
    "data",
    [
        b"a,b\n1,x\n",
        b"\xef\xbb\xbfa,b\r\n1,x\r\n",
        b"a;b\n1;x\n",
        b"a\tb\n1\tx\n",
        b"\na,b\n\n1,x\n\n",
        gzip.compress(b"a,b\n1,x\n"),
        b'"a","b"\n"1","x"\n',
        b" a , b \n 1 , x \n",
    ],
    ids=["plain", "bom-crlf", "semicolon", "tab", "blank-lines", "gzip", "quoted", "blanks"],
)
def test_a_table_reads_the_same_however_it_was_exported(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    table = read_table(tmp_path / "t.csv")
    assert table.columns == ("a", "b")
    assert table.rows == ({"a": "1", "b": "x"},)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,x\n2\n", "row 3: 1 fields, the header has 2"),
        (b"a,b\n1,x,y\n", "row 2: 3 fields, the header has 2"),
        (b"a,a\n1,x\n", 'column "a" stands twice'),
        (b"", "is empty"),
        (b"a,b\n", "no row"),
        (b"a,b\n1,\xb5M\n", "row 2: not UTF-8"),
        ("a,b\n1,x\n".encode("utf-16"), "not UTF-8"),
        (b"a,b\n1,\x00\n", "zero bytes"),
        (gzip.compress(b"a,b\n1,x\n")[:-9], "cannot be read"),
        (b'a,b\n1,"x\n', "not a table"),
    ],
    ids=["short", "long", "twice", "empty", "header-only", "latin-1", "utf-16", "nul", "cut-gzip", "open-quote"],
)
def test_a_table_that_is_wrong_is_refused_with_its_row(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        read_table(tmp_path / "t.csv")
    assert message in str(caught.value)
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "FileName_DNA,PathName_DNA,FileName_ER,PathName_ER,Metadata_Plate,Metadata_Well,Metadata_Site",
        "Image_FileName_DNA,Image_PathName_DNA,Image_FileName_ER,Image_PathName_ER,Image_Metadata_Plate,Image_Metadata_Well,Metadata_Site",
        "FileName_OrigDNA,PathName_OrigDNA,FileName_OrigER,PathName_OrigER,Metadata_Plate,Metadata_Well,Metadata_Site",
        "FileName_DNA,PathName_DNA,FileName_ER,PathName_ER,Metadata_Plate,Metadata_Well,Metadata_Site,FileName_OrigDNA",
    ],
)
def test_the_forms_of_load_data_give_the_same_rows(header: str, tmp_path: Path) -> None:
    more = ",d.tif" if header.endswith("FileName_OrigDNA") else ""  # two columns that say the same
    (row,) = load_data(tmp_path, f"{header}\nd.tif,images/,e.tif,images,0001053597806,b3,2{more}\n")
    assert row.images == {"DNA": Plane(tmp_path / "images/d.tif"), "ER": Plane(tmp_path / "images/e.tif")}
    assert (row.plate, row.well, row.site) == ("0001053597806", "B03", "2")
    assert row.where == "load_data.csv row 2"


def test_urls_are_mapped_to_the_root_and_illumination_columns_passed_over(tmp_path: Path) -> None:
    text = (
        "Metadata_Plate,Metadata_Well,URL_OrigDNA,URL_OrigER,URL_IllumDNA,URL_IllumER\n"
        "p,A01,s3://k/cpg/d.tiff,s3://k/cpg/e.tiff,s3://k/x.npy,s3://k/y.npy\n"
    )
    (row,) = load_data(tmp_path, text, prefixes={"s3://k/": "local"})
    assert row.images == {"DNA": Plane(tmp_path / "local/cpg/d.tiff"), "ER": Plane(tmp_path / "local/cpg/e.tiff")}
    assert row.site == "1"
    with pytest.raises(ManifestError, match=r"row 2 URL_OrigDNA: .* is a URL"):
        load_data(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FileName_DNA,Metadata_Plate,Metadata_Well\nd,p,A01\n", 'no column for channel "ER"'),
        ("FileName_DNA,FileName_ER,Metadata_Well\nd,e,A01\n", 'no column "Metadata_Plate"'),
        (
            "FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well\nd,e,p,Q25\n",
            "load_data.csv row 2 Metadata_Well: well",
        ),
        (
            "FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well\nd,e,,A01\n",
            "row 2 Metadata_Plate: the plate is empty",
        ),
        ("FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well\nd,,p,A01\n", "row 2 FileName_ER: no path"),
        ("FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well\nd,../../etc/passwd,p,A01\n", "outside the root"),
        ("FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well,Metadata_Site\nd,e,p,A01,../1\n", "Metadata_Site"),
    ],
)
def test_load_data_that_is_wrong_is_refused_with_row_and_field(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        load_data(tmp_path, text)
    assert message in str(caught.value)


def test_a_crop_table_keeps_its_metadata_and_sums(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("path,Metadata_Plate,Metadata_Well,Metadata_MOA,md5\na/c.npy,p,b2,x,ABC\n")
    (row,) = read_crop_table(manifest(kind="crops", tables=("cells.csv",)), tmp_path)
    assert row.images == {"": Plane(tmp_path / "a/c.npy")}
    assert row.metadata == {"Metadata_Plate": "p", "Metadata_Well": "B02", "Metadata_MOA": "x", "Metadata_Site": "1"}
    assert row.digests == {"": "abc"}


# --- plate maps, compounds and the control


def platemaps(folder: Path, wells: str, header: str = "well_position\tbroad_sample\tmmoles_per_liter\tsolvent") -> None:
    (folder / "maps/platemap").mkdir(parents=True, exist_ok=True)
    (folder / "maps/barcode_platemap.csv").write_text("Assay_Plate_Barcode,Plate_Map_Name\np,m\n")
    (folder / "maps/platemap/m.txt").write_text(f"{header}\n{wells}")


def catalogue(
    folder: Path, wells: str, *, table: str | None = None, selection: Selection = EVERYTHING, **changes: object
) -> tuple[list, str]:
    platemaps(folder, wells)
    names = [line.split("\t")[0] for line in wells.splitlines()]
    rows = "".join(f"{name}_d,{name}_e,p,{name}\n" for name in names)
    (folder / "load_data.csv").write_text(table or "FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well\n" + rows)
    given = {"platemaps": ("maps",), "concentration_unit": "uM"}
    return read_catalogue(manifest(**{**given, **changes}), folder, selection)


def test_a_vehicle_well_with_an_empty_compound_becomes_the_control(tmp_path: Path) -> None:
    rows, control = catalogue(tmp_path, "a1\t\t\tDMSO\nA02\ttaxol\t9.99999999999999999\tDMSO\nA03\tNA\t0.5\tDMSO\n")
    assert control == "DMSO"
    assert [is_control(row) for row in rows] == [True, False, False]
    assert [condition_of(row, control=control) for row in rows] == [
        Condition("DMSO"),
        Condition("taxol", 10.0),
        Condition("NA", 0.5),
    ]
    assert rows[1].metadata["Metadata_Concentration"] == "9.99999999999999999"
    assert rows[1].metadata["Metadata_broad_sample"] == "taxol"


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [("1", "mM", "1000"), ("50 µM", "mM", "50"), ("50uM", "uM", "50"), ("30 nM", "uM", "0.03"), ("1e-1", "uM", "1e-1")],
)
def test_concentrations_are_in_micromolar(text: str, unit: str, expected: str, tmp_path: Path) -> None:
    rows, _ = catalogue(tmp_path, f"A01\t\t\tDMSO\nA02\tx\t{text}\tDMSO\n", concentration_unit=unit)
    assert rows[1].metadata["Metadata_Concentration"] == expected


@pytest.mark.parametrize(
    ("wells", "changes", "message"),
    [
        ("A01\t\t\tDMSO\nA02\tx\t1\tDMSO\n", {"concentration_unit": None}, "mmoles_per_liter"),
        (
            "A01\t\t\tDMSO\nA02\tx\t0,5\tDMSO\n",
            {},
            'maps/platemap/m.txt row 3 mmoles_per_liter: "0,5" is no concentration',
        ),
        (
            "A01\t\t\tDMSO\nA1\tx\t1\tDMSO\n",
            {},
            "maps/platemap/m.txt row 3 well_position: well A01 stands twice. Remove one row; several compounds in a well are one row",
        ),
        ("A01\t\t\tDMSO\nQ25\tx\t1\tDMSO\n", {}, 'load_data.csv row 3 Metadata_Well: well "Q25" is outside'),
        ("A01\t\t\tDMSO\n", {"columns": {"Metadata_Compound": "cpd"}}, 'columns: "cpd" is in no table'),
        ("A01\t\t\tDMSO\nA02\tDMSO\t1\tDMSO\n", {"control_name": "DMSO"}, "Set control: Metadata_Compound=DMSO"),
        ("A01\t\t\tDMSO\n", {"platemaps": ("../maps",)}, "outside the root"),
        (
            "A01\t\t\tDMSO\n",
            {"control": "Metadata_solvant=DMSO"},
            'control: no table has "Metadata_solvant" (Metadata_solvant=DMSO). Correct it. Did you mean "Metadata_solvent"?',
        ),
        (
            "A01\tLUC\t\tDMSO\nA02\t\t\tDMSO\n",
            {"control": "Metadata_broad_sample=LUC"},
            "maps/platemap/m.txt row 3 broad_sample: the compound is empty, and the well is no control",
        ),
    ],
)
def test_a_plate_map_that_is_wrong_is_refused(wells: str, changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        catalogue(tmp_path, wells, **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("d,e,p,B01,", "load_data.csv row 2 Metadata_Well: well B01 is not in the map of plate p, maps/platemap/m.txt"),
        ("d,e,q,A01,", 'plate "q" is in no barcode_platemap.csv'),
        ("d,e,p,A01,water", 'Metadata_solvent is "water", the plate map says "DMSO"'),
    ],
)
def test_a_table_and_its_plate_map_must_agree(row: str, message: str, tmp_path: Path) -> None:
    table = f"FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well,Metadata_solvent\n{row}\n"
    with pytest.raises(ManifestError) as caught:
        catalogue(tmp_path, "A01\t\t\tDMSO\n", table=table)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("well", "message"),
    [("Q25", 'well "Q25" is outside'), ("", '"" is no well'), ("a1", "well A01 stands twice")],
)
def test_a_well_of_a_plate_map_is_refused_with_map_row_and_column(well: str, message: str, tmp_path: Path) -> None:
    platemaps(tmp_path, f"A01\t\t\tDMSO\n{well}\tx\t1\tDMSO\n")
    with pytest.raises(ManifestError) as caught:
        read_platemaps([tmp_path / "maps"], plate_format=384, root=tmp_path)
    assert str(caught.value).startswith(f"maps/platemap/m.txt row 3 well_position: {message}")


@pytest.mark.parametrize("name", ["../m", "/m", ".m", ""])
def test_a_plate_map_name_is_no_path(name: str, tmp_path: Path) -> None:
    platemaps(tmp_path, "A01\t\t\tDMSO\n")
    (tmp_path / "maps/barcode_platemap.csv").write_text(f"Assay_Plate_Barcode,Plate_Map_Name\np,{name}\n")
    with pytest.raises(ManifestError, match="is no file name"):
        read_platemaps([tmp_path / "maps"], plate_format=384)


def test_a_field_listed_twice_is_refused_with_both_rows(tmp_path: Path) -> None:
    table = "FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well\nd,e,p,A01\nd2,e2,p,a1\n"
    with pytest.raises(
        ManifestError, match=r"row 3: plate p well A01 site 1 is listed already, in load_data.csv row 2"
    ):
        catalogue(tmp_path, "A01\t\t\tDMSO\n", table=table)


def jump_rows(folder: Path, lines: str) -> list:
    header = (
        "FileName_DNA,FileName_ER,Metadata_Plate,Metadata_Well,Metadata_JCP2022,Metadata_pert_type,Metadata_Compound\n"
    )
    return load_data(folder, header + lines)


def test_jump_identifiers_become_aliases_and_the_control_is_a_query(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,JCP2022_033924,negcon,DMSO\nd,e,p,A02,JCP2022_037716,poscon,AMG900\n")
    annotated, control = annotate(rows, manifest(control="Metadata_JCP2022=JCP2022_033924"))
    assert control == "DMSO"
    assert aliases(annotated) == {"JCP2022_033924": "DMSO", "JCP2022_037716": "AMG900"}


def test_the_query_alone_says_what_the_control_is_whatever_pert_type_says(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,x,trt,DMSO\nd,e,p,A02,y,negcon,LUC\nd,e,p,A03,z,poscon,AMG\n")
    annotated, control = annotate(rows, manifest(control="Metadata_Compound=DMSO"))
    assert control == "DMSO"
    assert [row.metadata["Metadata_pert_type"] for row in annotated] == ["negcon", "trt", "poscon"]
    assert [is_control(row) for row in annotated] == [True, False, False]


def test_an_empty_compound_is_control_where_nothing_is_said_against_it(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,x,negcon,\nd,e,p,A02,y,,\nd,e,p,A03,z,trt,AMG\n")
    annotated, _ = annotate(rows, manifest())
    assert [is_control(row) for row in annotated] == [True, True, False]
    assert [row.blank_control for row in annotated] == [False, True, False]


def test_a_control_that_is_written_out_is_all_of_the_control_though_it_is_the_default(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,x,negcon,\nd,e,p,A02,y,,\n")
    with pytest.raises(ManifestError, match=r"row 3 .*no control, as it has not Metadata_pert_type=negcon"):
        annotate(rows, manifest(control="Metadata_pert_type=negcon"))


@pytest.mark.parametrize("column", ["Metadata_Compound", "Metadata_broad_sample"])
def test_a_query_without_a_value_selects_where_the_column_is_empty(column: str, tmp_path: Path) -> None:
    wells = "A01\t\t\tDMSO\nA02\ttaxol\t1\tDMSO\n"
    rows, control = catalogue(tmp_path, wells, control=f"{column}=")
    assert (control, [is_control(row) for row in rows]) == ("DMSO", [True, False])
    assert not any(row.blank_control for row in rows)
    rows, _ = catalogue(tmp_path, wells, only=("Metadata_broad_sample=",))
    assert [row.well for row in rows] == ["A01"]


def test_the_control_has_the_data_sets_name_whichever_wells_are_asked_for(tmp_path: Path) -> None:
    wells = "A01\tmock\t\tDMSO\nA02\ttaxol\t1\tDMSO\nA03\t\t1\tDMSO\n"  # A03 is wrong, and nobody asks for it
    treated = Selection(wells=frozenset(["A02"]))
    rows, control = catalogue(tmp_path, wells, selection=treated, control="Metadata_broad_sample=mock")
    assert ([row.well for row in rows], control) == (["A02"], "mock")


def test_columns_whose_names_have_spaces_are_asked_for_like_others(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "path,plate,well,site,channel,compound,cell line,well role\n"
        "a,p,A01,1,DNA,DMSO,U2OS,vehicle\nb,p,A01,1,ER,DMSO,U2OS,vehicle\nc,p,A02,1,DNA,x,A549,treated\n"
    )
    queries = {"control": "Metadata_well role=vehicle", "only": ("Metadata_cell line=U2OS",)}
    rows, control = read_catalogue(manifest(kind="planes", tables=("t.csv",), **queries), tmp_path)
    assert ([row.well for row in rows], control) == (["A01"], "DMSO")


def test_rows_that_only_leaves_out_of_a_selection_are_not_the_manifests_fault(tmp_path: Path) -> None:
    wells, one = "A01\tmock\t\tDMSO\nA02\ttaxol\t1\tDMSO\n", Selection(wells=frozenset(["A02"]))
    with pytest.raises(ManifestError, match=r"no row of the plates and wells asked for has .* Ask for others, or"):
        catalogue(tmp_path, wells, selection=one, only=("Metadata_broad_sample=mock",))


def test_the_query_finds_a_compound_under_the_plate_maps_own_name(tmp_path: Path) -> None:
    wells = "A01\tmock\t\tDMSO\nA02\ttaxol\t1\tDMSO\n"
    rows, control = catalogue(tmp_path, wells, control="Metadata_Compound=mock")
    assert control == "mock"
    assert [is_control(row) for row in rows] == [True, False]


def test_a_column_that_the_reader_knows_already_may_be_named_again(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,x,negcon,DMSO\n")
    annotated, _ = annotate(rows, manifest(columns={"Metadata_Plate": "plate", "Metadata_Well": "Well"}))
    assert (annotated[0].plate, annotated[0].well) == ("p", "A01")


def test_controls_of_several_names_need_one_name(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,x,negcon,BFP\nd,e,p,A02,y,negcon,LacZ\n")
    with pytest.raises(ManifestError, match="the control has 2 names"):
        annotate(rows, manifest())
    annotated, control = annotate(rows, manifest(control_name="reporter"))
    assert control == "reporter"
    assert [row.metadata["Metadata_ControlCompound"] for row in annotated] == ["BFP", "LacZ"]
    assert {condition_of(row, control=control).name for row in annotated} == {"reporter"}


def test_a_plate_without_control_is_named(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,x,negcon,DMSO\nd,e,q,A01,y,trt,taxol\n")
    annotated, _ = annotate(rows, manifest())
    with pytest.raises(
        ManifestError, match=r'plate "q" has no control.*Metadata_Compound=DMSO.*intensity_reference: all'
    ):
        require_control(annotated, manifest())


def test_a_treated_row_without_compound_is_refused(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,x,negcon,DMSO\nd,e,p,A02,y,trt,\n")
    with pytest.raises(ManifestError, match="row 3 Metadata_Compound: the compound is empty"):
        annotate(rows, manifest())


def test_a_compound_that_reads_like_a_dose_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = jump_rows(tmp_path, "d,e,p,A01,x,negcon,DMSO\nd,e,p,A02,y,trt,drug@5\n")
    with pytest.raises(ManifestError, match=r"row 3 Metadata_Compound: condition .* would be read back as"):
        annotate(rows, manifest())


def test_public_plate_maps_are_read_as_they_are(real_data: Path, tmp_path: Path) -> None:
    lincs = real_data / "tables" / "lincs"
    (tmp_path / "platemap").mkdir()
    name = "C-7161-01-LM6-001"
    (tmp_path / "platemap" / f"{name}.txt").write_bytes((lincs / f"{name}.txt").read_bytes())
    lines = (lincs / "barcode_platemap.csv").read_text().splitlines()
    chosen = [line for line in lines[1:] if f",{name}," in line]
    (tmp_path / "barcode_platemap.csv").write_text("\n".join([lines[0], *chosen]) + "\n")
    plates = read_platemaps([tmp_path], plate_format=384)
    assert len(plates) == len(chosen) > 0
    wells = next(iter(plates.values()))
    assert len(wells.wells) == 384
    assert sum(not well.columns["Metadata_broad_sample"] for well in wells.wells.values()) == 24
