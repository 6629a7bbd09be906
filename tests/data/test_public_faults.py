"""Rows of the public fault list that are about reading: 15, 17, 19, 23, 33 and 37, through the command line.

Row 29 (archives) is tested with the archives, row 23 for every format in the readers' contract.
"""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from frozen_commands import run_frozen

from cellbridge import runs
from cellbridge.cli import main
from cellbridge.data.images import file_md5
from cellbridge.data.store import open_store

CHANNELS = ("DNA", "ER", "AGP")
FORMS: list[dict[str, Any]] = [{}, {"compression": "zlib"}, {"compression": "lzw"}]


AWKWARD = ("NA", "None", "nan", "null", '=HYPERLINK("http://x","y")', "+1", "@SUM(1)")
NUMBER_LIKE, FORMULA_LIKE = "0001053597806", '=HYPERLINK("http://x","y")'
"""Names of plates."""


def write(folder: Path, *, fields: int) -> Path:
    """Write fields of noise in two wells, the first of which is the control."""
    random = np.random.default_rng(0)
    wells = [(NUMBER_LIKE, "A02" if n else "A01", n, "x" if n else "") for n in range(fields)]
    return write_fields(folder, wells, [random.integers(1, 60000, (3, 16, 16)) for _ in wells], nucleus_px=5)


def write_awkward(folder: Path) -> Path:
    """Write two plates of four cells a field, with a control well each, whose names are what tables and spreadsheets stumble over."""
    wells = [(NUMBER_LIKE, f"B0{n + 1}", 1, name) for n, name in enumerate(AWKWARD)]
    wells += [(NUMBER_LIKE, "A01", 1, ""), (FORMULA_LIKE, "A01", 1, ""), (FORMULA_LIKE, "B01", 1, "NA")]
    fetch = {"url": ".", "files": [{"path": "planes.csv"}], "images": True}
    return write_fields(folder, wells, [discs(seed) for seed in range(len(wells))], nucleus_px=12, fetch=fetch)


def discs(seed: int) -> np.ndarray:
    """Return three channels of four round cells."""
    rows, columns = np.indices((64, 64))
    nearest = np.min([np.hypot(rows - r, columns - c) for r in (18, 46) for c in (18, 46)], axis=0)
    levels = np.stack([9000.0 * (nearest <= 6), 8000.0 * (nearest <= 10), 7000.0 * (nearest <= 8)])
    return 1000 + levels + np.random.default_rng(seed).normal(0, 60, levels.shape)


def write_fields(
    folder: Path, wells: Sequence[tuple[str, str, int, str]], images: Sequence[np.ndarray], **manifest: Any
) -> Path:
    """Write a field for each (plate, well, site, compound): three channels, one TIFF form each, with their md5 sums."""
    rows = []
    (folder / "images").mkdir(parents=True)
    for number, ((plate, well, site, compound), image) in enumerate(zip(wells, images, strict=True)):
        for channel, plane, form in zip(CHANNELS, image, FORMS, strict=True):
            name = f"images/{number:03d}_{channel}.tif"
            tifffile.imwrite(folder / name, plane.astype(np.uint16), **form)
            place = {"path": name, "channel": channel, "plate": plate, "well": well, "site": site}
            rows.append({**place, "compound": compound, "md5": file_md5(folder / name)})
    with (folder / "planes.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    described = {"name": "faulty", "licence": "x", "citation": "x", "kind": "planes", "tables": ["planes.csv"]}
    described |= {"channels": list(CHANNELS), "nucleus_channel": "DNA", **manifest}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(described))
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
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
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


@dataclass(frozen=True)
class Frozen:
    """What commands made of an awkward data set that was read-only, and told.

    Parameters
    ----------
    made : where their outputs lie.
    told : exit code, standard output and standard error of each command, by its name.
    before, after : sha256 of every file of the data set.
    refuses : whether the read-only folders really took no file.
    """

    made: Path
    told: dict[str, dict[str, Any]]
    before: dict[str, str]
    after: dict[str, str]
    refuses: bool


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    """Fetch, validate, prepare, inspect and export: inputs are mounted read-only, the store too once it is made."""
    made = tmp_path_factory.mktemp("made")
    given = write_awkward(tmp_path_factory.mktemp("given") / "set")
    before, store = tree(given), made / "s.zarr"
    cut_out = ["--set", "illumination=none", "--set", "crop_px=16", "--set", "size_px=16", "--set", "workers=1"]
    export = ["export", store, "--out"]
    commands: dict[str, list[object]] = {
        "fetch": ["fetch", given, "--root", made / "data"],
        "validate": ["validate", given, "--deep", "--json", "--set", "workers=1"],
        "inspect": ["inspect", given, "--out", made / "seen", "--set", "conditions=2"],
        "prepare": ["prepare", "--manifest", given, *cut_out, "--out", store],
        "freeze": ["freeze", store],
        "validate a store": ["validate", store, "--deep"],
        "anndata": [*export, made / "cells.h5ad", "--to", "anndata"],
        "profiles": [*export, made / "wells.parquet", "--to", "profiles"],
        "ome-zarr": [*export, made / "plates", "--to", "ome-zarr", "--set", "fields=well"],
    }
    first, *answers = run_frozen([["freeze", given], *commands.values()])
    told = dict(zip(commands, answers, strict=True))
    refuses = first["refuses"] and told.pop("freeze")["refuses"]
    return Frozen(made, told, before, tree(given), refuses)


