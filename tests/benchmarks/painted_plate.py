"""A plate of painted fields on disk, as large as a microscope's and quickly made: round cells with a nucleus, shot noise, five stains."""

import csv
from pathlib import Path

import numpy as np
import tifffile
import yaml

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
NUCLEUS_PX = 16.0
CROP_PX = 48


def write_plate(folder: Path, *, fields: int, field_px: int, cells: int) -> Path:
    """Write so many fields, nine to a well, of which every fourth, the first among them, is the control, with table, manifest and zlib-compressed TIFFs."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(fields):
        well = index // 9
        control = well % 4 == 0
        row = {
            "Metadata_Plate": "P1",
            "Metadata_Well": f"{chr(65 + well // 24 % 16)}{well % 24 + 1:02d}",
            "Metadata_Site": index % 9 + 1,
            "Metadata_Compound": "DMSO" if control else "taxol",
            "Metadata_pert_type": "negcon" if control else "trt",
        }
        for channel, plane in zip(CHANNELS, paint(index, field_px=field_px, cells=cells), strict=True):
            name = f"{index:05d}_{channel}.tif"
            tifffile.imwrite(folder / "images" / name, plane, compression="zlib")
            row |= {f"FileName_{channel}": name, f"PathName_{channel}": "images"}
        rows.append(row)
    with (folder / "load_data.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    manifest = {
        "name": "painted",
        "licence": "CC0-1.0",
        "citation": "none",
        "kind": "load_data",
        "tables": ["load_data.csv"],
        "channels": list(CHANNELS),
        "nucleus_channel": "DNA",
        "cell_channel": "ER",
        "nucleus_px": NUCLEUS_PX,
        "plate_format": 384,
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def paint(seed: int, *, field_px: int, cells: int) -> np.ndarray:
    """Return a field (channel, y, x), uint16."""
    draw = np.random.default_rng(seed)
    light = np.full((len(CHANNELS), field_px, field_px), 400.0, np.float32)
    reach = 24
    steps = np.arange(-reach, reach + 1)
    for row, column in draw.integers(reach, field_px - reach, (cells, 2)):
        window = np.s_[:, row - reach : row + reach + 1, column - reach : column + reach + 1]
        radius = NUCLEUS_PX / 2 * draw.uniform(0.8, 1.2)
        distance = np.hypot(steps[:, None] + draw.uniform(-0.5, 0.5), steps + draw.uniform(-0.5, 0.5))
        nucleus = 1 / (1 + np.exp(2 * (distance - radius)))
        cell = 1 / (1 + np.exp(distance - 2.2 * radius))
        amount = draw.uniform(0.7, 1.4, (len(CHANNELS), 1, 1)) * 3000
        light[window] += amount * np.stack([2 * nucleus, cell, cell + nucleus, cell, 0.7 * cell])
    return draw.poisson(light).astype(np.uint16)
