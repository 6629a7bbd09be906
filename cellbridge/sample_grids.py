"""Grids of images that a training draws as it goes: rows of cells by name, in one contrast."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cellbridge.plots.composite import contrast_limits
from cellbridge.plots.montage import montage
from cellbridge.runs import publish_file

CELLS = 6
"""In a row."""
CONDITIONS = 3
"""Shown beside the control, at most."""


def evenly(names: NDArray[np.object_], name: str) -> NDArray[np.int64]:
    """Return positions of a few cells of a condition, evenly over all: they lie plate by plate.

    Parameters
    ----------
    names : the condition of each cell.
    """
    at = np.flatnonzero(names == name)
    return at[np.linspace(0, len(at) - 1, min(len(at), CELLS)).astype(np.int64)]


def save_grid(rows: Mapping[str, Tensor], channels: Sequence[str], file: Path) -> None:
    """Draw rows of images, in the contrast of the first.

    Parameters
    ----------
    rows : name → (cell, channel, y, x), in [-1, 1].
    """
    shown = {name: images.float().clamp(-1, 1).cpu().numpy() for name, images in rows.items()}
    figure = montage(shown, channels, contrast_limits(next(iter(shown.values())))).get_figure(root=True)
    assert figure is not None
    with publish_file(file) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
