"""OME-Zarr plates: read back they give the same pixels, wells and conditions, and others take them for valid."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from small_stores import CHANNELS, PER_SITE, PIXEL_UM, PLATES, SITES, SIZE, WELLS

from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.exporting import ngff
from cellbridge.data.exporting.cells import Cells
from cellbridge.data.exporting.chunks import write_array
from cellbridge.data.exporting.ome_zarr import Look, halved, mosaic, write_plates
from cellbridge.data.exporting.plates import arrange, folder_names, well_path
from cellbridge.data.images import read_plane
from cellbridge.data.layout import well_name
from cellbridge.data.manifest import Manifest
from cellbridge.errors import ImageError, StoreError

VERSIONS: tuple[ngff.Version, ...] = ("0.5", "0.4")
STAINS = tuple(ngff.Stain(name, "40C0FF", 10.0, 3000.0) for name in CHANNELS)
Written = tuple[Path, ngff.Version, str]


def look(version: ngff.Version) -> Look:
    return Look(version, dict.fromkeys(PLATES, STAINS))


@pytest.fixture(scope="module", params=[(v, f) for v in VERSIONS for f in ("cell", "well")], ids=str)
def written(request: pytest.FixtureRequest, cells: Cells, tmp_path_factory: pytest.TempPathFactory) -> Written:
    version, fields = request.param
    folder = tmp_path_factory.mktemp("plates")
    write_plates(folder, arrange(cells, fields=fields), cells, look(version))
    return folder, version, fields


def described(folder: Path, **keys: Any) -> Manifest:
    names = sorted(path.name for path in folder.glob("*.ome.zarr"))
    given = {"name": "back", "licence": "-", "citation": "-", "kind": "ome_zarr", "folders": names}
    given |= {"channels": list(CHANNELS), "nucleus_channel": "DNA", "control": "Metadata_Compound=DMSO"}
    return Manifest.model_validate(given | keys)


def attributes(group: Path, version: str) -> dict[str, Any]:
    """Return the OME attributes of a group, in either version."""
    if version == "0.4":
        return json.loads((group / ".zattrs").read_text())
    return json.loads((group / "zarr.json").read_text())["attributes"]["ome"]


def table(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "cells.parquet")


def test_our_reader_gives_every_cell_its_pixels_well_and_condition_back(written: Written, cells: Cells) -> None:
    folder, _, _ = written
    named = {"Metadata_Plate": "Metadata_Plate", "Metadata_Well": "Metadata_Well", "Metadata_Site": "Image_Field"}
    columns = ["Metadata_Compound", "Metadata_Concentration", "Metadata_pert_type", "Metadata_Origin"]
    first = table(folder).drop_duplicates(["Image_Plate", "Image_Path"])
    first[[*named.values(), *columns]].to_parquet(folder / "images.parquet")
    joined = {"table": "images.parquet", "keys": named, "columns": columns}
    rows, control = read_catalogue(described(folder, metadata_tables=[joined]), folder)
    found = {(row.plate, row.well, row.site): row for row in rows}
    images = {
        place: np.stack([read_plane(row.images[name], full_scale=65535) for name in CHANNELS])
        for place, row in found.items()
    }
    assert control == "DMSO"
    for index, cell in enumerate(table(folder).to_dict("records")):
        place = (cell["Metadata_Plate"], cell["Metadata_Well"], cell["Image_Field"])
        row = found[place]
        assert row.metadata["Metadata_Compound"] == cells.obs["Metadata_Compound"].iloc[index]
        assert row.metadata["Metadata_Acquisition"] == str(cell["Image_Acquisition"])
        tile = np.s_[cell["Image_Y"] : cell["Image_Y"] + SIZE, cell["Image_X"] : cell["Image_X"] + SIZE]
        pixels = images[place][:, *tile]
        assert np.array_equal(pixels, cells.counts(np.array([index]))[0])
        assert pixels.dtype == np.uint16
    assert {tuple(row.images) for row in rows} == {CHANNELS}


@pytest.mark.filterwarnings("error::UserWarning")
def test_plates_are_valid_by_the_models_of_the_specification(written: Written) -> None:
    models = pytest.importorskip("ome_zarr_models")
    folder, version, _ = written
    for plate in folder.glob("*.ome.zarr"):
        if version == "0.5":
            group = models.v05.HCS.from_zarr(zarr.open_group(plate, mode="r"))
            assert group.ome_attributes.plate.name in PLATES
            assert sum(1 for _ in group.well_groups) == len(WELLS)
            image = models.v05.Image.from_zarr(zarr.open_group(plate / "B/02/0", mode="r"))
            said = image.ome_attributes
        else:  # with this pydantic ome-zarr-models 1.6 has no models of whole groups of 0.4, only of what they say
            part = importlib.import_module
            hcs = part("ome_zarr_models.v04.hcs").HCSAttrs.model_validate(attributes(plate, version))
            assert hcs.plate.version == "0.4"
            assert [well.path for well in hcs.plate.wells] == [well_path(well) for well in WELLS]
            part("ome_zarr_models.v04.well").WellAttrs.model_validate(attributes(plate / "B/02", version))
            said = part("ome_zarr_models.v04.image").ImageAttrs.model_validate(attributes(plate / "B/02/0", version))
        assert [dataset.path for dataset in said.multiscales[0].datasets] == ["0"]


def test_plates_wells_and_fields_refer_to_one_another(written: Written) -> None:
    folder, version, fields = written
    for plate in folder.glob("*.ome.zarr"):
        said = attributes(plate, version)["plate"]
        wells = [well["path"] for well in said["wells"]]
        assert wells == [well_path(well) for well in WELLS]
        for well in said["wells"]:
            row, column = said["rows"][well["rowIndex"]], said["columns"][well["columnIndex"]]
            assert well["path"] == f"{row['name']}/{column['name']}"
            images = attributes(plate / well["path"], version)["well"]["images"]
            assert len({image["path"] for image in images}) == len(images) <= said["field_count"]
            assert all(image["path"].isalnum() and (plate / well["path"] / image["path"]).is_dir() for image in images)
            for one in said["acquisitions"]:
                n = sum(image["acquisition"] == one["id"] for image in images)
                assert n <= one["maximumfieldcount"]
                assert n == {"cell": SITES * PER_SITE, "well": 1}[fields] or (n == 0 and one["id"] > 0)
        assert (len(said["rows"]), len(said["columns"])) == (16, 24)


def test_every_group_on_the_way_is_a_group_of_its_version(written: Written) -> None:
    folder, version, _ = written
    for plate in folder.glob("*.ome.zarr"):
        group = zarr.open_group(plate, mode="r", zarr_format=3 if version == "0.5" else 2)
        assert sorted(group.group_keys()) == sorted({well[0] for well in WELLS})
        assert not list(plate.rglob(".zgroup" if version == "0.5" else "zarr.json"))


def test_channels_have_names_colours_and_one_window(written: Written) -> None:
    folder, version, _ = written
    image = next(folder.glob("0001053597806.ome.zarr/B/02/0"))
    said = attributes(image, version)
    assert [channel["label"] for channel in said["omero"]["channels"]] == list(CHANNELS)
    for channel in said["omero"]["channels"]:
        assert channel["color"] == "40C0FF"
        assert channel["window"] == {"min": 0, "max": 65535, "start": 10.0, "end": 3000.0}
    axes = said["multiscales"][0]["axes"]
    assert [axis["name"] for axis in axes] == ["c", "y", "x"]
    assert axes[1]["unit"] == "micrometer"
    scale = said["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]
    assert scale == {"type": "scale", "scale": [1.0, PIXEL_UM, PIXEL_UM]}


def test_a_cell_and_its_translations_are_acquisitions_of_one_well(cells: Cells) -> None:
    plate = arrange(cells, fields="well")[0]
    names = {one.number: one.name for one in plate.acquisitions}
    assert list(names.values()) == ["real", "ddib → NA@1.5", "ddib → null@1.5", "bridge → NA@1.5"]
    ids = cells.obs["Metadata_Cell"].to_numpy(dtype=object)
    real, *translated = plate.of_well()["B02"]
    tiles = dict(zip(ids[real.rows], real.tiles, strict=True))
    for field in translated:
        sources = cells.obs["Metadata_SourceCell"].to_numpy(dtype=object)[field.rows]
        assert dict(zip(sources, field.tiles, strict=True)) == tiles
        assert field.grid == real.grid
    assert {field.acquisition for field in plate.of_well()["B03"]} == {0}


def test_every_cell_stands_on_a_plate_once(cells: Cells) -> None:
    for fields in ("cell", "well"):
        plates = arrange(cells, fields=fields)
        rows = np.concatenate([field.rows for plate in plates for field in plate.fields])
        assert np.array_equal(np.sort(rows), np.arange(len(cells)))
        places = [(plate.folder, field.place) for plate in plates for field in plate.fields]
        assert len(set(places)) == len(places)


def test_images_of_a_plate_are_alike_in_shape_however_many_cells_a_well_has(cells: Cells) -> None:
    wells = (cells.obs["Metadata_Plate"] + "/" + cells.obs["Metadata_Well"]).to_numpy(dtype=object)
    alone = next(well for well in wells if not (cells.owner[wells == well] > 0).any())  # nothing was translated from it
    rows = np.setdiff1d(np.arange(len(cells)), np.flatnonzero(wells == alone)[1:])
    fewer = replace(cells, obs=cells.obs.iloc[rows], owner=cells.owner[rows], row=cells.row[rows])
    plates = arrange(fewer, fields="well")
    assert 1 in {len(field.rows) for plate in plates for field in plate.fields}
    assert all({field.grid for field in plate.fields} == {(2, 2)} for plate in plates)


def test_tiles_without_a_cell_are_zero(cells: Cells) -> None:
    field = arrange(cells, fields="well")[0].fields[0]
    assert field.grid == (2, 2)
    short = type(field)(field.well, field.path, 0, field.rows[1:], field.tiles[1:], field.grid)
    image = mosaic(cells, short)
    assert not image[:, :SIZE, :SIZE].any()
    assert np.array_equal(image[:, SIZE:, :SIZE], cells.counts(field.rows[2:3])[0])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_are_what_zarr_reads(tmp_path: Path, version: ngff.Version, dtype: type) -> None:
    top = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, top, (2, 1030, 1500), dtype=dtype, endpoint=True)
    image[0, :1024, :1024] = 0
    write_array(tmp_path / "0", image, version=version)
    array = zarr.open_array(str(tmp_path / "0"), mode="r")
    assert np.array_equal(array[:], image)
    assert array.dtype == dtype
    assert array.nchunks_initialized == array.nchunks == 8


def test_a_flipped_byte_and_a_lost_chunk_are_noticed(tmp_path: Path, cells: Cells) -> None:
    write_plates(tmp_path, arrange(cells, fields="cell"), cells, look("0.5"))
    rows, _ = read_catalogue(described(tmp_path, constants={"Metadata_Compound": "DMSO"}), tmp_path)
    chunk = rows[0].images["DNA"].file / "c/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_plane(rows[0].images["DNA"], full_scale=65535)
    chunk.unlink()
    with pytest.raises(ImageError, match="missing"):
        read_plane(rows[0].images["DNA"], full_scale=65535)


def test_levels_are_means_of_two_by_two_and_keep_their_place() -> None:
    image = np.arange(2 * 5 * 6, dtype=np.uint16).reshape(2, 5, 6) * 1000
    half = halved(image)
    assert half.shape == (2, 2, 3)
    assert np.array_equal(half, np.floor(image[:, :4].reshape(2, 2, 2, 3, 2).mean(axis=(2, 4)) + 0.5))
    assert halved(np.full((1, 2, 2), 65535, np.uint16)).max() == 65535
    said = ngff.image_attributes("x", levels=3, pixel_um=0.5, stains=STAINS, full_scale=255, own={}, version="0.5")[
        "ome"
    ]["multiscales"][0]
    scales = [level["coordinateTransformations"] for level in said["datasets"]]
    # The centre of pixel 0 of level k lies at the mean of the centres of the 2^k pixels that it covers.
    for level, transformations in enumerate(scales):
        step = transformations[0]["scale"][1]
        shift = transformations[1]["translation"][1] if level else 0.0
        assert step == 0.5 * 2**level
        assert shift == pytest.approx(0.5 * np.arange(2**level).mean())


def test_a_large_image_has_levels_down_to_a_screen(
    tmp_path: Path, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellbridge.data.exporting.ome_zarr._SMALLEST_LEVEL", 6)
    plates = arrange(cells, fields="well")[:1]
    write_plates(tmp_path, plates, cells, look("0.5"))
    group = tmp_path / plates[0].folder / "B/02/0"
    said = attributes(group, "0.5")["multiscales"][0]["datasets"]
    shapes = [zarr.open_array(str(group / level["path"]), mode="r").shape for level in said]
    assert shapes == [(3, 16, 16), (3, 8, 8), (3, 4, 4)]
    finest = np.asarray(zarr.open_array(str(group / "0"), mode="r")[:])
    assert np.array_equal(zarr.open_array(str(group / "1"), mode="r")[:], halved(finest))


def test_folders_are_safe_and_apart_whatever_plates_are_called() -> None:
    names = ["../../etc/passwd", "a/b", "A/B", "a_b", "", ".", "..", "x" * 300, "\x00\n", "é", "CON", "=1+1"]
    folders = folder_names(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert folder.removesuffix(".ome.zarr").replace("-", "").replace("_", "").isalnum() or folder.startswith(
            "plate"
        )
        assert folder == Path(folder).name
        assert len(folder) < 120


def test_plates_keep_their_own_names_inside(written: Written) -> None:
    folder, version, _ = written
    assert {attributes(plate, version)["plate"]["name"] for plate in folder.glob("*.ome.zarr")} == set(PLATES)


def test_a_wells_folders_are_its_letters_and_its_number() -> None:
    for row, column, path in [(0, 0, "A/01"), (15, 23, "P/24"), (25, 0, "Z/01"), (26, 5, "AA/06"), (31, 47, "AF/48")]:
        assert well_path(well_name(row, column)) == path


def test_a_cell_without_a_well_is_refused(cells: Cells) -> None:
    obs = cells.obs.copy()
    obs.iloc[3, obs.columns.get_loc("Metadata_Well")] = ""
    with pytest.raises(StoreError, match=r"has no well.*--to anndata"):
        arrange(Cells(cells.stores, obs, cells.owner, cells.row), fields="cell")
