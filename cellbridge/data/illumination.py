"""Uneven illumination, per plate and channel: as another program found it, or estimated from the fields themselves.

References
----------
Singh et al. 2014, "Pipeline for illumination correction of images for high-throughput microscopy", J. Microscopy 256:231
(retrospective, over all fields of a plate).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.data.images import why_not_loaded
from cellbridge.errors import ImageError

GRID = 32
"""A field is reduced to at most this many blocks a side before the median over fields."""
_MAX_FIELDS = 256
_RANGE = (0.2, 5.0)

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class FlatField:
    """A smooth multiplicative field with mean 1: a quadratic surface in the coordinates u, v in [-1, 1] of rows and columns.

        f(u, v) = a_0 + a_1 u + a_2 v + a_3 u^2 + a_4 u v + a_5 v^2

    Corrected counts are counts / f. One that is 1 everywhere changes nothing.
    """

    coefficients: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def surface(self, shape: tuple[int, int]) -> Floats:
        """Return f on a field of this shape (y, x)."""
        u, v = (np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1) for n in shape)
        a = self.coefficients
        values: Floats = (a[0] + u * (a[1] + a[3] * u))[:, None] + v * (a[2] + a[5] * v) + a[4] * np.outer(u, v)
        return values

    @property
    def is_flat(self) -> bool:
        return self.coefficients == FlatField().coefficients


class FieldMedian:
    """Collects the fields of one plate and channel, of one shape, for `estimate`; memory is bounded whatever their number."""

    def __init__(self) -> None:
        self.shape: tuple[int, int] | None = None
        self._blocks: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        self._every, self._seen = 1, 0

    def add(self, blocks: np.ndarray[Any, np.dtype[np.float32]], shape: tuple[int, int]) -> None:
        """Add the `block_means` of a field of a shape (y, x); when many have come, every second, fourth … one is kept."""
        self.shape = shape
        if self._seen % self._every == 0:
            self._blocks.append(blocks)
        self._seen += 1
        if len(self._blocks) >= _MAX_FIELDS:
            self._blocks = self._blocks[::2]
            self._every *= 2

    def __len__(self) -> int:
        return self._seen

    def estimate(self, *, what: str) -> FlatField:
        """Return the flat field: the median over fields of each block, each field scaled to its own median, smoothed.

        The smoothing is a quadratic fit, refitted twice without the blocks that cells pull furthest from it.

        Raises
        ------
        ImageError : the surface is not finite, or not within 0.2 to 5 of its mean (`what` names plate and channel).
        """
        fields = np.stack(self._blocks).astype(np.float64)
        levels = np.median(fields, axis=(1, 2), keepdims=True)
        usable = levels[:, 0, 0] > 0
        if not usable.any():
            raise ImageError(
                f"{what}: at least half of every field is zero, so no flat field can be estimated. {_REMEDY}"
            )
        median = np.median(fields[usable] / levels[usable], axis=0)
        shape = self.shape or median.shape
        coefficients = _fit_surface(median, shape)
        surface = FlatField(tuple(coefficients)).surface(shape)
        flat = FlatField(tuple(float(value) for value in coefficients / surface.mean()))
        require_valid(flat.surface(shape), what=what)
        return flat


_REMEDY = "Look at the images, or set illumination: none."


@lru_cache(maxsize=8)
def read_given(file: Path, shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read an illumination function that images of a shape (y, x) are to be divided by, such as `<plate>_Illum<Channel>.npy`.

    Raises
    ------
    ImageError : the file is missing or no array of numbers, its shape is another, or a value is not finite, not positive, or not
        within 0.2 to 5, as one is that was not normalised.
    """
    remedy = "Make it again, or take it out of the table: without it the light is estimated."
    try:
        given = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise ImageError(
            f"{file}: no such illumination function. Copy it there, or take it out of the table."
        ) from None
    except (ValueError, EOFError, OSError) as error:
        reason = why_not_loaded(error)
        raise ImageError(f"{file}: is no whole .npy array of numbers ({reason}). {remedy}") from None
    if given.shape != shape or given.dtype.kind not in "fui":
        raise ImageError(
            f"{file}: an illumination function of shape {given.shape} and type {given.dtype} for images of {shape}. {remedy}"
        )
    if not np.isfinite(given).all() or (given <= 0).any():
        bad = int((~(np.isfinite(given) & (given > 0))).sum())
        raise ImageError(f"{file}: {bad} of {given.size} values are NaN, infinite, zero or negative. {remedy}")
    low, high = float(given.min()), float(given.max())
    if low < _RANGE[0] or high > _RANGE[1]:
        raise ImageError(
            f"{file}: runs from {low:.3g} to {high:.3g}, expected values around 1, {_RANGE[0]:g} to {_RANGE[1]:g} "
            f"(in CellProfiler: rescale the illumination function). {remedy}"
        )
    surface: np.ndarray[Any, np.dtype[np.float32]] = given.astype(np.float32)
    surface.setflags(write=False)
    return surface


