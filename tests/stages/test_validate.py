"""Planted faults, each found by its kind, all in one pass; and plates and stores without any, which are clean."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

from cellbridge.cli import main
from cellbridge.data.images import file_md5
from cellbridge.data.intensity import fit_intensity
from cellbridge.data.store import write_store
from cellbridge.errors import ProblemsFound
from cellbridge.settings import validate as settings
from cellbridge.stages.validate import Config, run

PLATE = "0001053597806"
NEGCON = "Metadata_pert_type=negcon"
CHANNELS = ("DNA", "ER", "AGP")
FORMS: tuple[dict[str, Any], ...] = ({}, {"compression": "zlib"}, {"compression": "lzw"})
WELLS = {"A01": "", "A02": "", "B01": "NA", "B02": '=HYPERLINK("http://x","y")', "C01": "taxol"}


def write_plate(folder: Path) -> Path:
    """Write five wells of two sites in three TIFF forms, with md5 sums and a plate map."""
    random = np.random.default_rng(0)
    rows = []
    for well in WELLS:
        for site in (1, 2):
            row: dict[str, Any] = {"Metadata_Plate": PLATE, "Metadata_Well": well, "Metadata_Site": site}
            for channel, form in zip(CHANNELS, FORMS, strict=True):
                name = f"images/{well}_{site}_{channel}.tif"
                write_image(folder / name, random.integers(1, 60000, (16, 16)), **form)
                row |= {f"FileName_{channel}": name, f"MD5Digest_{channel}": file_md5(folder / name)}
            rows.append(row)
    write_rows(folder / "load_data.csv", rows)
    write_rows(folder / "maps/barcode_platemap.csv", [{"Assay_Plate_Barcode": PLATE, "Plate_Map_Name": "m"}])
    wells = [
        {"well_position": well, "compound": name, "concentration": 0.5 if name else ""}
        | {"pert_type": "trt" if name else "negcon"}
        for well, name in WELLS.items()
    ]
    write_rows(folder / "maps/platemap/m.txt", wells, delimiter="\t")
    keys = {"name": "planted", "licence": "x", "citation": "x", "kind": "load_data", "tables": ["load_data.csv"]}
    keys |= {"platemaps": ["maps"], "channels": list(CHANNELS), "nucleus_channel": "DNA", "plate_format": 96}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(keys))
    return folder


def write_image(file: Path, image: Any, *, dtype: Any = np.uint16, **form: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(file, np.asarray(image).astype(dtype), **form)


def write_rows(file: Path, rows: list[dict[str, Any]], *, delimiter: str = ",") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def changed(file: Path, *pairs: tuple[str, str]) -> None:
    data = file.read_text(encoding="utf-8")
    for old, new in pairs:
        assert old in data
        data = data.replace(old, new, 1)
    file.write_bytes(data.encode())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def without_row(folder: Path, well: str, site: int) -> None:
    lines = (folder / "load_data.csv").read_text().splitlines(keepends=True)
    (folder / "load_data.csv").write_text("".join(line for line in lines if f",{well},{site}," not in line))


def found(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON of the command line."""
    code = main(["validate", str(folder), "--json", *flags])
    out = capsys.readouterr().out
    return code, json.loads(out)


def image(folder: Path, name: str) -> Path:
    return folder / "images" / f"{name}.tif"


DNA, NOISE = "A01_1_DNA", np.random.default_rng(9).integers(1, 60000, (16, 16))

FAULTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "missing file": ("missing_file", lambda f: image(f, DNA).unlink()),
    "half a copy": ("incomplete_file", lambda f: image(f, DNA).rename(image(f, DNA).with_suffix(".tif.part"))),
    "no bytes": ("empty_file", lambda f: image(f, DNA).write_bytes(b"")),
    "truncated raw": ("damaged_file", lambda f: cut(image(f, "A01_1_DNA"))),
    "truncated zlib": ("damaged_file", lambda f: cut(image(f, "A01_1_ER"))),
    "truncated LZW": ("damaged_file", lambda f: cut(image(f, "A01_1_AGP"))),
    "another shape": ("shape", lambda f: write_image(image(f, DNA), NOISE[:8])),
    "several planes": ("shape", lambda f: write_image(image(f, DNA), np.stack([NOISE, NOISE]))),
    "8 bits": ("bit_depth", lambda f: write_image(image(f, DNA), NOISE % 256, dtype=np.uint8)),
    "floats": ("bit_depth", lambda f: write_image(image(f, DNA), NOISE, dtype=np.float32)),
    "no site": ("missing_site", lambda f: without_row(f, "B01", 2)),
    "no channel column": (
        "missing_channel",
        lambda f: changed(f / "load_data.csv", ("FileName_ER", "Name_ER")),
    ),
    "no path": ("row", lambda f: changed(f / "load_data.csv", ("images/B01_1_ER.tif", ""))),
    "a path out of the root": (
        "row",
        lambda f: changed(f / "load_data.csv", ("images/B01_1_ER.tif", "../../etc/passwd")),
    ),
    "no well of the plate": ("row", lambda f: changed(f / "load_data.csv", (",B01,1,", ",Q25,1,"))),
    "the same file twice": (
        "duplicate",
        lambda f: changed(f / "load_data.csv", ("images/B01_1_ER.tif", "images/A01_1_ER.tif")),
    ),
    "the same field twice": ("duplicate", lambda f: changed(f / "load_data.csv", (",B01,2,", ",B01,1,"))),
    "plate not in the map": (
        "platemap",
        lambda f: changed(f / "maps/barcode_platemap.csv", (PLATE, "P2")),
    ),
    "well not in the map": ("platemap", lambda f: changed(f / "maps/platemap/m.txt", ("B01", "D09"))),
    "well twice in the map": ("platemap", lambda f: changed(f / "maps/platemap/m.txt", ("B01", "a1"))),
    "no concentration": ("condition", lambda f: changed(f / "maps/platemap/m.txt", ("NA\t0.5", "NA\thalf"))),
    "no control": ("control", lambda f: changed(f / "maps/platemap/m.txt", *[("\t\t\tnegcon", "\tx\t\ttrt")] * 2)),
    "a row too short": ("row", lambda f: changed(f / "load_data.csv", (f"{PLATE},B01,1,", f"{PLATE},B01,"))),
    "no table": ("table", lambda f: (f / "load_data.csv").unlink()),
}
DEEP: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "another md5": ("changed_file", lambda f: write_image(image(f, DNA), NOISE)),
    "zeros": ("zero", lambda f: write_image(image(f, DNA), NOISE * 0)),
    "one value": ("constant", lambda f: write_image(image(f, DNA), NOISE * 0 + 7)),
    "saturated": ("saturated", lambda f: write_image(image(f, DNA), np.where(NOISE > 50000, 65535, NOISE))),
    "saturated at 12 bits": ("saturated", lambda f: write_image(image(f, DNA), np.minimum(NOISE // 10, 4095))),
    "not a number": ("nan", lambda f: write_image(image(f, DNA), NOISE / 0.0 * 0.0, dtype=np.float32)),
    "the same pixels": ("duplicate", lambda f: image(f, DNA).write_bytes(image(f, "B01_1_DNA").read_bytes())),
}


def test_a_plate_without_faults_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plate(tmp_path)
    for flags in ((), ("--deep",), ("--deep", "--strict")):
        code, summary = found(folder, capsys, *flags)
        assert (code, summary["clean"], summary["all"]) == (0, True, [])
    assert summary["looked_at"] | {"bytes": 0} == {
        "tables": 3,
        "fields": 10,
        "images": 30,
        "images_read_whole": 30,
        "bytes": 0,
    }


def test_without_deep_it_says_how_much_it_did_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(write_plate(tmp_path))]) == 0
    assert "the pixels of 30 images of" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*FAULTS, *DEEP])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_planted_fault_is_found_by_its_kind(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plate(tmp_path)
    kind, plant = (FAULTS | DEEP)[name]
    with np.errstate(all="ignore"):
        plant(folder)
    code, summary = found(folder, capsys, *(["--deep"] if name in DEEP else []))
    assert code == 2
    assert kind in summary["kinds"], summary["report"]
    first = summary["kinds"][kind]["first"][0]
    assert first["remedy"]
    assert first["found"]
    assert first["file"]
    others = set(summary["kinds"]) - {kind}
    # What follows from the fault is all right; nothing is found that has nothing to do with it.
    following = {"changed_file", "empty_well", "bit_depth", "missing_site", "condition", "control", "platemap"}
    assert others <= following, summary["report"]


def test_all_faults_are_told_in_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plate(tmp_path)
    without_row(folder, "C01", 2)
    image(folder, "A01_1_DNA").unlink()
    cut(image(folder, "A01_1_ER"))
    image(folder, "A01_2_DNA").write_bytes(b"")
    write_image(image(folder, "A02_1_AGP"), NOISE * 0)
    changed(folder / "load_data.csv", ("images/B01_1_ER.tif", "../x.tif"))
    changed(folder / "maps/platemap/m.txt", ("NA\t0.5", "NA\thalf"), ("B02", "H12"))
    code, summary = found(folder, capsys, "--deep")
    assert code == 2
    kinds = {kind: entry["count"] for kind, entry in summary["kinds"].items()}
    expected = {"missing_site": 1, "missing_file": 1, "damaged_file": 1, "empty_file": 1, "zero": 1, "changed_file": 1}
    assert kinds == expected | {"row": 1, "platemap": 1, "condition": 1, "empty_well": 1}
    assert summary["problems"] == len(summary["all"]) - 1 == 9


def test_row_15_and_17_more_than_five_are_counted_and_all_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_plate(tmp_path)
    gone = sorted((folder / "images").glob("*_DNA.tif"))
    for file in gone:
        file.unlink()
    assert main(["validate", str(folder)]) == 2
    shown = capsys.readouterr()
    assert "missing_file: 10" in shown.out
    assert "… 5 more" in shown.out
    last = shown.err.splitlines()[-1]
    assert last.startswith("cellbridge validate: ProblemsFound: ")
    assert "10 missing_file" in last
    _, summary = found(folder, capsys)
    assert all(any(str(file) in problem["found"] for problem in summary["all"]) for file in gone)
    first = summary["all"][0]
    assert (first["file"], first["row"]) == ("load_data.csv", 2)
    assert first["field"] == f"plate {PLATE} well A01 site 1 DNA"


def test_forms_of_tables_are_remarks_that_strict_takes_for_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_plate(tmp_path)
    table = folder / "maps/platemap/m.txt"
    text = table.read_text().replace("\t0.5", "\t0.5 µM").replace("\t", ";").replace("\n", "\r\n")
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())
    code, summary = found(folder, capsys)
    assert code == 0
    counts = {kind: entry["count"] for kind, entry in summary["kinds"].items()}
    assert counts == {"byte_order_mark": 1, "crlf": 1, "semicolon": 1, "micro_sign": 3}
    assert summary["kinds"]["micro_sign"]["first"][0] | {"remedy": "", "file": ""} == {
        "kind": "micro_sign",
        "file": "",
        "row": 4,
        "field": "concentration",
        "found": '"0.5 µM" has its unit with a micro sign',
        "remedy": "",
    }
    assert found(folder, capsys, "--strict")[0] == 2


