"""Rows of the public fault list that are about reading: 15, 17, 19, 23, 33 and 37, through the command line.

Row 29 (archives) is tested with the archives, row 23 for every format in the readers' contract.
"""

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from cellbridge.cli import main
from cellbridge.data.annotation import condition_of
from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.images import file_md5
from cellbridge.data.manifest import read_manifest

CHANNELS = ("DNA", "ER", "AGP")
FORMS: list[dict[str, Any]] = [{}, {"compression": "zlib"}, {"compression": "lzw"}]


def write(folder: Path, *, fields: int, compounds: tuple[str, ...] = ("x",)) -> Path:
    """Write fields of three channels, one TIFF form each, with their md5 sums; the first well is the control."""
    rows = []
    random = np.random.default_rng(0)
    for number in range(fields):
        compound = compounds[number % len(compounds)] if number else ""
        for channel, form in zip(CHANNELS, FORMS, strict=True):
            name = f"images/{number:03d}_{channel}.tif"
            (folder / "images").mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / name, random.integers(1, 60000, (16, 16)).astype(np.uint16), **form)
            place = {
                "path": name,
                "channel": channel,
                "plate": "0001053597806",
                "well": "A01" if not number else "A02",
                "site": number,
            }
            rows.append({**place, "compound": compound, "md5": file_md5(folder / name)})
    with (folder / "planes.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    described = {
        "name": "faulty",
        "licence": "x",
        "citation": "x",
        "kind": "planes",
        "tables": ["planes.csv"],
        "nucleus_px": 5,
    }
    (folder / "manifest.yaml").write_text(
        yaml.safe_dump({**described, "channels": list(CHANNELS), "nucleus_channel": "DNA"})
    )
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def prepare(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code and the one line of the error."""
    code = main(
        [
            "prepare",
            "--manifest",
            str(folder),
            "--set",
            "illumination=none",
            "--set",
            "crop_px=8",
            "--set",
            "size_px=8",
            "--out",
            str(out),
        ]
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cellbridge")]
    return code, lines[-1] if lines else ""


def tree(folder: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.rglob("*")) if file.is_file()
    }


def test_row_15_truncated_images_are_all_named_in_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "in", fields=80)
    damaged = ["images/007_DNA.tif", "images/040_ER.tif", "images/079_AGP.tif"]
    for name in damaged:
        cut(folder / name)
    code, line = prepare(folder, tmp_path / "s.zarr", capsys)
    assert code == 2
    assert "3 of 240 images cannot be used" in line
    assert all(name in line for name in damaged)
    assert not (tmp_path / "s.zarr").exists()


def test_row_17_missing_empty_changed_and_half_copied_files_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "in", fields=8)
    images = folder / "images"
    (images / "000_ER.tif").unlink()
    (images / "001_DNA.tif").write_bytes(b"")
    tifffile.imwrite(images / "002_DNA.tif", np.ones((16, 16), np.uint16))
    (images / "003_AGP.tif").rename(images / "003_AGP.tif.incomplete")
    for number in (4, 5):
        (images / f"00{number}_AGP.tif").unlink()
    code, line = prepare(folder, tmp_path / "s.zarr", capsys)
    assert code == 2
    assert "6 of 24 images cannot be used" in line
    for text in (
        "no such file",
        "is empty (0 bytes)",
        "is not the table's",
        "003_AGP.tif.incomplete, a copy that was not finished",
        "… 1 more",
    ):
        assert text in line


def test_row_19_and_33_awkward_names_stay_the_same_texts(tmp_path: Path) -> None:
    awkward = ("NA", "None", "nan", "null", '=HYPERLINK("http://x","y")', "+1", "@SUM(1)")
    folder = write(tmp_path / "in", fields=1 + len(awkward), compounds=(awkward[-1], *awkward[:-1]))
    before = tree(folder)
    rows, control = read_catalogue(*read_manifest(folder))
    found = {row.metadata["Metadata_Compound"] for row in rows}
    assert found == {control, *awkward}
    assert {row.plate for row in rows} == {"0001053597806"}
    assert {condition_of(row, control=control).compound for row in rows} == found
    assert tree(folder) == before  # row 37


def test_row_23_paths_that_leave_the_root_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "in", fields=2)
    text = (folder / "planes.csv").read_text()
    for path in ("../../../etc/passwd", "/etc/passwd"):
        (folder / "planes.csv").write_text(text.replace("images/001_ER.tif", path))
        code, line = prepare(folder, tmp_path / "s.zarr", capsys)
        assert code == 2
        assert "planes.csv row 6 path" in line
        assert "outside the root" in line


def test_row_37_inputs_are_opened_for_reading_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "in", fields=3)
    cut(folder / "images/002_ER.tif")
    for file in folder.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    before = tree(folder)
    code, _ = prepare(folder, tmp_path / "s.zarr", capsys)
    assert code == 2
    assert tree(folder) == before
    for file in (folder, folder / "images"):
        file.chmod(0o755)
