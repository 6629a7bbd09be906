"""One fixed, invertible intensity map per plate and channel: counts to [-1, 1], and back to the very count."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cellbridge.errors import ManifestError, NumericalError, StoreError, did_you_mean
from cellbridge.typing import Images

SCALE_SHARE = 0.05
"""The asinh's linear part, as a share of (99.9th percentile - median); `IntensityMaps` says what this gives."""


@dataclass(frozen=True)
class AsinhTerms:
    """The numbers of the map, in shapes that broadcast against (batch, channel, y, x) counts.

    Parameters
    ----------
    median, scale : centre and linear width of the asinh, in counts.
    low, span : g(0) and g(full scale) - g(0), where g(c) = asinh((c - median) / scale).
    """

    median: Tensor
    scale: Tensor
    low: Tensor
    span: Tensor

    def forward(self, counts: Tensor) -> Tensor:
        """Return y = 2 (g(c) - g(0)) / (g(F) - g(0)) - 1 for floating counts c."""
        return 2.0 * (_asinh((counts - self.median) / self.scale) - self.low) / self.span - 1.0

    def inverse(self, images: Tensor) -> Tensor:
        """Return c = median + scale sinh(g(0) + (y + 1) / 2 (g(F) - g(0)))."""
        return self.median + self.scale * torch.sinh(self.low + 0.5 * (images + 1.0) * self.span)

    def bin_edges(self, images: Tensor, *, full_scale: int) -> tuple[Tensor, Tensor]:
        """Return the lower and upper edge, in the image, of the bin [c - 1/2, c + 1/2] of the count that each value rounds to.

        The bin of count 0 begins at minus infinity, and that of the full scale ends at infinity. float64 resolves the bins of
        16-bit data, float32 does not.
        """
        counts = self.inverse(images).round().clamp(0, full_scale)
        lower, upper = self.forward(counts - 0.5), self.forward(counts + 0.5)
        return lower.masked_fill(counts == 0, -torch.inf), upper.masked_fill(counts == full_scale, torch.inf)

    def at(self, index: Tensor) -> "AsinhTerms":
        """Return the terms of the given plate rows, one per image."""
        return AsinhTerms(self.median[index], self.scale[index], self.low[index], self.span[index])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "AsinhTerms":
        """Return the terms on a device and in a floating type."""
        return AsinhTerms(*(term.to(device, dtype) for term in (self.median, self.scale, self.low, self.span)))