def test_what_a_plate_map_says_wrongly_is_told_once_with_its_own_row_and_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_plate(tmp_path)
    changed(folder / "maps/platemap/m.txt", ("NA\t0.5", "NA\t0,5"))
    (problem,) = found(folder, capsys)[1]["all"]
    assert (problem["kind"], problem["file"]) == ("condition", "maps/platemap/m.txt")
    assert (problem["row"], problem["field"]) == (4, "concentration")
    changed(folder / "maps/barcode_platemap.csv", (PLATE, "P2"))
    (problem,) = [one for one in found(folder, capsys)[1]["all"] if one["kind"] == "platemap"]
    assert problem["found"] == f'plate "{PLATE}" is in no barcode_platemap.csv (in 10 rows)'


def test_wells_that_an_empty_compound_alone_makes_control_are_remarked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_plate(tmp_path)
    changed(folder / "maps/platemap/m.txt", ("\tnegcon", "\t"))
    code, summary = found(folder, capsys)
    assert (code, list(summary["kinds"])) == (0, ["blank_control"])
    text = f"1 of 5 wells are control by an empty compound alone (plate {PLATE} well A01)"
    assert summary["all"][0]["found"] == text
    assert found(folder, capsys, "--strict")[0] == 2


def test_an_empty_compound_that_the_manifest_calls_control_is_no_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_plate(tmp_path)
    changed(folder / "maps/platemap/m.txt", ("\tnegcon", "\t"))
    changed(folder / "manifest.yaml", ("channels:", "control: Metadata_Compound=\nchannels:"))
    assert found(folder, capsys, "--strict")[0] == 0


