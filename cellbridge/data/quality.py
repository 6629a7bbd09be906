"""How good the image of one cell is: in focus, saturated, beside debris, or with a channel that shows nothing.

Each is a number that stands in the store's table (`Quality_…`), computed from the counts of the crop alone, whatever its gain and
offset. Limits reject cells by reason; by default only a channel of a single value does, since good limits differ between plates:
choose them from the numbers of a first store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

REASONS = ("empty_channel", "out_of_focus", "saturated", "debris")
_LAGS = (1, 2, 4)
_CELLS_AT_ONCE = 16
"""What stays in a processor's cache."""


@dataclass(frozen=True)
class Limits:
    """What a cell is rejected for, by the first of these; None rejects nobody.

    Parameters
    ----------
    empty_channel : a channel of one value.
    min_focus : least focus of the sharpest channel.
    max_saturation : largest share of saturated pixels of any channel.
    max_debris : largest share of the crop that is debris.
    """

    empty_channel: bool = True
    min_focus: float | None = None
    max_saturation: float | None = None
    max_debris: float | None = None


@dataclass(frozen=True)
class Quality:
    """Of some cells.

    Parameters
    ----------
    focus, structure : (cell, channel); see `sharpness`.
    saturation : (cell, channel), share of pixels at the full scale.
    debris : (cell,), share of pixels that stand out in the nucleus stain and belong to no nucleus; None where nothing is segmented.
    empty : (cell,), whether a channel has one value only.
    """

    focus: Array
    structure: Array
    saturation: Array
    debris: Array | None
    empty: Array

    def columns(self, channels: Sequence[str]) -> dict[str, list[float]]:
        """Return the columns of the store's table."""
        named = {"Focus": self.focus, "Structure": self.structure, "Saturation": self.saturation}
        table = {
            f"Quality_{name}_{channel}": values[:, index].tolist()
            for name, values in named.items()
            for index, channel in enumerate(channels)
        }
        return table if self.debris is None else {**table, "Quality_Debris": self.debris.tolist()}

    def reasons(self, limits: Limits) -> list[str]:
        """Return for each cell why it is rejected, or ""."""
        no = np.zeros(len(self.focus), bool)
        found = (
            self.empty if limits.empty_channel else no,
            no if limits.min_focus is None else self.focus.max(axis=1) < limits.min_focus,
            no if limits.max_saturation is None else self.saturation.max(axis=1) > limits.max_saturation,
            no if limits.max_debris is None or self.debris is None else self.debris > limits.max_debris,
        )
        return [
            next((name for name, failed in zip(REASONS, cell, strict=True) if failed), "")
            for cell in zip(*(values.tolist() for values in found), strict=True)
        ]


def measure(counts: Array, *, saturation: Array, debris: Array | None) -> Quality:
    """Measure cells (cell, channel, y, x), with what is known of them already."""
    focus, structure = sharpness(counts)
    empty = (counts.max(axis=(2, 3)) == counts.min(axis=(2, 3))).any(axis=1)
    return Quality(focus, structure, saturation, debris, empty)


def sharpness(counts: Array) -> tuple[Array, Array]:
    """Return focus and structure of each cell and channel, (cell, channel) each, in [0, 1].

    From S(l), the mean squared difference of pixels l apart along rows and columns:

        focus = (S(2) - S(1)) / (S(4) - S(2)),   structure = 1 - S(1) / S(4).

    Noise that is independent from pixel to pixel adds the same to every S, and leaves focus as it is. Focus is 1/4 where the
    image is smooth over four pixels (S grows as l²), 1/2 for sharp edges (as l), more for texture of a pixel or two; structure is
    0 for noise alone, 15/16 for a smooth image without noise. Both are 0 where nothing changes, and in crops under 5 pixels.

    References
    ----------
    Structure functions: Tatarski 1961, "Wave propagation in a turbulent medium", sec. 1.2.
    """
    focus, structure = np.zeros((2, *counts.shape[:2]), np.float64)
    if counts.shape[-1] <= _LAGS[-1]:
        return focus, structure
    for start in range(0, len(counts), _CELLS_AT_ONCE):
        some = np.s_[start : start + _CELLS_AT_ONCE]
        s_1, s_2, s_4 = _differences(counts[some].astype(np.float32))
        rise = s_4 - s_2
        focus[some] = np.divide(s_2 - s_1, rise, out=np.zeros_like(rise), where=rise > 0).clip(0.0, 1.0)
        structure[some] = 1.0 - np.divide(s_1, s_4, out=np.ones_like(s_4), where=s_4 > 0).clip(0.0, 1.0)
    return focus, structure


def _differences(cells: Array) -> list[Array]:
    """Return the mean squared differences (cell, channel) at each lag."""
    found = []
    for lag in _LAGS:
        pairs = (cells[:, :, lag:] - cells[:, :, :-lag], cells[..., lag:] - cells[..., :-lag])
        sums = [np.einsum("ncyx,ncyx->nc", d, d).astype(np.float64) / d[0, 0].size for d in pairs]
        found.append((sums[0] + sums[1]) / 2.0)
    return found
