"""Images that cellbridge did not make: one set of pixels is the same set in every form, and what leaves its meaning open is refused."""

import hashlib
import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from PIL import Image

from cellbridge.data.image_sets import Form, ImageSet, read_image_set
from cellbridge.errors import ImageError

CHANNELS = ("DNA", "ER", "Mito")
CONDITIONS = ("DMSO", "taxol@1")


def cells(dtype: type = np.uint8, *, channels: int = 3) -> np.ndarray:
    """(condition, n, channel, height, width); height and width differ, so that a swap of axes shows."""
    top = np.iinfo(dtype).max + 1
    return np.random.default_rng(0).integers(0, top, (2, 4, channels, 24, 20)).astype(dtype)


def _folders(root: Path) -> list[Path]:
    folders = [root / condition for condition in CONDITIONS]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def _rgb_png(root: Path, images: np.ndarray) -> tuple[Path, Form]:
    for folder, some in zip(_folders(root), images, strict=True):
        for index, image in enumerate(some):
            Image.fromarray(np.moveaxis(image, 0, -1)).save(folder / f"cell{index}.png")
    return root, Form(channels=CHANNELS)


def _tiff_pages(root: Path, images: np.ndarray) -> tuple[Path, Form]:
    for folder, some in zip(_folders(root), images, strict=True):
        for index, image in enumerate(some):
            tifffile.imwrite(folder / f"cell{index}.tif", image, photometric="minisblack")
    return root, Form(channels=CHANNELS)


def _suffixes(root: Path, images: np.ndarray) -> tuple[Path, Form]:
    for folder, some in zip(_folders(root), images, strict=True):
        for index, image in enumerate(some):
            for name, plane in zip(CHANNELS, image, strict=True):
                Image.fromarray(plane).save(folder / f"cell{index}_{name}.png")
    return root, Form(channels=CHANNELS, pattern="{image}_{channel}")


def _npy(root: Path, images: np.ndarray) -> tuple[Path, Form]:
    for folder, some in zip(_folders(root), images, strict=True):
        for index, image in enumerate(some):
            np.save(folder / f"cell{index}.npy", np.moveaxis(image, 0, -1))
    return root, Form(channels=CHANNELS, axes="HWC")


def _npz(root: Path, images: np.ndarray) -> tuple[Path, Form]:
    root.mkdir()
    labels = np.repeat(CONDITIONS, 4)
    np.savez(root / "x.npz", arr_0=np.moveaxis(images.reshape(8, 3, 24, 20), 1, -1), arr_1=labels)
    pd.DataFrame({"Metadata_Cell": [f"cell{i % 4}" for i in range(8)], "condition": labels}).to_csv(
        root / "x.csv", index=False
    )
    return root / "x.npz", Form(channels=CHANNELS)


def _h5ad(root: Path, images: np.ndarray) -> tuple[Path, Form]:
    root.mkdir()
    obs = pd.DataFrame({"condition": np.repeat(CONDITIONS, 4)}, index=[f"cell{i % 4}-{i // 4}" for i in range(8)])
    table = anndata.AnnData(obs=obs, obsm={"images": images.reshape(8, 3, 24, 20)})
    table.obs_names = [f"cell{i % 4}" for i in range(8)]
    table.write_h5ad(root / "x.h5ad")
    return root / "x.h5ad", Form(channels=CHANNELS)


def _zarr(root: Path, images: np.ndarray) -> tuple[Path, Form]:
    group = zarr.open_group(root, mode="w")
    group.create_array("images", data=images.reshape(8, 3, 24, 20))
    group.create_array("labels", data=np.repeat(CONDITIONS, 4).astype("S8"))
    return root, Form(channels=CHANNELS)


FORMS = {"rgb": _rgb_png, "pages": _tiff_pages, "suffixes": _suffixes, "npy": _npy}
FORMS |= {"npz": _npz, "h5ad": _h5ad, "zarr": _zarr}


