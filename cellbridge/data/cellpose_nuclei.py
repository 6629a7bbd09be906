"""Nuclei by a Cellpose network, in place of threshold and watershed: an extra (`pip install 'cellbridge[cellpose]'`).

Nothing is downloaded: the weights are a file that the user names, and their licence is the user's to keep. The program is BSD-3; of
its published models, Cellpose-SAM was trained on data under CC BY-NC, so that what it segments may not be used commercially. What the
store says of its segmentation holds the weights' hash.

References
----------
Stringer et al. 2021, "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods 18:100.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.data.segmentation import Image, Labels
from cellbridge.errors import ConfigError


def find_nuclei(image: Image, *, nucleus_px: float, weights: str) -> Labels:
    """Label the nuclei of a field.

    Parameters
    ----------
    image : (y, x), counts of the stain that shows nuclei.
    nucleus_px : typical nucleus diameter in pixels, which the network is told.
    weights : the file of a Cellpose model.

    Returns
    -------
    (y, x), int32, numbered from 1 in the order of their first pixels.

    Raises
    ------
    ConfigError : cellpose is not installed, or there is no such file.
    """
    found: np.ndarray[Any, np.dtype[Any]] = _model(weights).eval(image, diameter=nucleus_px, channels=[0, 0])[0]
    numbers, first, places = np.unique(found, return_index=True, return_inverse=True)
    order = np.zeros(len(numbers), np.int32)
    inside = np.flatnonzero(numbers > 0)
    order[inside[np.argsort(first[inside])]] = np.arange(1, len(inside) + 1)
    labels: Labels = order[places].reshape(found.shape)
    return labels


@lru_cache(maxsize=1)
def _model(weights: str) -> Any:
    """Load a model once in every process; on the CPU, which all machines have and where several processes share the work."""
    if not Path(weights).is_file():
        raise ConfigError(f"segmentation.cellpose: {weights}: no such file. Give the weights of a Cellpose model.")
    try:
        from cellpose import models
    except ImportError:
        raise ConfigError(
            "segmentation.cellpose: cellpose is not installed. pip install 'cellbridge[cellpose]', or leave the setting out."
        ) from None
    return models.CellposeModel(gpu=False, pretrained_model=weights)
