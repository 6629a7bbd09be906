"""A preparation that was stopped, however often, by one process or by several, writes the store of an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_prepare as plates

from cellbridge import runs
from cellbridge.data.cutting import Cutting, Looking
from cellbridge.data.store import describe, open_store
from cellbridge.errors import ImageError

SETTINGS = {"illumination": "estimate", "illumination_min_fields": 4, "split": {"by": "plate", "test": ["P2"]}}
FIELDS = 8


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plates.write_plate(tmp_path_factory.mktemp("plate"))


@pytest.fixture(scope="module")
def undisturbed(plate: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "s.zarr"
    plates.prepare(plate, out, **SETTINGS)
    return plates.content(out)


class Counted:
    """Counts calls of a job, and ends the process's work at one of them as Ctrl-C would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type, *, stop_at: int | None = None):
        self.calls: list[int] = []
        do = kind.__call__

        def call(job: Any, number: int) -> Any:
            if len(self.calls) == stop_at:
                raise KeyboardInterrupt
            self.calls.append(number)
            return do(job, number)

        monkeypatch.setattr(kind, "__call__", call)


@pytest.mark.parametrize(("kind", "stop_at"), [(Looking, 0), (Looking, 5), (Cutting, 0), (Cutting, 3), (Cutting, 7)])
def test_it_goes_on_where_it_was_stopped_to_the_same_bytes(
    plate: Path, undisturbed: dict[str, str], tmp_path: Path, kind: type, stop_at: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Counted(patch, kind, stop_at=stop_at)
        with pytest.raises(KeyboardInterrupt):
            plates.prepare(plate, tmp_path / "s.zarr", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [".s.zarr.preparing"]
    with pytest.MonkeyPatch.context() as patch:
        again = Counted(patch, kind)
        plates.prepare(plate, tmp_path / "s.zarr", **SETTINGS)
    assert again.calls == list(range(stop_at, FIELDS))
    assert plates.content(tmp_path / "s.zarr") == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


@pytest.fixture
def stopped(plate: Path, tmp_path: Path) -> Path:
    """Where a preparation lies that was stopped before its store was written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cellbridge.stages.prepare.write_store", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plates.prepare(plate, tmp_path / "s.zarr", **SETTINGS)
    return tmp_path / "s.zarr"


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_damaged_piece_is_made_again(plate: Path, undisturbed: dict[str, str], stopped: Path) -> None:
    folder = stopped.with_name(".s.zarr.preparing")
    cells, looks = sorted((folder / "cells").iterdir()), sorted((folder / "looks").iterdir())
    assert len(cells) == len(looks) == FIELDS
    cells[2].write_bytes(cells[2].read_bytes()[:-9])
    cells[5].write_bytes(bytes(reversed(cells[5].read_bytes())))
    looks[6].unlink()
    with pytest.MonkeyPatch.context() as patch:
        cut, looked = Counted(patch, Cutting), Counted(patch, Looking)
        plates.prepare(plate, stopped, **SETTINGS)
    assert (cut.calls, looked.calls) == ([2, 5], [6])
    assert plates.content(stopped) == undisturbed


def test_only_what_depends_on_a_changed_setting_is_made_again(plate: Path, stopped: Path, tmp_path: Path) -> None:
    changed = {**SETTINGS, "split": {"by": "well", "test": ["B03"]}, "intensity_reference": "all", "workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        cut = Counted(patch, Cutting)
        plates.prepare(plate, stopped, **changed)
    assert cut.calls == []
    plates.prepare(plate, tmp_path / "fresh.zarr", **changed)
    assert plates.content(stopped) == plates.content(tmp_path / "fresh.zarr")


def test_an_image_that_was_changed_meanwhile_is_read_again(stopped: Path, plate: Path, tmp_path: Path) -> None:
    import tifffile

    file = plate / "images/P2/C04_ER.tif"
    before = file.read_bytes()
    image = tifffile.imread(file)
    image[40:60, 40:60] += 1000
    try:
        tifffile.imwrite(file, image, compression="zlib")
        with pytest.MonkeyPatch.context() as patch:
            looked, cut = Counted(patch, Looking), Counted(patch, Cutting)
            plates.prepare(plate, stopped, **SETTINGS)
        assert looked.calls == [6]
        assert cut.calls == [4, 5, 6, 7]  # the light of the whole plate depends on it
        plates.prepare(plate, tmp_path / "fresh.zarr", **SETTINGS)
        assert plates.content(stopped) == plates.content(tmp_path / "fresh.zarr")
    finally:
        file.write_bytes(before)


def test_several_processes_write_the_bytes_of_one(plate: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    plates.prepare(plate, tmp_path / "s.zarr", workers=2, **SETTINGS)
    assert plates.content(tmp_path / "s.zarr") == undisturbed


def test_several_processes_tell_of_every_damaged_image(plate: Path, tmp_path: Path) -> None:
    folder = plates.spoil(plate, tmp_path / "in", plates.truncate)
    with pytest.raises(ImageError, match="3 of 24 images cannot be used"):
        plates.prepare(folder, tmp_path / "out" / "s.zarr", workers=2, **SETTINGS)
    assert not any((tmp_path / "out").iterdir())


def test_the_commit_and_the_place_are_told_beside_the_store_and_are_no_part_of_its_hash(
    plate: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(plate, moved)
    monkeypatch.setattr(runs, "_commit", lambda: "0123abcd")
    plates.prepare(moved, tmp_path / "s.zarr", **SETTINGS)
    assert plates.content(tmp_path / "s.zarr") == undisturbed
    told = json.loads((tmp_path / "s.zarr" / runs.PROVENANCE).read_text())
    assert told["commit"] == "0123abcd"
    assert told["config"]["manifest"] == str(moved)
    assert runs.verify_directory(tmp_path / "s.zarr") == []
    assert str(moved) not in json.dumps(describe(tmp_path / "s.zarr").attributes["config"])


def test_crops_are_resumed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellbridge.data.cutting.CROPS_AT_ONCE", 3)
    folder = plates.write_crops(tmp_path / "in")
    settings = {"crop_px": 28, "size_px": 14, "split": {"test": ["P2"]}}
    plates.prepare(folder, tmp_path / "whole.zarr", **settings)
    with pytest.MonkeyPatch.context() as patch:
        Counted(patch, Cutting, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            plates.prepare(folder, tmp_path / "s.zarr", **settings)
    with pytest.MonkeyPatch.context() as patch:
        again = Counted(patch, Cutting)
        plates.prepare(folder, tmp_path / "s.zarr", **settings)
    assert again.calls == [2]
    assert plates.content(tmp_path / "s.zarr") == plates.content(tmp_path / "whole.zarr")


# --- real kills


def large_plate(folder: Path, *, wells: int, sites: int, field_px: int) -> Path:
    """A plate of small fields: three stains, a handful of cells each, written quickly."""
    import tifffile

    from cellbridge.data.layout import SHAPES, well_name

    rows, columns = SHAPES[384]
    names = [well_name(r, c) for r in range(rows) for c in range(columns)][:wells]
    listed, layout = [], []
    for index, well in enumerate(names):
        compound = "" if index % 6 == 0 else f"compound{index % 5}"
        layout.append(f"{well}\t{compound}\t{1 if compound else ''}\n")
        for site in range(1, sites + 1):
            row = {"Metadata_Plate": "P1", "Metadata_Well": well, "Metadata_Site": site}
            for name, plane in zip(plates.CHANNELS, small_field(1000 * index + site, field_px), strict=True):
                file = folder / "images" / f"{well}_s{site}_{name}.tif"
                file.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(file, plane)
                row |= {f"FileName_{name}": file.name, f"PathName_{name}": "images"}
            listed.append(row)
    plates.write_csv(folder / "load_data.csv", listed)
    plates.write_csv(folder / "maps/barcode_platemap.csv", [{"Assay_Plate_Barcode": "P1", "Plate_Map_Name": "m"}])
    (folder / "maps/platemap").mkdir()
    (folder / "maps/platemap/m.txt").write_text(f"well_position\tcompound\tconcentration\n{''.join(layout)}")
    plates.write_manifest(folder)
    return folder


def small_field(seed: int, size: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rows, columns = np.indices((size, size))
    centres = draw.uniform(10, size - 10, (max(size // 20, 2), 2))
    distance = np.min([np.hypot(rows - r, columns - c) for r, c in centres], axis=0)
    level = np.stack([distance <= 6, distance <= 11, distance <= 9]) * np.array([0.3, 0.35, 0.4])[:, None, None]
    return (40000 * (0.03 + level) + draw.normal(0, 120, level.shape)).clip(0).astype(np.uint16)


def prepare_command(folder: Path, out: Path) -> list[str]:
    settings = ["--manifest", str(folder), "--set", "crop_px=24", "--set", "size_px=24", "--out", str(out)]
    return [sys.executable, "-m", "cellbridge", "prepare", *settings]


def undisturbed_store(folder: Path, out: Path) -> None:
    subprocess.run(prepare_command(folder, out), check=True, capture_output=True)


def killed_until_done(folder: Path, out: Path, *, kills: int, seed: int, pieces: int) -> list[int]:
    """Prepare with the command line until it is through, killed as often at random stages of the work; return how many pieces each kill found.

    Parameters
    ----------
    pieces : how many there are in all before the store is written.
    """
    begun = out.with_name(f".{out.name}.preparing")
    command = [*prepare_command(folder, out), "--set", "workers=2"]
    found = []
    for stage in sorted(random.Random(seed).sample(range(pieces), kills)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while files_in(begun) <= stage and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        assert not out.exists()
        found.append(files_in(begun))
    subprocess.run(command, check=True, capture_output=True)
    return found


def files_in(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


@pytest.mark.slow
def test_a_small_plate_survives_five_kills(tmp_path: Path) -> None:
    folder = large_plate(tmp_path / "in", wells=48, sites=4, field_px=96)
    undisturbed_store(folder, tmp_path / "whole.zarr")
    found = killed_until_done(folder, tmp_path / "s.zarr", kills=5, seed=1, pieces=2 * 48 * 4)
    assert found == sorted(found)  # nothing finished was lost
    assert runs.fingerprint(tmp_path / "s.zarr") == runs.fingerprint(tmp_path / "whole.zarr")
    assert describe(tmp_path / "s.zarr").n_cells > 200


@pytest.mark.slow
def test_a_store_that_was_half_written_is_written_anew(tmp_path: Path) -> None:
    folder = large_plate(tmp_path / "in", wells=24, sites=2, field_px=96)
    undisturbed_store(folder, tmp_path / "whole.zarr")
    process = subprocess.Popen(prepare_command(folder, tmp_path / "s.zarr"), stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".s.zarr.*.tmp")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "s.zarr").exists()
    undisturbed_store(folder, tmp_path / "s.zarr")
    assert runs.fingerprint(tmp_path / "s.zarr") == runs.fingerprint(tmp_path / "whole.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "s.zarr", "whole.zarr"]


@pytest.mark.slow
def test_a_whole_plate_of_384_wells_and_9_sites_survives_five_kills(tmp_path: Path) -> None:
    folder = large_plate(tmp_path / "in", wells=384, sites=9, field_px=128)
    undisturbed_store(folder, tmp_path / "whole.zarr")
    found = killed_until_done(folder, tmp_path / "s.zarr", kills=5, seed=2, pieces=2 * 384 * 9)
    assert found == sorted(found)
    assert runs.fingerprint(tmp_path / "s.zarr") == runs.fingerprint(tmp_path / "whole.zarr")
    assert len(open_store(tmp_path / "s.zarr").obs) > 10_000
