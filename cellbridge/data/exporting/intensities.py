"""What every store can say of its cells without a network: area, and the counts of each stain in cell, nucleus and cytoplasm."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.data.exporting.cells import Cells

_AT_ONCE = 512


def measured_intensities(cells: Cells) -> pd.DataFrame:
    """Return area and mean, standard deviation and sum of the counts per region and stain, by CellProfiler's names.

    `Nuclei_Intensity_MeanIntensity_DNA` and so on: counts in the camera's units, not CellProfiler's shares of the full scale; areas in
    pixels of the store. Where a store has no masks the whole crop stands for the cell. A region that a cell lacks is a missing value.

    Returns
    -------
    one row per cell, float64.
    """
    regions = ("Cells", "Nuclei", "Cytoplasm") if cells.has_masks else ("Cells",)
    parts = []
    for rows in cells.blocks(_AT_ONCE):
        counts = cells.counts(rows).astype(np.float64)
        masks = cells.masks(rows) if cells.has_masks else np.full((len(rows), *counts.shape[2:]), 2, np.uint8)
        columns: dict[str, NDArray[np.float64]] = {}
        for region in regions:
            inside = {"Cells": masks > 0, "Nuclei": masks == 2, "Cytoplasm": masks == 1}[region]
            columns |= _of_region(counts, inside, region=region, channels=cells.info.channels)
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True).set_axis(cells.obs.index)


def _of_region(
    counts: NDArray[np.float64], inside: NDArray[np.bool_], *, region: str, channels: tuple[str, ...]
) -> dict[str, NDArray[np.float64]]:
    area = inside.sum(axis=(1, 2)).astype(np.float64)
    pixels = np.where(area > 0, area, np.nan)[:, None]
    total = np.where(inside[:, None], counts, 0.0).sum(axis=(2, 3))
    mean = total / pixels
    deviation = np.where(inside[:, None], counts - mean[:, :, None, None], 0.0)
    spread = np.sqrt((deviation**2).sum(axis=(2, 3)) / pixels)
    columns = {f"{region}_AreaShape_Area": area}
    for index, channel in enumerate(channels):
        columns[f"{region}_Intensity_MeanIntensity_{channel}"] = mean[:, index]
        columns[f"{region}_Intensity_StdIntensity_{channel}"] = spread[:, index]
        columns[f"{region}_Intensity_IntegratedIntensity_{channel}"] = np.where(area > 0, total[:, index], np.nan)
    return columns
