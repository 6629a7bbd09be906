"""What `inspect` shows of a store and of a data set: the numbers of their wells, and a page that holds all it needs."""

import csv
import hashlib
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

from cellbridge.cli import main
from cellbridge.data.intensity import fit_intensity
from cellbridge.data.overview import Glance, Glancing
from cellbridge.data.store import write_store
from cellbridge.errors import StoreError
from cellbridge.settings import validate
from cellbridge.stages.inspect import Config, run

CHANNELS = ("DNA", "ER")
NAMES = ("DMSO", '<script>alert("x")</script>', "$\\frac", '=HYPERLINK("http://x","y")')
WELLS = ("A01", "H12", "B03", "C04")
PICTURES = {"plate-1.png", "histogram-1.png", "histogram-2.png", "montage.png"}


def make_store(path: Path) -> np.ndarray:
    """Write three cells of each of four wells, half of each cell's crop its mask, and return the counts."""
    random = np.random.default_rng(0)
    counts = random.integers(1, 60000, (12, 2, 8, 8)).astype(np.uint16)
    masks = np.zeros((12, 8, 8), np.uint8)
    masks[:, :4] = 1
    obs = {
        "Metadata_Cell": [f"c{number}" for number in range(12)],
        "Metadata_Plate": ["P&1"] * 12,
        "Metadata_Well": [well for well in WELLS for _ in range(3)],
        "Metadata_Site": ["1"] * 12,
        "Metadata_Compound": [name for name in NAMES for _ in range(3)],
        "Metadata_Concentration": [""] * 12,
        "Metadata_pert_type": ["negcon"] * 3 + ["trt"] * 9,
        "Metadata_Split": ["train"] * 12,
    }
    write_store(
        path,
        obs=pd.DataFrame(obs),
        counts=counts,
        masks=masks,
        channels=CHANNELS,
        full_scale=65535,
        size_px=8,
        pixel_um=0.5,
        control="DMSO",
        intensity=fit_intensity({"P&1": counts}, channels=CHANNELS, full_scale=65535),
        attributes={"rejected": {"border": 6, "out_of_focus": 2}},
    )
    return counts


def make_plate(folder: Path) -> Path:
    """Write two wells of two fields: five round nuclei in one, none in the other."""
    folder.mkdir()
    random = np.random.default_rng(1)
    rows, columns = np.indices((96, 96))
    nearest = np.min(
        [np.hypot(rows - r, columns - c) for r, c in ((20, 20), (20, 70), (48, 48), (75, 20), (75, 70))], axis=0
    )
    table = []
    for well, level in (("A01", 20000.0), ("B02", 0.0)):
        for site in (1, 2):
            row: dict[str, Any] = {"Metadata_Plate": "P", "Metadata_Well": well, "Metadata_Site": site}
            for channel in CHANNELS:
                name = f"{well}_{site}_{channel}.tif"
                image = 1000 + level * (nearest <= 7) + random.normal(0, 20, (96, 96))
                tifffile.imwrite(folder / name, image.astype(np.uint16))
                row |= {f"FileName_{channel}": name}
            table.append(row | {"Metadata_Compound": "x" if well == "B02" else ""})
    with (folder / "load_data.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    keys = {"name": "small", "licence": "x", "citation": "x", "kind": "load_data", "tables": ["load_data.csv"]}
    keys |= {"channels": list(CHANNELS), "nucleus_channel": "DNA", "nucleus_px": 14, "plate_format": 96}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(keys))
    return folder


def tree(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def count_glances(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows, with every look at a field, by how many earlier looks are still held."""
    looked: list[weakref.ref[Glance]] = []
    held: list[int] = []
    look = Glancing.__call__

    def counted(glancing: Glancing, number: int) -> Glance:
        held.append(sum(seen() is not None for seen in looked))
        found = look(glancing, number)
        looked.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Glancing, "__call__", counted)
    return held


def wells_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "wells.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Path, dict[str, Any]]:
    """A store, its counts, what was made of it, and the summary."""
    folder = tmp_path_factory.mktemp("inspected")
    counts = make_store(folder / "s.zarr")
    before = tree(folder / "s.zarr")
    summary = run(validate(Config, {"path": str(folder / "s.zarr")}, source="test"), out=folder / "out")
    assert tree(folder / "s.zarr") == before
    return folder / "s.zarr", counts, folder / "out", summary


def test_wells_have_their_cells_and_the_mean_counts_over_their_masks(store: Any) -> None:
    _, counts, out, summary = store
    wells = {row["Metadata_Well"]: row for row in wells_of(out)}
    assert list(wells) == sorted(WELLS)
    for number, well in enumerate(WELLS):
        own = counts[3 * number : 3 * number + 3, :, :4]
        assert wells[well]["cells"] == "3"
        for index, channel in enumerate(CHANNELS):
            assert float(wells[well][f"mean_count_{channel}"]) == pytest.approx(own[:, index].mean(), rel=1e-5)
    assert [wells[well]["control"] for well in WELLS] == ["True", "False", "False", "False"]
    assert summary["rejected"] == {"border": 6, "out_of_focus": 2}


def test_the_page_holds_its_pictures_and_escapes_names(store: Any) -> None:
    _, _, out, _ = store
    assert {file.name for file in out.glob("*.png")} == PICTURES
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in out.glob("*.png"))
    page = (out / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(links) == len(PICTURES)
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "P&amp;1" in page


def test_crops_that_were_rejected_are_counted_by_reason_as_shares_of_all(store: Any) -> None:
    page = (store[2] / "report.html").read_text()
    assert re.findall(r"<tr><td>(border|out of focus)</td><td>(\d)</td><td>([\d.]+%)</td></tr>", page) == [
        ("border", "6", "30.0%"),
        ("out of focus", "2", "10.0%"),
    ]


def test_an_existing_folder_is_left_alone(store: Any) -> None:
    with pytest.raises(StoreError, match="exists already"):
        run(validate(Config, {"path": str(store[0])}, source="test"), out=store[2])


def test_nuclei_of_a_data_sets_fields_are_counted_one_at_a_time_and_damage_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_plate(tmp_path / "plate")
    (folder / "B02_2_ER.tif").write_bytes(b"")
    before = tree(folder)
    held = count_glances(monkeypatch)
    arguments = ["inspect", str(folder), "--sites-per-well", "2", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0, capsys.readouterr().err
    assert held == [0, 1, 1, 1]
    wells = {row["Metadata_Well"]: row for row in wells_of(tmp_path / "out")}
    assert {well: (row["fields"], row["cells"]) for well, row in wells.items()} == {
        "A01": ("2", "10"),
        "B02": ("1", "0"),
    }
    image = np.stack([tifffile.imread(folder / f"A01_{site}_DNA.tif") for site in (1, 2)])
    assert float(wells["A01"]["mean_count_DNA"]) == pytest.approx(image.mean(), rel=1e-5)
    assert "1 of 4 fields could not be read" in (tmp_path / "out/report.html").read_text()
    assert tree(folder) == before