def test_treated_wells_by_themselves_are_a_remark_and_not_the_manifests_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, summary = found(write_plate(tmp_path), capsys, "--wells", "B01")
    assert (code, list(summary["kinds"])) == (0, ["control_not_asked_for"])
    assert (
        summary["all"][0]["found"]
        == f'control: plate "{PLATE}" has no control among the wells asked for: none of them has {NEGCON}'
    )
    assert summary["all"][0]["remedy"].startswith("Add control wells of the plate to --wells")


def test_a_control_query_of_a_column_that_no_table_has_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_plate(tmp_path)
    changed(folder / "manifest.yaml", ("channels:", "control: Metadata_pert_tpe=negcon\nchannels:"))
    code, summary = found(folder, capsys)
    assert (code, list(summary["kinds"])) == (2, ["condition"])
    assert summary["all"][0]["remedy"].startswith('Correct it. Did you mean "Metadata_pert_type"?')


def test_what_is_wrong_with_the_manifest_is_of_that_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plate(tmp_path)
    changed(folder / "manifest.yaml", ("channels:", "leave_out: [Brightfield]\nchannels:"))
    assert list(found(folder, capsys)[1]["kinds"]) == ["manifest"]


def test_what_a_table_holds_does_nothing_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plate(tmp_path)
    changed(folder / "maps/platemap/m.txt", ("NA\t0.5", "NA\t\x1b[2J"))
    assert main(["validate", str(folder)]) == 2
    assert "\x1b" not in capsys.readouterr().out


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    folder = write_plate(tmp_path)
    image(folder, "C01_2_ER").unlink()
    write_image(image(folder, "A02_1_AGP"), NOISE * 0)
    told = []
    for workers in (1, 2):
        with pytest.raises(ProblemsFound) as raised:
            run(settings(Config, {"path": str(folder), "deep": True, "workers": workers}, source="test"))
        told.append(raised.value.summary["all"])
    assert told[0] == told[1]


def test_neither_a_manifest_nor_a_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path)]) == 2
    assert "is neither a manifest.yaml" in capsys.readouterr().err


# --- stores


