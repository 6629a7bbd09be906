"""Every manifest that is shipped finds the fields of a data set in its published layout."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cellbridge.data.annotation import condition_of, is_control, require_control
from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.manifest import read_manifest
from cellbridge.data.readers.rows import ImageRow

SHIPPED = Path(__file__).parents[2] / "data_manifests"


def table(file: Path, header: str, *rows: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows]) + "\n")


def touch(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def bbbc021(root: Path) -> None:
    names = ",".join(f"Image_FileName_{n},Image_PathName_{n}" for n in ("DAPI", "Tubulin", "Actin"))
    header = f"TableNumber,ImageNumber,{names},Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI,Replicate,Image_Metadata_Compound,Image_Metadata_Concentration"
    files = ",".join(f"G10_s1_w{n}BED.tif,Week4/Week4_27481" for n in (1, 2, 4))
    rows = [
        f"4,{i},{files},Week4_27481,{w},1,{c}"
        for i, w, c in ((1, "G10", "taxol,0.300000"), (2, "B02", "DMSO,0.000000"))
    ]
    table(root / "BBBC021_v1_image.csv", header, *rows)
    table(
        root / "BBBC021_v1_moa.csv",
        "compound,concentration,moa",
        "taxol,0.300000,Microtubule stabilizers",
        "DMSO,0.000000,DMSO",
    )


def bbbc022(root: Path) -> None:
    wells = ("A01", "A02")
    touch(
        root,
        [f"BBBC022_v1_images_20585w{w}/IXMtest_{well}_s1_w{w}64FBEEF7-F77C.tif" for w in range(1, 6) for well in wells],
    )
    names = ("PlateID", "CPD_WELL_POSITION", "SOURCE_COMPOUND_NAME", "CPD_MMOL_CONC", "ASSAY_WELL_ROLE")
    header = ",".join(f"Image_Metadata_{name}" for name in names)
    table(root / "BBBC022_v1_image.csv", header, "20585,a01,,,mock", "20585,a02,taxol,0.005,compound")


def bbbc013(root: Path) -> None:
    touch(
        root, [f"BBBC013_v1_images_bmp/Channel{c}-{n}.BMP" for c in (1, 2) for n in ("01-A-01", "03-A-03", "60-E-12")]
    )


def cpjump1(root: Path, wells: Sequence[str] = ("A01", "A02")) -> None:
    channels = ("DNA", "ER", "RNA", "AGP", "Mito", "Brightfield")
    place = "s3://cellpainting-gallery/cpg0000-jump-pilot/source_4/images/2020_11_04_CPJUMP1"
    header = ",".join(f"URL_Orig{c},URL_Illum{c}" for c in channels) + ",Metadata_Plate,Metadata_Well,Metadata_Site"
    files = ",".join(f"{place}/images/x/{c}.tiff,{place}/illum/BR00116991/BR00116991_Illum{c}.npy" for c in channels)
    rows = [f"{files},BR00116991,{well},1" for well in wells]
    table(
        root / "source_4/workspace/load_data_csv/2020_11_04_CPJUMP1/BR00116991/load_data_with_illum.csv", header, *rows
    )
    maps = root / "source_4/workspace/metadata/platemaps/2020_11_04_CPJUMP1"
    table(maps / "barcode_platemap.csv", "Assay_Plate_Barcode,Plate_Map_Name", "BR00116991,m")
    table(maps / "platemap/m.txt", "well_position\tbroad_sample\tsolvent", "A01\tBRD-1\tDMSO", "A02\t\tDMSO")
    columns = "broad_sample\tInChIKey\tpert_iname\ttarget_list\tpert_type\tcontrol_type\tsmiles"
    table(
        root / "metadata/JUMP-Target-1_compound_metadata.tsv",
        columns,
        "BRD-1\tK\ttaxol\tT\ttrt\tNA\tC",
        "NA\tK\tDMSO\tNA\tcontrol\tnegcon\tC",
    )


def jump_target2(root: Path) -> None:
    place = "s3://cellpainting-gallery/cpg0016-jump/source_4/images"
    channels = ("DNA", "ER", "RNA", "AGP", "Mito", "Brightfield_L")
    header = (
        ",".join(f"URL_Orig{c}" for c in channels)
        + ",Metadata_Source,Metadata_Batch,Metadata_Plate,Metadata_Well,Metadata_Site"
    )
    files = ",".join(f"{place}/{c}.tiff" for c in channels)
    rows = [f"{files},source_4,2021_04_26_Batch1,BR00121438,{well},1" for well in ("A01", "A02", "A03")]
    table(
        root / "source_4/workspace/load_data_csv/2021_04_26_Batch1/BR00121438/load_data_with_illum.csv", header, *rows
    )
    keys = "Metadata_Source,Metadata_Batch,Metadata_Plate,Metadata_PlateType"
    table(root / "metadata/plate.csv.gz", keys, "source_4,2021_04_26_Batch1,BR00121438,TARGET2")
    wells = [
        f"source_4,BR00121438,{w},{j}"
        for w, j in (("A01", "JCP2022_033924"), ("A02", "JCP2022_037716"), ("A03", "JCP2022_000001"))
    ]
    table(root / "metadata/well.csv.gz", "Metadata_Source,Metadata_Plate,Metadata_Well,Metadata_JCP2022", *wells)
    table(
        root / "metadata/compound.csv.gz",
        "Metadata_JCP2022,Metadata_InChIKey",
        "JCP2022_000001,K1",
        "JCP2022_037716,K2",
    )
    controls = ["JCP2022_033924,negcon,DMSO,compound", "JCP2022_037716,poscon,AMG900,compound"]
    table(
        root / "metadata/perturbation_control.csv",
        "Metadata_JCP2022,Metadata_pert_type,Metadata_Name,Metadata_modality",
        *controls,
    )


def rxrx1(root: Path) -> None:
    touch(root, [f"rxrx1/images/HUVEC-01/Plate1/{well}_s1_w{w}.png" for well in ("B02", "B03") for w in range(1, 7)])
    header = "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"
    rows = [
        "x,x,HUVEC,test,HUVEC-01,1,B02,1,negative_control,EMPTY,1138",
        "x,x,HUVEC,test,HUVEC-01,1,B03,1,treatment,s21721,855",
    ]
    table(root / "rxrx1/metadata.csv", header, *rows)


def impa(root: Path, benchmark: str, keys: Sequence[str], states: Sequence[str]) -> None:
    header = ",SAMPLE_KEY,SPLIT,STATE,ANNOT,CPD_NAME,BROAD_SAMPLE,DOSE,PLATE,WELL,BATCH"
    rows = [
        f"{n},{key},train,{state},{state},{name},{name},{dose},1,A0{n + 1},b"
        for n, (key, state, name, dose) in enumerate(zip(keys, states, ("DMSO", "taxol"), ("0", "3.0"), strict=True))
    ]
    table(root / f"metadata/{benchmark}_df_all.csv", header, *rows)


CASES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "bbbc021": (bbbc021, {"DMSO", "taxol@0.3"}),
    "bbbc022": (bbbc022, {"DMSO", "taxol@5"}),
    "bbbc013": (bbbc013, {"vehicle", "wortmannin@0.00098"}),
    "cpjump1": (cpjump1, {"DMSO", "taxol"}),
    "jump_target2": (jump_target2, {"DMSO", "JCP2022_037716", "JCP2022_000001"}),
    "rxrx1": (rxrx1, {"EMPTY", "s21721"}),
    "impa_bbbc021": (
        lambda root: impa(root, "bbbc021", ("Week1_22123_1_11_3.0", "Week1_22123_1_12_3.0"), ("0", "1")), {"DMSO", "taxol@3"}
    ),
    "impa_cpg0000": (
        lambda root: impa(root, "cpg0000", ("BR00116991_A01_1_5", "BR00116991_A02_1_5"), ("control", "trt")), {"DMSO", "taxol@3"}
    ),
    "impa_rxrx1": (
        lambda root: impa(root, "rxrx1", ("x-HEPG2_01_1_B02_1_5", "x-HEPG2_01_1_B03_1_5"), ("negative_control", "treated")),
        {"DMSO", "taxol@3"},
    ),
}  # fmt: skip


def test_every_shipped_manifest_is_tried() -> None:
    own = {"template", "bbbc021_cells"}  # a form to fill in, and one that has real data of its own
    assert {file.parent.name for file in SHIPPED.glob("*/manifest.yaml")} == set(CASES) | own


@pytest.mark.parametrize("name", CASES)
def test_a_shipped_manifest_finds_the_conditions_of_its_data_set(name: str, tmp_path: Path) -> None:
    write, conditions = CASES[name]
    write(tmp_path)
    manifest, root = read_manifest(SHIPPED / name, root=tmp_path)
    rows, control = read_catalogue(manifest, root)
    require_control(rows, manifest)
    assert {condition_of(row, control=control).name for row in rows} == conditions
    assert {control} == {condition_of(row, control=control).name for row in rows if is_control(row)}
    assert not any(row.blank_control for row in rows)  # else `validate --strict` would not pass
    files = [plane.file for row in rows for plane in row.images.values()]
    assert all(file.is_relative_to(tmp_path) for file in files)
    if manifest.kind == "pattern":
        assert all(file.is_file() for file in files)


def shipped(name: str, root: Path) -> list[ImageRow]:
    manifest, folder = read_manifest(SHIPPED / name, root=root)
    return read_catalogue(manifest, folder)[0]


def test_bbbc021s_own_table_has_its_plates_treatments_and_mechanisms(real_data: Path) -> None:
    rows = shipped("bbbc021", real_data / "tables/bbbc021")
    named = {
        (row.metadata["Metadata_Compound"], row.metadata["Metadata_Concentration"])
        for row in rows
        if row.metadata["Metadata_moa"]
    }
    assert (len(rows), len({row.plate for row in rows})) == (13_200, 55)
    assert len(named) == 104  # 103 treatments and DMSO
    assert Counter(is_control(row) for row in rows)[True] == 1_320


def test_cpjump1s_own_map_has_its_64_control_wells_by_what_the_manifest_says(real_data: Path, tmp_path: Path) -> None:
    published = real_data / "tables/jump_target"
    cpjump1(tmp_path, [f"{row}{column:02}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)])
    for name, place in (
        (
            "JUMP-Target-1_compound_platemap.tsv",
            "source_4/workspace/metadata/platemaps/2020_11_04_CPJUMP1/platemap/m.txt",
        ),
        ("JUMP-Target-1_compound_metadata.tsv", "metadata/JUMP-Target-1_compound_metadata.tsv"),
    ):
        shutil.copyfile(published / name, tmp_path / place)
    rows = shipped("cpjump1", tmp_path)
    assert Counter(is_control(row) for row in rows) == {True: 64, False: 320}
    assert not any(row.blank_control for row in rows)


def test_bbbc013s_wells_are_those_of_its_published_layout(real_data: Path) -> None:
    import csv

    rows = {row.well: row.metadata for row in shipped("bbbc013", real_data / "bbbc013_fields")}
    with (real_data / "bbbc013_fields/metadata.csv").open() as stream:
        published = {row["well"]: row for row in csv.DictReader(stream) if row["compound"] != "none"}
    assert set(rows) == set(published)
    for well, row in published.items():
        scale = {"nM": 1e-3, "uM": 1.0}[row["unit"]]
        dose = rows[well]["Metadata_Concentration"]
        assert rows[well]["Metadata_Compound"] == row["compound"]
        assert float(dose or 0) == pytest.approx(float(row["concentration"]) * scale)