@pytest.mark.filterwarnings("ignore:.*[Nn]ames are not unique", "ignore:.*does not have a Zarr V3 specification")
@pytest.mark.parametrize("form", FORMS)
def test_one_set_of_cells_is_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    images = cells()
    found = read_image_set(*FORMS[form](tmp_path / "set", images))
    np.testing.assert_array_equal(found.values, images.reshape(8, 3, 24, 20))
    assert found.conditions == ("DMSO",) * 4 + ("taxol@1",) * 4
    assert found.channels == CHANNELS
    if form != "zarr":
        assert found.ids == ("cell0", "cell1", "cell2", "cell3") * 2


def test_8_bit_and_16_bit_and_fractions_of_one_scene_are_the_same_image(tmp_path: Path) -> None:
    scene = cells()[0, :, :1]
    for name, values in {"8": scene, "16": scene.astype(np.uint16) * 257, "f": scene / np.float32(255)}.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", values[0, 0])
    images = [read_image_set(tmp_path / name, Form(value_range=(0, 1))).images() for name in ("8", "16", "f")]
    np.testing.assert_allclose(images[0], 2 * (scene[:1] / 255.0) - 1, atol=1e-6)
    np.testing.assert_allclose(images[1], images[0], atol=1e-6)
    np.testing.assert_allclose(images[2], images[0], atol=1e-6)


def test_16_bit_colours_and_planes_in_png_are_read_to_the_count(tmp_path: Path) -> None:
    import imagecodecs

    image = cells(np.uint16)[0, 0]
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(np.moveaxis(image, 0, -1))))
    np.testing.assert_array_equal(read_image_set(tmp_path).values[0], image)


def test_an_image_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    images = cells()
    together = read_image_set(*_tiff_pages(tmp_path / "both", images))
    (tmp_path / "alone").mkdir()
    tifffile.imwrite(tmp_path / "alone" / "x.tif", images[1, 2], photometric="minisblack")
    alone = read_image_set(tmp_path / "alone", Form(channels=CHANNELS))
    np.testing.assert_array_equal(alone.images()[0], together.images()[6])
    np.testing.assert_array_equal(together.take(np.array([6])).images(), together.images([6]))


def _tree(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), os.stat(file).st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.filterwarnings("ignore:.*[Nn]ames are not unique", "ignore:.*does not have a Zarr V3 specification")
@pytest.mark.parametrize("form", FORMS)
def test_reading_writes_nothing(form: str, tmp_path: Path) -> None:
    path, how = FORMS[form](tmp_path / "set", cells())
    before = _tree(tmp_path)
    for directory in [tmp_path, *(p for p in tmp_path.rglob("*") if p.is_dir())]:
        directory.chmod(0o555)
    first = read_image_set(path, how)
    assert _tree(tmp_path) == before
    assert first.sha256 == read_image_set(path, how).sha256
    for directory in [tmp_path, *(p for p in tmp_path.rglob("*") if p.is_dir())]:
        directory.chmod(0o755)