def require_valid(surface: Floats, *, what: str) -> None:
    """Raise ImageError where a flat field is not finite, not positive, or implausibly steep."""
    low, high = float(np.min(surface)), float(np.max(surface))
    if not (np.isfinite(surface).all() and _RANGE[0] <= low and high <= _RANGE[1]):
        raise ImageError(
            f"{what}: the flat field runs from {low:.3g} to {high:.3g} of its mean, expected {_RANGE[0]:g} to {_RANGE[1]:g}. {_REMEDY}"
        )


def correct(
    image: np.ndarray[Any, np.dtype[Any]], surface: Floats | None, *, full_scale: int
) -> np.ndarray[Any, np.dtype[Any]]:
    """Return counts / surface, rounded, at most full scale, in the image's own type; None leaves the image as it is.

    Parameters
    ----------
    image : (y, x) or (channel, y, x), uint8 or uint16.
    surface : of the same shape.
    """
    if surface is None:
        return image
    corrected: np.ndarray[Any, np.dtype[Any]] = np.rint(image / surface).clip(0, full_scale).astype(image.dtype)
    return corrected


def _terms(u: Floats, v: Floats) -> Floats:
    return np.stack(np.broadcast_arrays(np.ones_like(u), u, v, u**2, u * v, v**2), axis=-1)


def _edges(n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return where the blocks along n pixels begin, and n."""
    return np.linspace(0, n, min(n, GRID) + 1).astype(np.int64)


def block_means(image: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the means of a field (y, x) over a grid of at most `GRID` blocks a side."""
    rows, columns = (_edges(n) for n in image.shape)
    sums = np.add.reduceat(np.add.reduceat(image, rows[:-1], axis=0, dtype=np.float64), columns[:-1], axis=1)
    return (sums / np.outer(np.diff(rows), np.diff(columns))).astype(np.float32)


def _fit_surface(values: Floats, shape: tuple[int, int]) -> Floats:
    """Fit the quadratic surface to block means of fields of this shape."""
    centres = [(edges[:-1] + edges[1:] - 1) / 2 for edges in map(_edges, shape)]
    u, v = (2.0 * centre / max(n - 1, 1) - 1.0 for centre, n in zip(centres, shape, strict=True))
    terms = _terms(u[:, None], v[None, :]).reshape(-1, 6)
    flat, kept = values.ravel(), np.ones(values.size, bool)
    for _ in range(3):
        solution: Floats = np.asarray(np.linalg.lstsq(terms[kept], flat[kept], rcond=None)[0], dtype=np.float64)
        residual = flat - terms @ solution
        spread = 1.4826 * np.median(np.abs(residual[kept] - np.median(residual[kept])))
        kept = np.abs(residual) <= 3.0 * spread + 1e-12
        if kept.sum() < 12:
            break
    return solution
