"""What every reader keeps to: the same plate, in whatever format it was written, gives the same fields, conditions and pixels."""

import gzip
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_plates import CONDITIONS, FORMATS, PLATE, SITES, STAINS, WELLS, each_field, pixels, written_plate

from cellbridge.data.annotation import condition_of, is_control
from cellbridge.data.catalogue import READERS, read_catalogue
from cellbridge.data.images import read_crop, read_plane
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.rows import ImageRow
from cellbridge.errors import ManifestError

Plate = tuple[str, Path, Manifest]
OPENED: list[str] = []
_WATCHED = {"on": False}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHED["on"] and event == "open":
        OPENED.append(str(arguments[0]))


sys.addaudithook(_watch)


@pytest.fixture(scope="module", params=FORMATS)
def plate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plate:
    folder = tmp_path_factory.mktemp("plate")
    return request.param, folder, written_plate(request.param, folder)


def read(described: Manifest, folder: Path) -> tuple[list[ImageRow], str, list[str]]:
    """Return what read_catalogue does, and the files that it opened."""
    OPENED.clear()
    _WATCHED["on"] = True
    try:
        rows, control = read_catalogue(described, folder)
    finally:
        _WATCHED["on"] = False
    return rows, control, list(OPENED)


def tree(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def counts(row: ImageRow, described: Manifest) -> np.ndarray:
    if described.holds_fields:
        return np.stack([read_plane(row.images[stain], full_scale=65535) for stain in STAINS])
    crop = read_crop(row.images[""], channels=len(described.channels), axes=described.axes, full_scale=65535)
    return crop[[described.channels.index(stain) for stain in STAINS]]


def by_place(rows: list[ImageRow], described: Manifest) -> dict[tuple[str, str], ImageRow]:
    """Return the rows by well and site; published crops have no site, and stand in the order of their keys."""
    if described.kind == "benchmark_crops":
        sites = {
            row.where: SITES[index % 2] for index, row in enumerate(sorted(rows, key=lambda row: str(row.images[""])))
        }
        return {(row.well, sites[row.where]): row for row in rows}
    return {(row.well, row.site): row for row in rows}


def test_every_reader_is_held_to_the_contract() -> None:
    assert {written.kind for written in FORMATS.values()} == set(READERS)


def test_fields_conditions_and_pixels_are_those_that_were_written(plate: Plate) -> None:
    _, folder, described = plate
    before = tree(folder)
    rows, control, opened = read(described, folder)
    found = by_place(rows, described)
    assert sorted(found) == sorted(each_field())
    assert {row.plate for row in rows} == {PLATE}
    assert {row.well: condition_of(row, control=control).name for row in rows} == CONDITIONS
    assert {row.well for row in rows if is_control(row)} == {"B02"}
    assert [row.metadata["Metadata_Compound"] for row in rows if row.well == "B03"] == ["NA", "NA"]
    for (well, site), row in found.items():
        wanted = np.stack([pixels(well, site, stain) for stain in STAINS])
        np.testing.assert_array_equal(counts(row, described), wanted)
    assert not [name for name in opened if name.endswith((".tif", ".tiff", ".npy")) or "/c/" in name]
    assert tree(folder) == before


def test_left_out_channels_need_not_be_there_and_are_not_read(plate: Plate) -> None:
    _, folder, described = plate
    rows, _, _ = read(described, folder)
    expected = set(STAINS) if described.holds_fields else {""}
    assert {frozenset(row.images) for row in rows} == {frozenset(expected)}


@pytest.mark.parametrize("name", [name for name, written in FORMATS.items() if written.escape is not None])
def test_a_path_out_of_the_root_is_refused_and_never_opened(name: str, tmp_path: Path) -> None:
    described = written_plate(name, tmp_path)
    file, old, new = FORMATS[name].escape or ("", "", "")
    data = (tmp_path / file).read_bytes()
    text = gzip.decompress(data).decode() if file.endswith(".gz") else data.decode()
    assert old in text
    (tmp_path / file).write_bytes(text.replace(old, new).encode())
    OPENED.clear()
    _WATCHED["on"] = True
    try:
        with pytest.raises(ManifestError, match="outside the root") as caught:
            read_catalogue(described, tmp_path)
    finally:
        _WATCHED["on"] = False
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not [name for name in OPENED if "/etc/" in name or name.endswith((".tif", ".tiff", ".npy"))]


def test_only_keeps_the_rows_that_it_names(plate: Plate) -> None:
    _, folder, described = plate
    rows, _, _ = read(described.model_copy(update={"only": ("Metadata_Well=B03", "Metadata_Well=C04")}), folder)
    assert {row.well for row in rows} == {"B03", "C04"}
    with pytest.raises(ManifestError, match="only: no row"):
        read(described.model_copy(update={"only": ("Metadata_Well=P24",)}), folder)


@pytest.mark.parametrize(
    "plate", [name for name in FORMATS if name not in ("pages by name", "crops", "IMPA's crops")], indirect=True
)
def test_a_channel_that_no_file_has_is_named(plate: Plate) -> None:
    """But for files whose channels only the manifest knows."""
    _, folder, described = plate
    wanting = described.model_copy(update={"channels": (*described.channels, "Golgi")})
    with pytest.raises(ManifestError, match="Golgi"):
        read(wanting, folder)


def test_illumination_functions_are_handed_on_by_channel(tmp_path: Path) -> None:
    described = written_plate("load_data_with_illum.csv", tmp_path)
    rows, _, _ = read(described, tmp_path)
    assert all(set(row.illumination) == set(STAINS) for row in rows)
    assert rows[0].illumination["ER"] == tmp_path / f"s/illum/{PLATE}_IllumER.npy"
    assert len(rows) == len(WELLS) * len(SITES)