@dataclass(frozen=True, eq=False)
class IntensityMaps:
    """The asinh map of every plate and channel, fitted to the plate's control.

    With g(c) = asinh((c - median) / s) and s = max(0.05 (p99.9 - median), 1),

        y = 2 (g(c) - g(0)) / (g(F) - g(0)) - 1,

    which takes the whole range [0, F] onto [-1, 1], strictly monotone and without clipping, so that every integer count
    comes back exactly from the float32 image. The factor 0.05 lets cells use the range: on BBBC021 (four plates, 16-bit
    counts whose 99.9th percentile is a tenth to a quarter of full scale) the 0.1th to 99.9th percentiles of control crops
    take a share of 0.62-0.66 of [-1, 1] in DNA, 0.77-0.78 in F-actin and 0.66-0.71 in beta-tubulin, with standard
    deviations of 0.34-0.39; a factor of 1 gives 0.30-0.45 and 0.08-0.14. Much smaller factors spend the range on camera
    noise around the median.

    Parameters
    ----------
    plates, channels : names of the rows and columns of the two tables.
    full_scale : F, the largest count that the camera's format holds (255, 4095, 65535).
    median, p999 : (plate, channel), float64, in counts: percentiles of the plate's control.
    reference : "control", or "all" where the plates have no control.
    """

    plates: tuple[str, ...]
    channels: tuple[str, ...]
    full_scale: int
    median: Tensor
    p999: Tensor
    reference: Literal["control", "all"] = "control"

    @property
    def terms(self) -> AsinhTerms:
        """The terms of all plates: (plate, channel, 1, 1), float64, on the CPU."""
        median = self.median.double()[:, :, None, None]
        scale = (SCALE_SHARE * (self.p999 - self.median).double()[:, :, None, None]).clamp_min(1.0)
        low = _asinh(-median / scale)
        return AsinhTerms(median, scale, low, _asinh((self.full_scale - median) / scale) - low)

    def plate_rows(self, plates: Sequence[str]) -> Tensor:
        """Return each plate's row in the tables: (batch,), int64; raise StoreError for a plate without a map."""
        row = {plate: index for index, plate in enumerate(self.plates)}
        unknown = next((plate for plate in plates if plate not in row), None)
        if unknown is not None:
            raise StoreError(
                f'plate "{unknown}" has no intensity map in the store.{did_you_mean(unknown, self.plates)}'
            )
        return torch.tensor([row[plate] for plate in plates], dtype=torch.int64)

    def forward(self, counts: Tensor, plates: Sequence[str]) -> Images:
        """Map counts (batch, channel, y, x), of any integer or floating type, to float32 in [-1, 1]; float64 inside."""
        return self._terms_of(counts, plates).forward(counts.double()).float()

    def inverse(self, images: Images, plates: Sequence[str]) -> Tensor:
        """Return the counts that give these images: float64, beyond [0, full scale] where an image leaves [-1, 1]."""
        return self._terms_of(images, plates).inverse(images.double())

    def to_counts(self, images: Images, plates: Sequence[str]) -> tuple[Tensor, float]:
        """Return integer counts (int32) clipped to [0, full scale], and the share of values that needed the clipping.

        Raises
        ------
        NumericalError : an image holds a value that is not finite.
        """
        if not bool(torch.isfinite(images).all()):
            raise NumericalError("images to store hold values that are not finite. Look at the step that made them.")
        counts = self.inverse(images, plates).round()
        outside = (counts < 0) | (counts > self.full_scale)
        share = float(outside.double().mean()) if counts.numel() else 0.0
        return counts.clamp(0, self.full_scale).to(torch.int32), share

    def bin_width(self, counts: Tensor, plates: Sequence[str]) -> Tensor:
        """Return the width in the image of each count's bin [c - 1/2, c + 1/2], cut to [0, full scale]: float32."""
        terms, exact = self._terms_of(counts, plates), counts.double()
        upper = terms.forward((exact + 0.5).clamp_max(self.full_scale))
        return (upper - terms.forward((exact - 0.5).clamp_min(0.0))).float()

    def to_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return {plate: {channel: {"median": …, "p999": …}}}, as it stands in the store."""
        median, p999 = self.median.tolist(), self.p999.tolist()
        return {
            plate: {c: {"median": median[i][j], "p999": p999[i][j]} for j, c in enumerate(self.channels)}
            for i, plate in enumerate(self.plates)
        }

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Mapping[str, Mapping[str, Any]]],
        *,
        channels: Sequence[str],
        full_scale: int,
        reference: Literal["control", "all"] = "control",
    ) -> "IntensityMaps":
        """Rebuild the maps from `to_dict`; raise StoreError where a channel's numbers are missing."""
        plates = tuple(values)
        try:
            tables = [
                torch.tensor(
                    [[float(values[p][c][key]) for c in channels] for p in plates], dtype=torch.float64
                ).reshape(len(plates), len(channels))
                for key in ("median", "p999")
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"the store's intensity maps are incomplete ({error!r}), expected median and p999 for each of "
                f"{', '.join(channels)} on each plate. Prepare the store again."
            ) from None
        return cls(plates, tuple(channels), full_scale, tables[0], tables[1], reference)

    def subset(self, plates: Iterable[str]) -> "IntensityMaps":
        """Return the maps of some plates, in the order given."""
        names = tuple(plates)
        rows = self.plate_rows(names)
        return IntensityMaps(names, self.channels, self.full_scale, self.median[rows], self.p999[rows], self.reference)

    def _terms_of(self, images: Tensor, plates: Sequence[str]) -> AsinhTerms:
        if images.ndim != 4 or images.shape[0] != len(plates) or images.shape[1] != len(self.channels):
            raise StoreError(
                f"images of shape {tuple(images.shape)} do not fit {len(plates)} plate names and the channels "
                f"{', '.join(self.channels)}: expected (batch, channel, y, x)."
            )
        return self.terms.at(self.plate_rows(plates)).to(images.device, torch.float64)


