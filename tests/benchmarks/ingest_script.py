"""What a laboratory would write with scikit-image: read, segment, cut and store, one field after the other.

It finds the cells that `prepare` finds, by the same steps and thresholds, with the library's functions as their documentation uses them:
`regionprops` for what is measured of objects, `labels == number` for a cell's mask, zarr-python for the store. A careful author cuts out
the window before he compares, which saves a quarter of the script's time: `careful` does.
"""

import csv
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import tifffile
import zarr
from painted_plate import CHANNELS, CROP_PX, NUCLEUS_PX
from scipy import ndimage
from skimage import feature, filters, measure, morphology, segmentation
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

Array = np.ndarray[Any, np.dtype[Any]]

_EDGE = 0.45
_SHARD = 2048


def ingest(folder: Path, out: Path, *, careful: bool = False) -> None:
    """Write a Zarr group with images, masks and a table of the cells of every field of `load_data.csv`."""
    warnings.filterwarnings("ignore", "zarr v3 autosharding|`binary_opening` is deprecated")
    rows, images, masks = [], [], []
    with (folder / "load_data.csv").open(newline="") as stream:
        table = sorted(csv.DictReader(stream), key=lambda r: (r["Metadata_Well"], int(r["Metadata_Site"])))
    for row in table:
        field = np.stack([tifffile.imread(folder / row[f"PathName_{c}"] / row[f"FileName_{c}"]) for c in CHANNELS])
        nuclei = find_nuclei(field[0])
        cells = find_cells(nuclei, field[1])
        found = cut_cells(field, nuclei, cells, careful=careful)
        for number, (centre, image, mask) in enumerate(found, start=1):
            name = f"P1_{row['Metadata_Well']}_s{row['Metadata_Site']}_c{number:03d}"
            rows.append({**row, "Metadata_Cell": name, "x": centre[1], "y": centre[0]})
            images.append(image)
            masks.append(mask)
    counts = np.stack(images)
    control = counts[[row["Metadata_pert_type"] == "negcon" for row in rows]]
    maps = [np.percentile(control[:, channel], (50, 99.9)).tolist() for channel in range(len(CHANNELS))]
    group = zarr.create_group(out, attributes={"channels": list(CHANNELS), "intensity": maps})
    write_array(group, "images", counts)
    write_array(group, "masks", np.stack(masks))
    obs = pd.DataFrame(rows).astype({"x": float, "y": float})
    anndata.io.write_elem(group, "table", anndata.AnnData(obs=obs.set_index("Metadata_Cell")))


def find_nuclei(image: Array) -> Array:
    """Threshold, split by shape, cut each piece at its own height, and split again."""
    smooth, background, threshold = level_of(image)
    pieces = split(clean(smooth > threshold))
    height = np.full(int(pieces.max()) + 1, np.inf)
    for region in measure.regionprops(pieces, intensity_image=smooth):
        values = region.image_intensity[region.image].astype(np.float64)
        height[region.label] = values[values >= values.mean()].mean()
    own = background + _EDGE * (height - background)
    return split(clean((pieces > 0) & (smooth > own[pieces])))


def level_of(image: Array) -> tuple[Array, float, float]:
    """Smooth, and find background and threshold: Otsu's on the square root of the height, beyond the noise."""
    width = max(0.05 * NUCLEUS_PX, 0.7)
    exact = image.astype(np.float32)
    smooth = filters.gaussian(exact, width, mode="reflect", preserve_range=True)
    background = float(np.percentile(smooth, 5))
    noise = max(1.05 * float(np.median(np.abs(np.diff(exact, axis=1)))), 0.5) / (2.0 * np.sqrt(np.pi) * width)
    height = float(filters.threshold_otsu(np.sqrt(np.maximum(smooth - background, 0.0)))) ** 2
    return smooth, background, background + max(height, 8.0 * noise)


def clean(foreground: Array) -> Array:
    area = np.pi / 4 * NUCLEUS_PX**2
    filled = morphology.remove_small_holes(foreground, max_size=int(0.25 * area))
    opened = morphology.binary_opening(filled, morphology.disk(max(round(0.06 * NUCLEUS_PX), 1)))
    return morphology.remove_small_objects(opened, max_size=int(area / 12))


def split(foreground: Array) -> Array:
    distance = ndimage.distance_transform_edt(foreground).astype(np.float32)
    distance = filters.gaussian(distance, 0.08 * NUCLEUS_PX, mode="reflect", preserve_range=True)
    apart = max(round(0.45 * NUCLEUS_PX), 1)
    peaks = feature.peak_local_max(distance, min_distance=apart, threshold_abs=0.1, exclude_border=False)
    markers = np.zeros(foreground.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return segmentation.watershed(-distance, markers, mask=foreground)


def find_cells(nuclei: Array, image: Array) -> Array:
    smooth, _, threshold = level_of(image)
    near = ndimage.distance_transform_edt(nuclei == 0) <= 1.2 * NUCLEUS_PX
    return segmentation.watershed(-smooth, nuclei, mask=(near & (smooth > threshold)) | (nuclei > 0))


def cut_cells(field: Array, nuclei: Array, cells: Array, *, careful: bool) -> list[tuple[Array, Array, Array]]:
    """Return centre, image and mask of each whole cell of plausible size, from top to bottom."""
    found = []
    size = field.shape[1]
    typical = np.pi / 4 * NUCLEUS_PX**2
    for region in measure.regionprops(nuclei):
        top, left = (int(np.floor(c - (CROP_PX - 1) / 2 + 0.5)) for c in region.centroid)
        y0, x0, y1, x1 = region.bbox
        at_edge = y0 == 0 or x0 == 0 or y1 == size or x1 == size
        inside = 0 <= top <= size - CROP_PX and 0 <= left <= size - CROP_PX
        if at_edge or not inside or not 0.25 <= region.area / typical <= 4.0:
            continue
        window = np.s_[top : top + CROP_PX, left : left + CROP_PX]
        if careful:
            mask = (cells[window] == region.label).astype(np.uint8)
            mask[nuclei[window] == region.label] = 2
        else:
            mask = (cells == region.label).astype(np.uint8)
            mask[nuclei == region.label] = 2
            mask = mask[window].copy()
        found.append((np.array(region.centroid), field[:, *window].copy(), mask))
    return sorted(found, key=lambda cell: (cell[0][0], cell[0][1]))


def write_array(group: zarr.Group, name: str, values: Array) -> None:
    """Write one cell per chunk, compressed and checksummed, in shards, as random access asks for."""
    codec = BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.bitshuffle, typesize=values.itemsize)
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(1, *values.shape[1:]),
        shards=(min(_SHARD, len(values)), *values.shape[1:]),
        compressors=[codec, Crc32cCodec()],
    )
    for start in range(0, len(values), _SHARD):
        array[start : start + _SHARD] = values[start : start + _SHARD]
