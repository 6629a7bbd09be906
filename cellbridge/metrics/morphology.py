"""CellProfiler-like morphology: named measures of nucleus, cytoplasm and cell, for each crop and every stain.

References
----------
Carpenter et al. 2006, "CellProfiler", Genome Biology 7:R100; Muñoz et al. 2025, "cp_measure: API-first feature extraction for image-based
profiling workflows", arXiv:2507.01163 (the measures themselves, where it is installed).
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellbridge.errors import ModelError
from cellbridge.metrics import shape, stain
from cellbridge.metrics.features import Extractor
from cellbridge.metrics.regions import DNA, Regions, dna_channel, find_regions, regions_of_masks

_VERSION = 1
"""Raised whenever a measure changes, so that numbers of two versions are not compared in silence."""

_CHUNK = 64
"""Cells that are measured at once: as many as stay in a processor's cache."""


def morphology(
    images: NDArray[np.floating[Any]], channels: Sequence[str], masks: NDArray[np.integer[Any]] | None = None
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Measure every crop.

    Where no masks are given, nucleus and cell are found in each image itself, so that real and generated cells are measured alike. A crop
    without nucleus or cell has 0 in all measures of it, and 0 in its `Found`.

    Parameters
    ----------
    images : (n, channel, height, width), in [-1, 1].
    channels : names of the stains; one of them shows the nucleus.
    masks : (n, height, width), 0 outside, 1 in the cell, 2 in its nucleus.

    Returns
    -------
    Names (measure,), as CellProfiler has them, and values (n, measure); lengths in px, signals in [0, 1].

    Raises
    ------
    ModelError : no stain shows the nucleus, or the channels are not those of the images.
    """
    dna = _require_dna(images.shape, channels)
    columns: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, max(len(images), 1), _CHUNK):
        part = np.asarray(images[start : start + _CHUNK])
        own = None if masks is None else masks[start : start + _CHUNK]
        regions = find_regions(part, dna=dna) if own is None else regions_of_masks(own)
        for name, values in _measured(part, channels, regions).items():
            columns.setdefault(name, []).append(values)
    return tuple(columns), np.stack([np.concatenate(values) for values in columns.values()], axis=1)


def morphology_extractor(
    channels: Sequence[str], *, by: Literal["cellbridge", "cp_measure"] = "cellbridge"
) -> Extractor:
    """Return morphology as an extractor of features, found in each image alone.

    The measures have many units: standardise them (`features.standardised`) before any distance is taken.

    Parameters
    ----------
    by : `cp_measure` takes CellProfiler's own measures, where that package is installed.

    Raises
    ------
    ModelError : no stain shows the nucleus, or cp_measure is asked for and not installed.
    """
    _require_dna((1, len(channels), 1, 1), channels)
    if by == "cp_measure":
        return _with_cp_measure(channels)

    def features(images: Tensor) -> Tensor:
        return torch.from_numpy(morphology(images.cpu().numpy(), channels)[1])

    words = f"cellbridge morphology {_VERSION}: {', '.join(channels)}"
    return Extractor("morphology", hashlib.sha256(words.encode()).hexdigest(), features)


def _require_dna(shape_found: tuple[int, ...], channels: Sequence[str]) -> int:
    if len(shape_found) != 4 or shape_found[1] != len(channels):
        raise ModelError(
            f"morphology: images of shape {shape_found}, expected (n, channel, height, width) of {list(channels)}."
        )
    found = dna_channel(channels)
    if found is None:
        raise ModelError(
            f"morphology: no channel of {list(channels)} shows the nucleus. One has to be called {' or '.join(DNA)}."
        )
    return found


def _measured(images: NDArray[np.floating[Any]], channels: Sequence[str], regions: Regions) -> stain.Measures:
    nuclei, cells = regions.nuclei, regions.cells
    places = {"Nuclei": nuclei, "Cytoplasm": cells & ~nuclei, "Cells": cells}
    signals = [((images[:, channel] + 1) / 2).astype(np.float32) for channel in range(len(channels))]
    found = _sizes(regions)
    for channel, signal in zip(channels, signals, strict=True):
        for place, mask in places.items():
            for name, values in stain.intensity(signal, mask).items():
                found[f"{place}_Intensity_{name}_{channel}"] = values
        found |= {f"Cells_Texture_{name}_{channel}": values for name, values in stain.texture(signal, cells).items()}
        found |= {
            f"Cells_Granularity_{name}_{channel}": values for name, values in stain.granularity(signal, cells).items()
        }
    for channel, measures in zip(channels, stain.radial_distribution(signals, nuclei, cells), strict=True):
        found |= {f"Cells_RadialDistribution_{name}_{channel}": values for name, values in measures.items()}
    for place in ("Nuclei", "Cells"):
        for (i, j), values in stain.correlation(signals, places[place]).items():
            found[f"{place}_Correlation_{channels[i]}_{channels[j]}"] = values
    return found


def _sizes(regions: Regions) -> stain.Measures:
    nuclei, cells = regions.nuclei, regions.cells
    found: stain.Measures = {"Image_Count_Nuclei": regions.count.astype(np.float64)}
    for place, masks in (("Nuclei", nuclei), ("Cells", cells)):
        found[f"{place}_Found"] = shape.present(masks).astype(np.float64)
        found |= {f"{place}_AreaShape_{name}": values for name, values in shape.shape(masks).items()}
    both = shape.present(nuclei) & shape.present(cells)
    y, x = (shape.centroids(nuclei) - shape.centroids(cells)).T
    found["Nuclei_Location_OffCentre"] = np.hypot(y, x) * both
    return found


def _with_cp_measure(channels: Sequence[str]) -> Extractor:
    try:
        from importlib.metadata import version

        from cp_measure.featurizer import featurize, make_featurizer_config
    except ImportError:
        raise ModelError(
            'cp_measure is not installed (or has no featurizer). Install it: pip install "cp-measure>=0.1.19"; or ask for morphology.'
        ) from None
    config = make_featurizer_config(list(channels), objects=["Nuclei", "Cells"])
    dna = _require_dna((1, len(channels), 1, 1), channels)

    def features(images: Tensor) -> Tensor:
        signals = ((images.cpu().numpy().astype(np.float64) + 1) / 2).clip(0, 1)
        regions = find_regions(images.cpu().numpy(), dna=dna)
        rows = [
            _one_cell(featurize, config, signal, np.stack([nucleus, cell]))
            for signal, nucleus, cell in zip(signals, regions.nuclei, regions.cells, strict=True)
        ]
        return torch.from_numpy(np.stack(rows))

    release = version("cp-measure")
    words = f"cp_measure {release}: {', '.join(channels)}"
    return Extractor(f"cp_measure {release}", hashlib.sha256(words.encode()).hexdigest(), features)


def _one_cell(
    featurize: Any, config: Any, signal: NDArray[np.float64], masks: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Measure one crop; what cp_measure cannot measure (NaN, or a region that is not there) is 0, as among our own measures."""
    there = shape.present(masks)[:, None]
    shown = np.where(there[:, :, None], masks, True).astype(np.int32)  # a table of one shape for all crops
    values = np.asarray(featurize(signal, shown, config)[0], dtype=np.float64)
    return np.concatenate([np.where(np.isfinite(values), values, 0) * there, there], axis=1).ravel()