def test_a_table_says_more_than_the_folders_and_keeps_strings_as_they_are(tmp_path: Path) -> None:
    folder, how = _tiff_pages(tmp_path / "set", cells())
    rows = ["path,Metadata_Compound,Metadata_Concentration,Metadata_Plate,Metadata_Well,Metadata_Site"]
    rows += [f"DMSO/cell{i}.tif,=cmd|x,0.10,0001053597806,B0{i},1" for i in (0, 2)]
    (folder / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    found = read_image_set(folder, how)
    assert found.conditions == ("=cmd|x@0.1",) * 2
    assert (found.ids, found.plates, found.wells) == (("cell0", "cell2"), ("0001053597806",) * 2, ("B00", "B02"))


def test_a_store_of_cellbridge_is_a_set_like_any_other(tmp_path: Path) -> None:
    import torch

    from cellbridge.data.intensity import fit_intensity
    from cellbridge.data.store import write_store

    counts = cells(np.uint16).reshape(8, 3, 24, 20)[:, :, :20]
    obs = pd.DataFrame({"Metadata_Cell": [f"c{i}" for i in range(8)], "Metadata_Plate": "P1", "Metadata_Well": "B02"})
    obs["Metadata_Site"], obs["Metadata_Split"] = "1", "test"
    obs["Metadata_Compound"] = ["DMSO"] * 4 + ["taxol"] * 4
    obs["Metadata_Concentration"] = ["0"] * 4 + ["1"] * 4
    obs["Metadata_pert_type"] = ["negcon"] * 4 + ["trt"] * 4
    maps = fit_intensity({"P1": counts[:4]}, channels=CHANNELS, full_scale=65535)
    head = {"channels": CHANNELS, "full_scale": 65535, "size_px": 20, "pixel_um": None, "control": "DMSO"}
    write_store(tmp_path / "s.zarr", obs=obs.astype(str), counts=counts, intensity=maps, **head)
    found = read_image_set(tmp_path / "s.zarr")
    np.testing.assert_array_equal(found.values, counts)
    assert found.conditions == ("DMSO",) * 4 + ("taxol@1",) * 4
    assert torch.tensor(found.images()).min() >= -1


def _broken(root: Path) -> dict[str, tuple[Path, Form, str]]:
    """What may go wrong, by name: where, how it is read, and what the error says."""
    images = cells()[0]
    cases: dict[str, tuple[Path, Form, str]] = {"absent": (root / "nowhere", Form(), "is not there")}

    def folder(name: str, files: dict[str, np.ndarray], message: str, form: Form | None = None) -> None:
        for file, values in files.items():
            (root / name / file).parent.mkdir(parents=True, exist_ok=True)
            np.save(root / name / file, values)
        cases[name] = (root / name, form or Form(), message)

    pair = Form(channels=("DNA", "ER"), pattern="{image}_{channel}")
    folder("floats", {"a.npy": images[0] / 255.0}, "whose range nothing says")
    folder("sizes", {"a.npy": images[0], "b.npy": images[0][:, 1:]}, r"b\.npy: .*as in a\.npy")
    folder("types", {"a.npy": images[0], "b.npy": images[0].astype(np.uint16)}, "store them in one type")
    folder("axes", {"a.npy": images[0][:, :8, :8]}, "first or the last axis")
    folder("beside", {"a.npy": images[0], "x/b.npy": images[0]}, "both in it")
    folder("missing", {"a_DNA.npy": images[0, 0], "a_ER.npy": images[0, 0], "b_DNA.npy": images[0, 0]}, "no file", pair)
    folder("names", {"a_DNA.npy": images[0, 0], "cell.npy": images[0, 0]}, "does not fit the pattern", pair)
    folder("beyond", {"a.npy": images[0].astype(np.uint16) * 100}, "leave 0 to 4095", Form(full_scale=4095))
    folder("nan", {"a.npy": np.full((3, 24, 20), np.nan)}, "not finite", Form(value_range=(0, 1)))
    folder("object", {"a.npy": np.array([{}], dtype=object)}, "no whole .npy array")
    folder("channels", {"a.npy": images[0]}, "expected 2", Form(channels=("DNA", "ER"), axes="CHW"))
    return cases


CASES = (
    "absent",
    "floats",
    "sizes",
    "types",
    "axes",
    "beside",
    "missing",
    "names",
    "beyond",
    "nan",
    "object",
    "channels",
)


@pytest.mark.parametrize("case", CASES)
def test_what_leaves_its_meaning_open_is_refused_with_what_to_do(case: str, tmp_path: Path) -> None:
    path, form, message = _broken(tmp_path)[case]
    with pytest.raises(ImageError, match=message):
        read_image_set(path, form)


def test_a_png_that_lost_its_end_and_a_lossy_folder_are_refused(tmp_path: Path) -> None:
    Image.fromarray(cells()[0, 0, 0]).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:-9])
    with pytest.raises(ImageError, match="truncated"):
        read_image_set(tmp_path)
    (tmp_path / "x.png").unlink()
    Image.fromarray(cells()[0, 0, 0]).save(tmp_path / "x.jpg")
    with pytest.raises(ImageError, match="stored with loss"):
        read_image_set(tmp_path)


def test_full_transparency_is_dropped_and_any_other_refused(tmp_path: Path) -> None:
    image = np.moveaxis(cells()[0, 0], 0, -1)
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "x.png")
    found: ImageSet = read_image_set(tmp_path)
    np.testing.assert_array_equal(np.moveaxis(found.values[0], 0, -1), image)
    opaque[0, 0, 3] = 7
    Image.fromarray(opaque).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="transparency"):
        read_image_set(tmp_path)