def test_row_37_every_command_works_on_read_only_inputs_and_changes_none(frozen: Frozen) -> None:
    assert {name: told["code"] for name, told in frozen.told.items()} == dict.fromkeys(frozen.told, 0), frozen.told
    assert frozen.after == frozen.before
    fetched = {name: digest for name, digest in tree(frozen.made / "data").items() if ".fetch" not in name}
    assert fetched == {name: digest for name, digest in frozen.before.items() if name != "manifest.yaml"}
    assert runs.verify_directory(frozen.made / "s.zarr") == []
    if not frozen.refuses:
        pytest.skip(
            "this machine keeps its administrator from no file (unshare, mount); nothing was changed all the same"
        )


def test_row_19_and_33_awkward_names_are_the_same_texts_in_every_table(frozen: Frozen) -> None:
    import anndata
    import pyarrow.parquet as pq

    expected = {(NUMBER_LIKE, name) for name in (*AWKWARD, "DMSO")} | {(FORMULA_LIKE, "NA"), (FORMULA_LIKE, "DMSO")}
    assert json.loads(frozen.told["validate"]["out"])["problems"] == 0
    tables = {
        "store": open_store(frozen.made / "s.zarr").obs,
        "h5ad": anndata.read_h5ad(frozen.made / "cells.h5ad").obs,
        "parquet": pq.read_table(frozen.made / "wells.parquet").to_pandas(),
    }
    for name, table in tables.items():
        pairs = zip(table["Metadata_Plate"], table["Metadata_Compound"], strict=True)
        assert set(pairs) == expected, name


def test_row_33_no_cell_of_a_table_for_people_begins_as_a_formula_does(frozen: Frozen) -> None:
    with (frozen.made / "seen/wells.csv").open(newline="") as stream:
        cells = [cell for line in csv.reader(stream) for cell in line]
    assert f"'{FORMULA_LIKE}" in cells
    assert NUMBER_LIKE in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


@pytest.mark.slow
def test_row_19_awkward_names_are_the_same_texts_after_training_and_translation(frozen: Frozen, tmp_path: Path) -> None:
    """`tests/stages/test_whole_way.py` has the same way with `null` and adapters."""
    import anndata
    import pyarrow.parquet as pq

    from cellbridge.networks.classifier import read_classifier_card

    def call(*arguments: object) -> None:
        assert main([str(argument) for argument in arguments]) == 0

    store, base, translated = frozen.made / "s.zarr", tmp_path / "base", tmp_path / "t.zarr"
    given = ["--store", store, "--set", "training.steps=2", "--set", "training.batch_size=8"]
    network = ["--set", "network.widths=[8,8]", "--set", "network.attention_levels=[]", "--set", "sampler.steps=2"]
    targets = [word for name in AWKWARD for word in ("--target", name)]
    classes = ["--set", "conditions=[NA,'None','nan','null']", "--set", "held_out=null"]
    call("train-classifier", *given, *classes, "--set", "widths=[8,8]", "--out", tmp_path / "classifier")
    call("pretrain", *given, *network, "--set", "conditions=all", "--out", base)
    way = ["--base", base, *targets, "--set", "split=train", "--set", "solver.steps=2"]
    call("translate", "--store", store, *way, "--out", translated)
    call("export", store, "--translated", translated, "--to", "anndata", "--out", tmp_path / "t.h5ad")
    call("export", store, "--translated", translated, "--to", "profiles", "--out", tmp_path / "t.parquet")
    assert read_classifier_card(tmp_path / "classifier/model")["conditions"] == ["DMSO", "NA", "None", "nan", "null"]
    expected = {(plate, name) for plate in (NUMBER_LIKE, FORMULA_LIKE) for name in AWKWARD}
    for table in (
        open_store(translated).obs,
        anndata.read_h5ad(tmp_path / "t.h5ad").obs.query("Metadata_Origin == 'generated'"),
        pq.read_table(tmp_path / "t.parquet").to_pandas().query("Metadata_Origin == 'generated'"),
    ):
        assert set(zip(table["Metadata_Plate"], table["Metadata_Compound"], strict=True)) == expected


def test_row_23_paths_that_leave_the_root_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "in", fields=2)
    text = (folder / "planes.csv").read_text()
    for path in ("../../../etc/passwd", "/etc/passwd"):
        (folder / "planes.csv").write_text(text.replace("images/001_ER.tif", path))
        code, line = prepare(folder, tmp_path / "s.zarr", capsys)
        assert code == 2
        assert "planes.csv row 6 path" in line
        assert "outside the root" in line
