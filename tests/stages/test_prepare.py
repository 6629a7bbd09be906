"""From plates and crops to a store, and the refusals on the way."""

import csv
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from cellbridge import runs
from cellbridge.data.store import describe, open_store
from cellbridge.errors import CellbridgeError, ConfigError, ImageError, LeakError, ManifestError, StoreError
from cellbridge.settings import validate
from cellbridge.stages.prepare import Config, run

PLATES = ("0001053597806", "P2")
COMPOUNDS = {"B02": "", "B03": "", "C04": "NA", "D05": "None"}
CHANNELS = ("DNA", "ER", "AGP")
PLACES = [(r, c) for r in (16, 48, 80) for c in (18, 50, 78)]


def field(seed: int, *, dtype: Any = np.uint16, full: int = 40000) -> np.ndarray:
    """Three channels of nine round cells, of which one touches the border."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices((96, 96))
    distance = np.min([np.hypot(rows - r, columns - c) for r, c in [*PLACES, (95, 34)]], axis=0)
    level = np.stack([distance <= 6, distance <= 11, distance <= 9]) * (0.25 + 0.05 * np.arange(3)[:, None, None])
    return (full * (0.03 + level) + random.normal(0, 0.003 * full, level.shape)).clip(0).astype(dtype)


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_manifest(folder: Path, **changes: Any) -> None:
    manifest = {"name": "small", "licence": "CC0-1.0", "citation": "none", "kind": "load_data", "bits": 16}
    manifest |= {
        "tables": ["load_data.csv"],
        "channels": list(CHANNELS),
        "nucleus_channel": "DNA",
        "cell_channel": "ER",
    }
    manifest |= {"platemaps": ["maps"], "pixel_um": 0.5, "nucleus_px": 12}
    (folder / "manifest.yaml").write_text(
        yaml.safe_dump({k: v for k, v in {**manifest, **changes}.items() if v is not None})
    )


def write_plate(folder: Path, *, dtype: Any = np.uint16, full: int = 40000, **changes: Any) -> Path:
    rows = []
    for p, plate in enumerate(PLATES):
        for w, well in enumerate(COMPOUNDS):
            image = field(10 * p + w, dtype=dtype, full=full)
            row = {"Metadata_Plate": plate, "Metadata_Well": well.lower(), "Metadata_Site": 1}
            for name, plane in zip(CHANNELS, image, strict=True):
                file = folder / "images" / plate / f"{well}_{name}.tif"
                file.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(file, plane, compression="zlib")
                row |= {f"FileName_{name}": file.name, f"PathName_{name}": f"images/{plate}"}
            rows.append(row)
    write_csv(folder / "load_data.csv", rows)
    write_csv(folder / "maps/barcode_platemap.csv", [{"Assay_Plate_Barcode": p, "Plate_Map_Name": "m"} for p in PLATES])
    (folder / "maps/platemap").mkdir(exist_ok=True)
    wells = "".join(f"{well}\t{name}\t{1 if name else ''}\n" for well, name in COMPOUNDS.items())
    (folder / "maps/platemap/m.txt").write_text(f"well_position\tcompound\tconcentration\n{wells}")
    write_manifest(folder, **changes)
    return folder


def prepare(folder: Path, out: Path, **settings: Any) -> dict[str, Any]:
    values = {"manifest": str(folder), "crop_px": 24, "size_px": 24, "illumination": "none", **settings}
    return run(validate(Config, values, source="test"), out=out)


def tree(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def content(store: Path) -> dict[str, str]:
    """Every file but the provenance, which names the commit; the store's hash leaves it out."""
    return {name: digest for name, digest in tree(store).items() if name != runs.PROVENANCE}


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plate(tmp_path_factory.mktemp("plate"))