class PlateHistograms:
    """How often each count occurs, per plate and channel: exact percentiles, the same in any order of the fields.

    Parameters
    ----------
    channels : stain names.
    full_scale : the largest count; memory is 8 (full_scale + 1) bytes per plate and channel.
    """

    def __init__(self, channels: Sequence[str], *, full_scale: int):
        self.channels = tuple(channels)
        self.full_scale = full_scale
        self._pixels: dict[str, np.ndarray] = {}

    def add(self, plate: str, counts: np.ndarray) -> None:
        """Count the pixels of a plate's images (batch, channel, y, x); raise StoreError for another shape or range."""
        if counts.ndim != 4 or counts.shape[1] != len(self.channels) or counts.dtype.kind not in "ui":
            raise StoreError(
                f'plate "{plate}": images of shape {counts.shape} and type {counts.dtype}, expected integers '
                f"(batch, {len(self.channels)}, y, x)."
            )
        if counts.size and (int(counts.min()) < 0 or int(counts.max()) > self.full_scale):
            raise StoreError(
                f'plate "{plate}": counts from {int(counts.min())} to {int(counts.max())} do not lie in 0 to the full scale '
                f"{self.full_scale}. Correct full_scale in the manifest."
            )
        table = self._pixels.setdefault(plate, np.zeros((len(self.channels), self.full_scale + 1), np.int64))
        for channel in range(len(self.channels)):
            table[channel] += np.bincount(counts[:, channel].ravel(), minlength=self.full_scale + 1)

    def fit(self, plates: Sequence[str], *, reference: Literal["control", "all"] = "control") -> IntensityMaps:
        """Return the maps of `plates` from what was added: control images, or all images where reference is "all".

        A percentile is the smallest count that at least that share of the pixels does not exceed.

        Raises
        ------
        ManifestError : nothing was added for a plate, or a channel shows nothing on it (median = 99.9th percentile).
        """
        rows = [
            [_centre_and_top(self._table(plate, reference)[c]) for c in range(len(self.channels))] for plate in plates
        ]
        for plate, row in zip(plates, rows, strict=True):
            for channel, (median, p999) in zip(self.channels, row, strict=True):
                if p999 <= median:
                    raise ManifestError(
                        f'plate "{plate}", channel "{channel}": shows nothing (median = 99.9th percentile = {median:g} '
                        f"counts over the {reference} images), so it has no intensity map. "
                        "Leave out the channel or the plate in the manifest, or check the image paths."
                    )
        both = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.channels), 2)
        return IntensityMaps(tuple(plates), self.channels, self.full_scale, both[..., 0], both[..., 1], reference)

    def _table(self, plate: str, reference: str) -> np.ndarray:
        table = self._pixels.get(plate)
        if table is None or not table[0].any():
            what = "no control cell" if reference == "control" else "no cell"
            hint = ", or set intensity_reference: all" if reference == "control" else ""
            raise ManifestError(
                f'plate "{plate}": {what}, so its intensities have no reference. Add control wells to the manifest\'s '
                f"tables, leave the plate out{hint}."
            )
        return table


def fit_intensity(
    control: Mapping[str, np.ndarray | Iterable[np.ndarray]],
    *,
    channels: Sequence[str],
    full_scale: int,
    plates: Sequence[str] | None = None,
    reference: Literal["control", "all"] = "control",
) -> IntensityMaps:
    """Fit the maps of `plates` to the counts (batch, channel, y, x) of each plate's control, whole or in batches.

    Raises
    ------
    ManifestError : a plate without control, or a channel that shows nothing.
    """
    histograms = PlateHistograms(channels, full_scale=full_scale)
    for plate, batches in control.items():
        for counts in [batches] if isinstance(batches, np.ndarray) else batches:
            histograms.add(plate, counts)
    return histograms.fit(list(control) if plates is None else plates, reference=reference)


def _asinh(x: Tensor) -> Tensor:
    # As exact as torch.asinh in absolute terms, and three to nine times faster on a CPU.
    magnitude = x.abs()
    return torch.copysign(torch.log(magnitude + torch.sqrt(magnitude * magnitude + 1.0)), x)


def _centre_and_top(pixels: np.ndarray) -> tuple[float, float]:
    below = np.cumsum(pixels)
    total = int(below[-1])
    # Integer arithmetic: 0.999 * total in floating point may land on the wrong side of a whole number of pixels.
    ranks = [-(-total // 2), -(-999 * total // 1000)]
    median, p999 = np.searchsorted(below, ranks, side="left")
    return float(median), float(p999)