def make_store(path: Path, *, cells: int = 12) -> Path:
    random = np.random.default_rng(1)
    counts = random.integers(1, 60000, (cells, 2, 8, 8)).astype(np.uint16)
    text = {
        "Metadata_Cell": [f"c{number}" for number in range(cells)],
        "Metadata_Plate": [PLATE] * cells,
        "Metadata_Well": [f"A{number // 2 + 1:02d}" for number in range(cells)],
        "Metadata_Site": ["1"] * cells,
        "Metadata_Compound": ["DMSO"] * (cells // 2) + ["NA"] * (cells - cells // 2),
        "Metadata_Concentration": [""] * (cells // 2) + ["1"] * (cells - cells // 2),
        "Metadata_pert_type": ["negcon"] * (cells // 2) + ["trt"] * (cells - cells // 2),
        "Metadata_Split": ["train"] * cells,
    }
    maps = fit_intensity({PLATE: counts}, channels=["DNA", "ER"], full_scale=65535)
    write_store(
        path,
        obs=pd.DataFrame(text),
        counts=counts,
        masks=np.ones((cells, 8, 8), np.uint8),
        channels=["DNA", "ER"],
        full_scale=65535,
        size_px=8,
        pixel_um=None,
        control="DMSO",
        intensity=maps,
    )
    return path


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_whole_store_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "s.zarr")
    assert found(store, capsys)[0] == 0
    code, summary = found(store, capsys, "--deep", "--strict")
    assert (code, summary["all"]) == (0, [])
    assert summary["looked_at"]["cells_read_whole"] == summary["looked_at"]["cells"] == 12


def test_a_lost_shard_is_found_without_reading_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "s.zarr")
    (store / "images/c/0/0/0/0").unlink()
    code, summary = found(store, capsys)
    assert code == 2
    assert summary["kinds"]["missing_file"]["first"][0]["file"].endswith("images/c/0/0/0/0")
    assert found(store, capsys, "--deep")[1]["kinds"].keys() == {"missing_file", "damaged_cell"}


def test_a_flipped_byte_is_found_and_its_cell_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "s.zarr")
    flip(store / "images/c/0/0/0/0", 40)
    assert found(store, capsys)[0] == 0  # the size is the same, and no pixel was read
    code, summary = found(store, capsys, "--deep")
    assert code == 2
    assert summary["kinds"].keys() == {"changed_file", "damaged_cell"}
    assert [problem["row"] for problem in summary["kinds"]["damaged_cell"]["first"]] == [0]
    assert summary["looked_at"]["cells_read_whole"] == 11


@pytest.mark.parametrize("name", ["zarr.json", "images/zarr.json", "manifest.json"])
def test_a_store_without_its_json_is_told_of_and_not_a_crash(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "s.zarr")
    (store / name).unlink()
    code, summary = found(store, capsys, "--deep")
    assert code == 2
    assert {"missing_file", "store"} & summary["kinds"].keys()


def test_faults_of_the_content_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = 6
    counts = np.random.default_rng(2).integers(1, 60000, (cells, 1, 8, 8)).astype(np.uint16)
    counts[1], counts[2], counts[4] = 0, counts[0], 9
    obs = {name: [""] * cells for name in ("Metadata_Site", "Metadata_Concentration")}
    obs |= {"Metadata_Cell": list("abcdef"), "Metadata_Plate": ["P"] * cells, "Metadata_Well": ["A01"] * cells}
    obs |= {"Metadata_Compound": ["DMSO"] * cells, "Metadata_pert_type": ["negcon"] * cells}
    table = pd.DataFrame(obs | {"Metadata_Split": ["train", "train", "test", "train", "train", "train"]})
    table["Quality_Focus_DNA"] = [0.5, np.nan, 0.5, 0.5, 0.5, 0.5]
    write_store(
        tmp_path / "s.zarr",
        obs=table,
        counts=counts,
        channels=["DNA"],
        full_scale=65535,
        size_px=8,
        pixel_um=None,
        control="DMSO",
        intensity=fit_intensity({"P": counts}, channels=["DNA"], full_scale=65535),
    )
    code, summary = found(tmp_path / "s.zarr", capsys, "--deep")
    assert code == 2
    counted = {kind: entry["count"] for kind, entry in summary["kinds"].items()}
    assert counted == {"zero": 1, "constant": 1, "leak": 2, "not_finite": 1}  # the well, and the pixels of a and c