@pytest.fixture(scope="module")
def store(plate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "s.zarr"
    prepare(plate, out, split={"by": "plate", "test": ["P2"]})
    return out


def test_cells_stand_in_order_with_the_tables_texts(store: Path) -> None:
    opened = open_store(store)
    obs = opened.obs
    assert opened.info.conditions[0].name == opened.info.control == "DMSO"
    assert set(opened.condition_names) == {"DMSO", "NA@1", "None@1"}
    assert opened.info.plates == PLATES
    assert len(obs) == 8 * 9
    keys = list(zip(obs["Metadata_Plate"], obs["Metadata_Well"], obs["Metadata_Cell"], strict=True))
    assert keys == sorted(keys)
    assert obs["Metadata_Cell"].iloc[0] == "0001053597806_B02_s1_c001"
    assert dict(obs.groupby("Metadata_Plate")["Metadata_Split"].first()) == {PLATES[0]: "train", PLATES[1]: "test"}
    assert set(obs.loc[obs["Metadata_Compound"] == "DMSO", "Metadata_pert_type"]) == {"negcon"}
    assert opened.info.pixel_um == 0.5


def test_counts_are_those_of_the_images_around_each_nucleus(plate: Path, store: Path) -> None:
    opened = open_store(store)
    image = np.stack([tifffile.imread(plate / "images" / "P2" / f"C04_{name}.tif") for name in CHANNELS])
    rows = np.flatnonzero((opened.obs["Metadata_Plate"] == "P2") & (opened.obs["Metadata_Well"] == "C04"))
    places = opened.obs.iloc[rows][["Location_Center_Y", "Location_Center_X"]].to_numpy()
    np.testing.assert_allclose(sorted(map(tuple, np.round(places))), PLACES, atol=1)
    for counts, (row, column) in zip(opened.counts(rows), np.round(places).astype(int), strict=True):
        found = [
            np.array_equal(counts, image[:, r : r + 24, c : c + 24])
            for r in (row - 12, row - 11)
            for c in (column - 12, column - 11)
        ]
        assert any(found)
    masks = opened.masks(rows)
    assert masks is not None
    np.testing.assert_allclose((masks == 2).sum(axis=(1, 2)), np.pi * 6.2**2, rtol=0.15)
    assert ((masks > 0).sum(axis=(1, 2)) > 2.5 * (masks == 2).sum(axis=(1, 2))).all()


def test_rejected_cells_are_counted_by_reason(plate: Path, store: Path, tmp_path: Path) -> None:
    assert describe(store).attributes["rejected"] == {"border": 8}
    summary = prepare(plate, tmp_path / "s.zarr", crop_px=40, size_px=20)
    assert summary["rejected"] == {"border": 8 * 9}
    assert summary["cells"] == 8


def blank(folder: Path) -> None:
    tifffile.imwrite(folder / "images/P2/C04_DNA.tif", np.zeros((96, 96), np.uint16))
    tifffile.imwrite(folder / "images/P2/D05_ER.tif", np.full((96, 96), 7, np.uint16))


def test_fields_without_a_cell_and_images_of_one_value_are_named_whatever_stopped_it(
    plate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = spoil(plate, tmp_path / "in", blank), tree(plate)
    with monkeypatch.context() as patch:
        patch.setattr("cellbridge.stages.prepare.write_store", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, tmp_path / "s.zarr")
    found = [prepare(folder, tmp_path / "s.zarr"), prepare(folder, tmp_path / "t.zarr", workers=2)]
    stored = describe(tmp_path / "s.zarr").attributes
    for told in (*found, stored):
        assert told["fields_without_cells"] == {
            "count": 2,
            "first": [
                "plate P2 well C04 site 1: nothing was found",
                "plate P2 well D05 site 1: 1 border, 9 empty_channel",
            ],
        }
        assert told["images_of_one_value"] == {
            "count": 2,
            "first": [
                "plate P2 well C04 site 1 DNA: every pixel is 0",
                "plate P2 well D05 site 1 ER: every pixel is 7",
            ],
        }
    assert [summary["cells"] for summary in found] == [6 * 9, 6 * 9]
    (line,) = found[0]["warnings"]
    assert line.startswith("2 images have one value only: plate P2 well C04 site 1 DNA: every pixel is 0; plate P2")
    assert line.endswith("every pixel is 7. Look at them.")
    trees = [content(tmp_path / name) for name in ("s.zarr", "t.zarr")]
    assert len({tuple(sorted((k, v) for k, v in one.items() if k != runs.PROVENANCE)) for one in trees}) == 1
    assert "2 images have one value only: plate P2 well C04 site 1 DNA" in capsys.readouterr().err
    assert tree(plate) == before


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_intensity_maps_know_the_control_only(store: Path) -> None:
    opened = open_store(store)
    for plate_name in PLATES:
        rows = opened.select(conditions=["DMSO"], plates=[plate_name])
        counts = np.moveaxis(opened.counts(rows), 1, 0).reshape(3, -1)
        for values, channel in zip(counts, CHANNELS, strict=True):
            fitted = opened.info.intensity[plate_name][channel]
            assert fitted["median"] == pytest.approx(np.median(values), abs=1)
            assert fitted["p999"] == pytest.approx(np.quantile(values, 0.999), abs=200)


def test_the_same_inputs_give_the_same_bytes_and_stay_untouched(plate: Path, store: Path, tmp_path: Path) -> None:
    before = tree(plate)
    prepare(plate, tmp_path / "s.zarr", split={"by": "plate", "test": ["P2"]})
    assert content(tmp_path / "s.zarr") == content(store)
    assert tree(plate) == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_eight_bit_images_stay_eight_bit(tmp_path: Path) -> None:
    prepare(write_plate(tmp_path / "in", dtype=np.uint8, full=200, bits=8), tmp_path / "s.zarr")
    opened = open_store(tmp_path / "s.zarr")
    assert opened.info.full_scale == 255
    assert opened.counts([0]).dtype == np.uint8


def test_channels_are_left_out_by_name_and_the_nucleus_is_measured(plate: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_manifest(folder, leave_out=["DNA"], nucleus_px=None, cell_channel=None)
    summary = prepare(folder, tmp_path / "s.zarr", root=str(plate))
    assert summary["channels"] == ["ER", "AGP"]
    assert summary["channels_left_out"] == ["DNA"]
    assert summary["nucleus_px"] == pytest.approx(12, abs=2)
    assert summary["cells"] == 72


@pytest.fixture(scope="module")
def few(plate: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary where a plate has too few fields for its light, the crop is narrow, and all is held out."""
    settings = {"illumination": "estimate", "illumination_min_fields": 5, "split": {"test": PLATES}}
    return prepare(plate, tmp_path_factory.mktemp("few") / "s.zarr", crop_px=14, **settings)


def test_a_crop_wider_than_every_field_is_refused_before_cells_are_looked_for(plate: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"crops of 400 px do not fit .* has 96 px.*border=reflect"):
        prepare(plate, tmp_path / "s.zarr", crop_px=400)
    assert not list(tmp_path.iterdir())


def test_a_narrow_crop_and_a_split_without_training_cells_are_told(few: dict[str, Any]) -> None:
    assert few["warnings"] == [
        "split.test holds out everything, so that no cell is left to train on. Name fewer, or leave it so.",
        "a crop of 14 px is 1.2 nuclei wide (nucleus_px 12), so cells are cut down to their middles. "
        "Set crop_px=30 or crop_um=15 (2.5 nuclei), resampled to size_px.",
    ]
    assert few["wells_control_by_empty_compound"] == 4


def test_even_light_is_estimated_where_there_are_fields_enough(
    plate: Path, few: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"illumination": "estimate", "illumination_min_fields": 4}
    summary = prepare(plate, tmp_path / "s.zarr", **settings)
    assert summary["illumination_corrected"] == sorted(PLATES)
    light = describe(tmp_path / "s.zarr").attributes["illumination"]
    assert set(light["P2"]) == set(CHANNELS)
    assert "warnings" not in summary
    assert few["illumination_corrected"] == []


# --- what is refused


def spoil(plate: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    import shutil

    shutil.copytree(plate, folder)
    change(folder)
    return folder


def truncate(folder: Path) -> None:
    for name, keep in (("B02_DNA", 0.5), ("B03_ER", 0.99), ("C04_AGP", 0.1)):
        file = folder / "images/P2" / f"{name}.tif"
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])


def reshape(folder: Path) -> None:
    tifffile.imwrite(folder / "images/P2/B02_DNA.tif", np.zeros((90, 96), np.uint16))


def retype(folder: Path) -> None:
    tifffile.imwrite(folder / "images/P2/B02_DNA.tif", np.zeros((96, 96), np.float32))


def duplicate(folder: Path) -> None:
    (folder / f"images/{PLATES[0]}/B02_DNA.tif").write_bytes((folder / "images/P2/D05_DNA.tif").read_bytes())


def twice(folder: Path) -> None:
    (folder / "images/P2/B02_DNA.tif").write_bytes((folder / "images/P2/D05_DNA.tif").read_bytes())


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda f: (f / "images/P2/B02_ER.tif").unlink(),
            ImageError,
            "1 of 24 images cannot be used: load_data.csv row 6 ER",
        ),
        (truncate, ImageError, "3 of 24 images cannot be used"),
        (reshape, ImageError, "shape (90, 96), plate P2 has (96, 96)"),
        (retype, ImageError, "type float32, expected uint8 or uint16"),
        (duplicate, LeakError, "the same image is in train and in test"),
        (twice, ManifestError, "the same image is listed twice"),
        (edit("load_data.csv", "FileName_AGP", "FileName_Actin"), ManifestError, 'no column for channel "AGP"'),
        (edit("load_data.csv", "P2,b02", "P2,q25"), ManifestError, "load_data.csv row 6 Metadata_Well: well"),
        (edit("load_data.csv", "P2,b03", "P2,b02"), ManifestError, "listed already, in load_data.csv row 6"),
        (edit("load_data.csv", "images/P2", "../../etc"), ManifestError, "outside the root"),
        (edit("maps/platemap/m.txt", "B02\t\t\nB03\t\t\n", "B02\tx\t1\nB03\tx\t1\n"), ManifestError, "has no control"),
        (edit("maps/barcode_platemap.csv", "P2,m", "P3,m"), ManifestError, 'plate "P2" is in no barcode_platemap.csv'),
        (edit("manifest.yaml", "pixel_um", "pixel_umm"), ManifestError, 'Did you mean "pixel_um"'),
    ],
)
def test_a_faulty_data_set_is_refused_in_one_line_and_leaves_nothing(
    plate: Path, tmp_path: Path, change: Callable[[Path], None], kind: type[CellbridgeError], message: str
) -> None:
    folder = spoil(plate, tmp_path / "in", change)
    (tmp_path / "out").mkdir()
    with pytest.raises(kind) as caught:
        prepare(folder, tmp_path / "out" / "s.zarr", split={"by": "plate", "test": ["P2"]})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_a_path_outside_the_root_is_never_opened(plate: Path, tmp_path: Path) -> None:
    """`strace` in one line: an audit hook sees every file that is opened."""
    folder = spoil(plate, tmp_path / "in", edit("load_data.csv", "images/P2", "../secret"))
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    with pytest.raises(ManifestError, match="outside the root"):
        prepare(folder, tmp_path / "s.zarr")
    assert any("load_data.csv" in name for name in opened)
    assert not any("secret" in name or name.endswith(".tif") for name in opened)


def test_plates_without_control_pass_when_all_cells_are_the_reference(plate: Path, tmp_path: Path) -> None:
    change = edit("maps/platemap/m.txt", "B02\t\t\nB03\t\t\n", "B02\tx\t1\nB03\tx\t1\n")
    prepare(spoil(plate, tmp_path / "in", change), tmp_path / "s.zarr", intensity_reference="all")
    assert describe(tmp_path / "s.zarr").intensity_reference == "all"


def test_an_existing_store_and_an_unknown_test_plate_are_refused(plate: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="exists already"):
        prepare(plate, store)
    with pytest.raises(ConfigError, match=r'split\.test: plate "P22" is not in the data\. Did you mean "P2"'):
        prepare(plate, tmp_path / "s.zarr", split={"test": ["P22"]})


def test_the_stage_is_imported_without_torch() -> None:
    code = "import sys, cellbridge.stages.prepare; assert not {'torch', 'zarr', 'skimage', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- ready-made crops


def write_crops(folder: Path, *, wrong: str = "") -> Path:
    rows = []
    for p, plate_name in enumerate(PLATES):
        for c in range(4):
            name = f"{plate_name}/c{c}.npy"
            crop = np.moveaxis(field(100 + 10 * p + c)[:, 32:64, 34:66], 0, 2)
            if wrong == "shape" and c == 1:
                crop = crop[:20]
            (folder / plate_name).mkdir(parents=True, exist_ok=True)
            np.save(folder / name, crop)
            md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
            rows.append(
                {
                    "path": name,
                    "Metadata_Plate": plate_name,
                    "Metadata_Well": "B02" if c < 2 else "B03",
                    "Metadata_Cell": 11 - c,
                    "Metadata_Compound": "DMSO" if c < 2 else "null",
                    "Metadata_Concentration": "0" if c < 2 else "5",
                    "Metadata_pert_type": "negcon" if c < 2 else "trt",
                    "md5": md5 if wrong != "md5" else "0" * 32,
                }
            )
    write_csv(folder / "cells.csv", rows)
    write_manifest(folder, kind="crops", tables=["cells.csv"], platemaps=None)
    return folder


def test_ready_made_crops_are_centred_resampled_and_masked(tmp_path: Path) -> None:
    summary = prepare(write_crops(tmp_path / "in"), tmp_path / "s.zarr", crop_px=28, size_px=14, split={"test": ["P2"]})
    opened = open_store(tmp_path / "s.zarr")
    assert summary["cells"] == 8
    assert opened.obs["Metadata_Cell"].tolist()[:2] == [f"{PLATES[0]}_B02_s1_c010", f"{PLATES[0]}_B02_s1_c011"]
    assert set(opened.condition_names) == {"DMSO", "null@5"}
    crop = np.load(tmp_path / "in" / PLATES[0] / "c1.npy")[2:30, 2:30]
    expected = crop.reshape(14, 2, 14, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.moveaxis(opened.counts([0])[0], 0, 2) - expected).mean() < 0.1 * expected.mean()
    masks = opened.masks(np.arange(8))
    assert masks is not None
    assert (masks[:, 7, 7] == 2).all()
    assert summary["without_mask"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("md5", "8 of 8 images cannot be used"), ("shape", "2 of 8 images cannot be used: cells.csv row 3")],
)
def test_faulty_crops_are_all_counted(tmp_path: Path, wrong: str, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        prepare(write_crops(tmp_path / "in", wrong=wrong), tmp_path / "s.zarr", crop_px=28, size_px=14)
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_same_crop_in_train_and_test_is_a_leak(tmp_path: Path) -> None:
    folder = write_crops(tmp_path / "in")
    crop = np.load(folder / "P2" / "c2.npy")
    np.save(folder / PLATES[0] / "c0.npy", crop)
    edit("cells.csv", "md5", "was")(folder)
    with pytest.raises(LeakError, match=r"c0\.npy .*c2\.npy"):
        prepare(folder, tmp_path / "s.zarr", crop_px=28, size_px=28, split={"test": ["P2"]})


def test_real_crops_of_bbbc021_become_cells(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "bbbc021_cells"
    root = tmp_path / "root"
    root.mkdir()
    lines = (source / "cells.csv").read_text().splitlines()
    chosen = [line for line in lines[1:] if "/B02_s1_c00" in line or "/B03_s1_c00" in line]
    (root / "cells.csv").write_text("\n".join([lines[0], *chosen]))
    for folder in source.iterdir():
        if folder.is_dir():
            (root / folder.name).symlink_to(folder)
    manifest = Path(__file__).parents[2] / "data_manifests" / "bbbc021_cells"
    values = {"manifest": str(manifest), "root": str(root), "crop_px": 64, "split": {"test": ["Week4_27821"]}}
    summary = run(validate(Config, values, source="test"), out=tmp_path / "s.zarr")
    assert summary["cells"] == len(chosen) > 20
    assert set(summary["cells_by_condition"]) == {"DMSO", "cyclohexamide@50"}
    assert summary["without_mask"] <= 0.1 * len(chosen)


# --- the same cells again, under other conditions


def write_truth(folder: Path, plate: Path, *, gain: float = 1.0) -> Path:
    rows, cells = [], []
    for origin in ("counterfactual", "responding"):
        row = {"Metadata_Plate": "P2", "Metadata_Well": "B02", "Metadata_Site": 1}
        for name in CHANNELS:
            image = tifffile.imread(plate / "images/P2" / f"B02_{name}.tif")
            file = folder / origin / f"{name}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(file, np.rint(gain * image).astype(np.uint16))
            row |= {f"FileName_{name}": file.name, f"PathName_{name}": origin}
        rows.append(row | {"Metadata_Compound": "NA", "Metadata_Concentration": "1", "Metadata_Origin": origin})
    place = {"Metadata_Plate": "P2", "Metadata_Well": "B02", "Metadata_Site": 1}
    for index, (r, c) in enumerate(PLACES[:-1]):
        truth = {"x": c + 2, "y": r - 1, "Truth_PResponse": index / 10, "Truth_Lost": int(index == 3)}
        cells.append(place | {"Metadata_Compound": "NA", "Metadata_Concentration": "1.0"} | truth)
    write_csv(folder / "load_data.csv", rows)
    write_csv(folder / "cells.csv", cells)
    write_manifest(folder, platemaps=None, objects="cells.csv")
    return folder


def truth_of(folder: Path, store: Path, out: Path, **settings: Any) -> dict[str, Any]:
    values = {"manifest": str(folder), "crops_from": str(store), **settings}
    return run(validate(Config, values, source="test"), out=out)


def test_the_same_cells_are_cut_again_with_masks_maps_and_truth(plate: Path, store: Path, tmp_path: Path) -> None:
    summary = truth_of(write_truth(tmp_path / "in", plate), store, tmp_path / "t.zarr")
    truth, source = open_store(tmp_path / "t.zarr"), open_store(store)
    assert summary["cells"] == 2 * 7
    assert summary["rejected"] == {"lost": 2, "no_object": 2}
    position = {name: index for index, name in enumerate(source.obs["Metadata_Cell"])}
    rows = [position[name] for name in truth.obs["Metadata_SourceCell"]]
    np.testing.assert_array_equal(truth.counts(np.arange(14)), source.counts(rows))
    np.testing.assert_array_equal(truth.masks(np.arange(14)), source.masks(rows))
    assert truth.info.intensity["P2"] == source.info.intensity["P2"]
    assert set(truth.condition_names) == {"NA@1"}
    assert set(truth.obs["Metadata_Origin"]) == {"counterfactual", "responding"}
    assert set(truth.obs["Metadata_Split"]) == {"test"}
    assert truth.obs["Truth_PResponse"].tolist()[:7] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7]


def test_the_light_of_the_store_is_used_again(plate: Path, tmp_path: Path) -> None:
    prepare(plate, tmp_path / "s.zarr", illumination="estimate", illumination_min_fields=2)
    truth_of(write_truth(tmp_path / "in", plate), tmp_path / "s.zarr", tmp_path / "t.zarr")
    truth, source = open_store(tmp_path / "t.zarr"), open_store(tmp_path / "s.zarr")
    rows = [list(source.obs["Metadata_Cell"]).index(name) for name in truth.obs["Metadata_SourceCell"]]
    np.testing.assert_array_equal(truth.counts(np.arange(14)), source.counts(rows))


def test_images_that_do_not_fit_the_store_are_refused(plate: Path, store: Path, tmp_path: Path) -> None:
    folder = write_truth(tmp_path / "in", plate)
    with pytest.raises(ConfigError, match="crops_from: size_px is that of"):
        truth_of(folder, store, tmp_path / "t.zarr", size_px=16)
    with pytest.raises(StoreError, match="no such store"):
        truth_of(folder, tmp_path / "gone.zarr", tmp_path / "t.zarr")
    edit("load_data.csv", "P2,B02", "P2,H12")(folder)
    with pytest.raises(ManifestError, match="has no cell in the store"):
        truth_of(folder, store, tmp_path / "t.zarr")
    write_manifest(folder, platemaps=None, channels=["DNA", "AGP", "ER"])
    with pytest.raises(ConfigError, match="channels is"):
        truth_of(folder, store, tmp_path / "t.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
