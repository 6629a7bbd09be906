"""Faults of formats with one row per plane, of names, of illumination functions, and of single texts, apart from any command."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.manifest import read_manifest
from cellbridge.data.readers.faults import apart, listed
from cellbridge.data.validation.plate import Plate, check_plate
from cellbridge.data.validation.problems import Findings, of_text
from cellbridge.errors import ManifestError

CHANNELS = ("DNA", "ER")


def write(folder: Path, **keys: Any) -> Path:
    """Write three wells of two channels as planes of a table, and as files whose names say what they show."""
    rows = []
    for number, well in enumerate(("A01", "A02", "A03")):
        for channel in CHANNELS:
            name = f"{well}_{channel}.tif"
            image = np.random.default_rng((number, len(channel))).integers(1, 60000, (8, 8)).astype(np.uint16)
            tifffile.imwrite(folder / name, image)
            rows.append(
                {"path": name, "channel": channel, "plate": "P", "well": well, "compound": "x" if number else "DMSO"}
                | {"pert_type": "trt" if number else "negcon"}
            )
    with (folder / "planes.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    given = {"name": "p", "licence": "x", "citation": "x", "kind": "planes", "tables": ["planes.csv"]}
    manifest = {**given, "channels": list(CHANNELS), "nucleus_channel": "DNA", **keys}
    (folder / "manifest.yaml").write_text(yaml.safe_dump({k: v for k, v in manifest.items() if v is not None}))
    return folder


def check(folder: Path, *, deep: bool = False) -> dict[str, list[str]]:
    """Return kind → what was found."""
    manifest, root = read_manifest(folder)
    findings = Findings()
    plate = Plate(manifest, root, folder / "manifest.yaml", deep=deep, all_cells=False, max_saturated=0.01)
    check_plate(plate, findings, share=lambda job, count: ((number, job(number)) for number in range(count)))
    return {kind: [problem.line for problem in found] for kind, found in findings.by_kind().items()}


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_fields_without_a_channel_are_listed_and_their_other_images_are_looked_at(tmp_path: Path) -> None:
    folder = write(tmp_path)
    text = (folder / "planes.csv").read_text().splitlines(keepends=True)
    (folder / "planes.csv").write_text("".join(line for line in text if "A02_ER" not in line and "A03_DNA" not in line))
    (folder / "A02_DNA.tif").write_bytes(b"")
    found = check(folder)
    assert found.keys() == {"missing_channel", "empty_file"}
    assert [line.partition(": ")[2] for line in found["missing_channel"]] == [
        f"plate P well {well} site 1: no {channel} → Add the images, add or mend their rows, or leave the channel or the field out."
        for well, channel in (("A02", "ER"), ("A03", "DNA"))
    ]


def test_an_unknown_channel_and_a_plane_listed_twice_do_not_hide_each_other(tmp_path: Path) -> None:
    folder = write(tmp_path)
    replaced(folder / "planes.csv", "A02_ER.tif,ER", "A02_ER.tif,EX")
    replaced(folder / "planes.csv", "A03_ER.tif,ER", "A03_ER.tif,DNA")
    found = check(folder)
    assert {kind: len(lines) for kind, lines in found.items()} == {"row": 1, "duplicate": 1, "missing_channel": 2}
    assert "planes.csv row 5" in found["row"][0]


def test_names_that_do_not_fit_the_pattern_are_listed_one_by_one(tmp_path: Path) -> None:
    keys = {
        "kind": "pattern",
        "tables": None,
        "folders": ["."],
        "constants": {"Metadata_Plate": "P", "Metadata_Compound": "", "Metadata_pert_type": "negcon"},
    }
    folder = write(tmp_path, **keys, pattern=r"(?P<well>[A-Z]\d\d)_(?P<channel>\w+)\.tif")
    assert check(folder) == {}
    for number in range(7):
        (folder / f"other{number}.tif").write_bytes(b"x")
    (folder / "A01_DNA.tif.part").write_bytes(b"x")
    found = check(folder)
    assert {kind: len(lines) for kind, lines in found.items()} == {"row": 7, "incomplete_file": 1}


@pytest.mark.parametrize("value", [1.0, np.nan, 0.0, 100.0])
def test_an_illumination_function_is_found_where_it_cannot_be_used(value: float, tmp_path: Path) -> None:
    folder = write(tmp_path)
    rows = [
        {"Metadata_Plate": "P", "Metadata_Well": well, "Metadata_Compound": "", "Metadata_pert_type": "negcon"}
        | {f"FileName_{channel}": f"{well}_{channel}.tif" for channel in CHANNELS}
        | {"FileName_IllumDNA": "light.npy"}
        for well in ("A01", "A02")
    ]
    with (folder / "load_data.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    replaced(folder / "manifest.yaml", "kind: planes", "kind: load_data")
    replaced(folder / "manifest.yaml", "planes.csv", "load_data.csv")
    light = np.ones((8, 8))
    light[3, 3] = value
    np.save(folder / "light.npy", light)
    found = check(folder)
    assert found.keys() == (set() if value == 1.0 else {"illumination"})
    told = found.get("illumination", [])
    assert len(told) == len(found)  # once, though two fields are lit by it
    assert all("light.npy" in line for line in told)


def test_what_validate_lists_still_ends_any_other_reading(tmp_path: Path) -> None:
    folder = write(tmp_path)
    replaced(folder / "planes.csv", "A02_ER.tif", "../A02_ER.tif")
    assert check(folder).keys() == {"row", "missing_channel"}
    with pytest.raises(ManifestError, match=r"planes\.csv row 5 path: .* outside the root"):
        read_catalogue(*read_manifest(folder))


def test_faults_are_listed_within_their_block_only() -> None:
    with listed() as faults, apart("row"):
        raise ManifestError("first")
    assert [(fault.kind, str(fault.error)) for fault in faults] == [("row", "first")]
    with pytest.raises(ManifestError, match="second"), apart("row"):
        raise ManifestError("second")


@pytest.mark.parametrize(
    ("text", "place", "found", "remedy"),
    [
        ("a.csv row 7 well: Q25 is outside. Fix it.", ("a.csv", 7, "well"), "Q25 is outside", "Fix it."),
        (
            "/d/x y.tif: is empty (0 bytes). Copy it again.",
            ("/d/x y.tif", None, ""),
            "is empty (0 bytes)",
            "Copy it again.",
        ),
        ('plate "0.5" has no control: x. Correct it.', ("m", None, ""), 'plate "0.5" has no control: x', "Correct it."),
        ("no sentence at all", ("m", None, ""), "no sentence at all", "Correct it."),
    ],
)
def test_an_errors_line_is_taken_apart(text: str, place: tuple[Any, ...], found: str, remedy: str) -> None:
    problem = of_text("row", text, default="m")
    assert (problem.file, problem.row, problem.field) == place
    assert (problem.found, problem.remedy) == (found, remedy)
