"""Array files and Zarr groups of images: many images in one array, with labels in it or a table beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.data.image_sets import Form, ImageSet, channel_names, channels_first, files_sha256, span_of
from cellbridge.data.image_tables import described, table_rows
from cellbridge.errors import ImageError, in_one_line

_LABELS = ("labels", "conditions", "arr_1")


def read_array_file(file: Path, form: Form) -> ImageSet:
    """Read images from `.npy`, `.npz` or `.h5ad`; pickled objects in them are refused.

    Raises
    ------
    ImageError : another kind of file, a damaged one, or one without an array of images.
    """
    readers = {".npy": _numpy_file, ".npz": _numpy_file, ".h5ad": _anndata_file}
    if file.suffix.lower() not in readers:
        raise ImageError(f"{file}: is no .npy, .npz or .h5ad file. Give one of these, or a folder of images.")
    arrays, rows = readers[file.suffix.lower()](file)
    images = _images(arrays, where=str(file))
    beside = [file.with_suffix(suffix) for suffix in (".csv", ".parquet") if file.with_suffix(suffix).is_file()]
    if rows is None and beside:
        rows = table_rows(beside[0], expected=len(images))
    return _image_set(file, images, arrays, rows, form=form, sha256=files_sha256([file, *beside], file.parent))


def read_zarr(group: Path, form: Form) -> ImageSet:
    """Read a Zarr array, or a group's `images` and `labels`; a cellbridge store with what its table says.

    Raises
    ------
    ImageError : no array of images is in it, or it is damaged.
    """
    import zarr

    from cellbridge.data.store import open_store

    if (group / "manifest.json").is_file():
        return _of_store(open_store(group), form)
    try:
        opened: Any = zarr.open(group, mode="r")
        found = {"images": opened} if hasattr(opened, "shape") else dict(opened.arrays())
        arrays = {name: np.asarray(array[...]) for name, array in found.items() if array.ndim in (1, 4)}
    except (LookupError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ImageError(f"{group}: cannot be read as Zarr ({in_one_line(error)}).") from None
    files = [file for file in group.rglob("*") if file.is_file()]
    return _image_set(
        group, _images(arrays, where=str(group)), arrays, None, form=form, sha256=files_sha256(files, group)
    )


def _of_store(store: Any, form: Form) -> ImageSet:
    """Take counts and table of a store as they are; a cell's name is that of its source, where it has one."""
    from cellbridge.runs import file_sha256

    info, obs = store.info, store.obs
    names = obs["Metadata_Cell"]
    if "Metadata_SourceCell" in obs:
        once = not obs.assign(condition=store.condition_names).duplicated(["Metadata_SourceCell", "condition"]).any()
        names = obs["Metadata_SourceCell"] if once else names  # several models' outputs share their sources
    places = {key: tuple(obs[f"Metadata_{key}"].astype(str)) for key in ("Plate", "Well", "Site")}
    if form.channels is not None and tuple(form.channels) != tuple(info.channels):
        raise ImageError(
            f"{info.path}: shows {', '.join(info.channels)}, channels says {', '.join(form.channels)}. Leave channels out."
        )
    return ImageSet(
        path=info.path,
        values=store.counts(np.arange(len(obs))),
        span=(0.0, float(info.full_scale)),
        channels=tuple(info.channels),
        ids=tuple(names.astype(str)),
        conditions=tuple(map(str, store.condition_names)),
        plates=places["Plate"],
        wells=places["Well"],
        sites=places["Site"],
        sha256=file_sha256(info.path / "manifest.json"),
    )


def _image_set(
    path: Path,
    images: NDArray[Any],
    arrays: Mapping[str, NDArray[Any]],
    rows: Sequence[Mapping[str, str]] | None,
    *,
    form: Form,
    sha256: str,
) -> ImageSet:
    values = np.ascontiguousarray(channels_first(images, form, where=str(path)))
    labels = next((arrays[name] for name in _LABELS if name in arrays and arrays[name].ndim == 1), None)
    if labels is not None and len(labels) != len(images):
        raise ImageError(f"{path}: {len(labels)} labels beside {len(images)} images, expected one each.")
    of_label = [""] * len(images) if labels is None else [_text(label) for label in labels]
    ids = [str(index) for index in range(len(images))]
    if rows is not None and all(row.get("Metadata_Cell") for row in rows):
        ids = [row["Metadata_Cell"] for row in rows]
    return ImageSet(
        path=path,
        values=values,
        span=span_of(values, form, where=str(path)),
        channels=channel_names(values.shape[1], form),
        ids=tuple(ids),
        **described(of_label, [None] * len(images) if rows is None else rows),
        sha256=sha256,
    )


def _numpy_file(file: Path) -> tuple[dict[str, NDArray[Any]], None]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}, None
        with loaded:
            return {name: loaded[name] for name in loaded.files}, None
    except (ValueError, EOFError, OSError) as error:
        raise ImageError(f"{file}: is no whole file of numbers ({in_one_line(error)}).") from None
    except Exception as error:  # zipfile has its own kinds
        raise ImageError(f"{file}: is damaged ({in_one_line(error)}). Copy it again.") from None


def _anndata_file(file: Path) -> tuple[dict[str, NDArray[Any]], list[dict[str, str]]]:
    import anndata

    try:
        table = anndata.read_h5ad(file)
    except Exception as error:  # h5py and anndata raise whatever a damaged file makes them stumble over
        raise ImageError(f"{file}: cannot be read as .h5ad ({in_one_line(error)}).") from None
    if "images" not in table.obsm:
        found = ", ".join(table.obsm) or "nothing"
        raise ImageError(f'{file}: no obsm["images"] (found: {found}). Put (n, channel, height, width) there.')
    rows = [{str(key): str(value) for key, value in row.items()} for row in table.obs.to_dict("records")]
    rows = [{"Metadata_Cell": str(name)} | row for name, row in zip(table.obs_names, rows, strict=True)]
    return {"images": np.asarray(table.obsm["images"])}, rows


def _images(arrays: Mapping[str, NDArray[Any]], *, where: str) -> NDArray[Any]:
    """Return `images`, or the only array of three or four axes."""
    candidates = [array for array in arrays.values() if array.ndim in (3, 4)]
    found = arrays.get("images", candidates[0] if len(candidates) == 1 else None)
    if found is None or found.ndim not in (3, 4) or len(found) == 0:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise ImageError(f"{where}: no array of images (found: {shapes}). Name one (n, channel, height, width) images.")
    return found if found.ndim == 4 else found[:, None]


def _text(label: Any) -> str:
    return label.decode() if isinstance(label, bytes) else str(label)
