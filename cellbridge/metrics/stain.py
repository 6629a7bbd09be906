"""What a stain shows inside a nucleus, its cytoplasm and its cell: intensity, radial distribution, texture, granularity, correlation.

Signals lie in [0, 1]: 0 is no signal. A measure over no pixels is 0.

References
----------
Carpenter et al. 2006, "CellProfiler", Genome Biology 7:R100; Haralick, Shanmugam and Dinstein 1973, "Textural Features for Image
Classification", IEEE Trans. SMC 3:610.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cellbridge.metrics.shape import Mask, Measures, centroids, depths, over, present

Signal = NDArray[np.float32]
"""One stain, (n, height, width), in [0, 1]."""

_QUANTILES = (0.05, 0.5, 0.95)
_RINGS, _SECTORS = 4, 8
_LEVELS = 16
"""Grey levels, of which texture's inverse difference moment takes one as its unit."""
_TEXTURE_PX = (1, 3)
_GRAIN_PX = (1, 2, 4)


def intensity(signal: Signal, masks: Mask) -> Measures:
    """Measure how bright a region is: mean, deviation, quantiles, sum, and how far its brightness lies off its centre in px."""
    area = masks.sum(axis=(1, 2))
    inside = np.where(masks, signal, 0).astype(np.float64)
    total = inside.sum(axis=(1, 2))
    mean = over(total, area)
    variance = over((np.where(masks, signal - mean[:, None, None], 0) ** 2).sum(axis=(1, 2)), area)
    bright = [over(inside.sum(axis=axis) @ np.arange(signal.shape[3 - axis]), total) * (total > 0) for axis in (2, 1)]
    off = np.linalg.norm(np.stack(bright, axis=1) - centroids(masks), axis=1) * (total > 0)
    quantiles = _quantiles(signal, masks)
    return {
        "MeanIntensity": mean,
        "StdIntensity": np.sqrt(variance),
        **{f"Quantile{round(100 * q):02d}Intensity": values for q, values in zip(_QUANTILES, quantiles, strict=True)},
        "IntegratedIntensity": total,
        "MassDisplacement": off,
    }


def radial_distribution(signals: Sequence[Signal], nuclei: Mask, cells: Mask) -> Iterator[Measures]:
    """Measure each stain in four rings from the nucleus' centre to the cell's edge: mean over the cell's mean, and variation over sectors.

    A pixel at distance a from the centre and b from the edge lies at a / (a + b), as CellProfiler has it.
    """
    seeds = np.where(present(nuclei)[:, None], centroids(nuclei), centroids(cells))
    y = np.arange(cells.shape[1])[None, :, None] - seeds[:, :1, None]
    x = np.arange(cells.shape[2])[None, None, :] - seeds[:, 1:, None]
    out = np.hypot(y, x)
    ring = np.minimum((_RINGS * over(out, out + depths(cells))).astype(np.int64), _RINGS - 1)
    sector = ((np.arctan2(y, x) / (2 * np.pi) + 0.5) * _SECTORS).astype(np.int64) % _SECTORS
    n = len(cells)
    places = ((np.arange(n)[:, None, None] * _RINGS + ring) * _SECTORS + sector)[cells]
    shape = (n, _RINGS, _SECTORS)
    area = np.bincount(places, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)
    for signal in signals:
        total = np.bincount(places, signal[cells], minlength=int(np.prod(shape))).reshape(shape)
        of_cell = over(total.sum(axis=(1, 2)), area.sum(axis=(1, 2)))
        rings = over(over(total.sum(axis=2), area.sum(axis=2)), of_cell[:, None])
        sectors, seen = over(total, area), area > 0
        mean = over(sectors.sum(axis=2), seen.sum(axis=2))
        spread = np.sqrt(over((np.where(seen, sectors - mean[:, :, None], 0) ** 2).sum(axis=2), seen.sum(axis=2)))
        variation = over(spread, mean)
        named = (("MeanFrac", rings), ("RadialCV", variation))
        yield {f"{name}_{i + 1}of{_RINGS}": values[:, i] for name, values in named for i in range(_RINGS)}


def texture(signal: Signal, masks: Mask) -> Measures:
    """Measure Haralick's contrast, correlation and inverse difference moment of pairs of pixels some px apart, in all four directions.

    Moments of the pairs (a, b) themselves, both ways round, in place of a matrix of grey levels: contrast E (a - b)², correlation
    cov(a, b) / var(a), inverse difference moment E 1 / (1 + ((a - b) L)²) with L = 16 levels.
    """
    found: Measures = {}
    for step in _TEXTURE_PX:
        count, square, inverse, total, power, product = np.zeros((6, len(signal)))
        for dy, dx in ((0, step), (step, 0), (step, step), (step, -step)):
            here, there = _pair(signal, dy, dx)
            both = np.logical_and(*_pair(masks, dy, dx)).astype(np.float32)
            gap = (here - there) ** 2
            one, other = here * both, there * both
            count += _sum(both)
            square += np.einsum("nhw,nhw->n", gap, both)
            inverse += np.einsum("nhw,nhw->n", both, 1 / (1 + gap * np.float32(_LEVELS**2)))
            total += (_sum(one) + _sum(other)) / 2
            power += (np.einsum("nhw,nhw->n", one, here) + np.einsum("nhw,nhw->n", other, there)) / 2
            product += np.einsum("nhw,nhw->n", one, there)
        mean = over(total, count)
        variance = np.clip(over(power, count) - mean**2, 0, None)
        variance[variance < 1e-6 * np.maximum(mean**2, 1e-6)] = 0  # one grey level, up to rounding
        found[f"Contrast_{step}"] = over(square, count)
        found[f"Correlation_{step}"] = over(over(product, count) - mean**2, variance)
        found[f"InverseDifferenceMoment_{step}"] = over(inverse, count)
    return found


def granularity(signal: Signal, masks: Mask) -> Measures:
    """Measure what share of a cell's signal is lost at each of several openings with growing squares: grains of that size.

    The openings have sides of 3, 5 and 9 px; each share is of the signal that there was before the first.
    """
    before = np.where(masks, signal, 0).astype(np.float32)
    whole = before.sum(axis=(1, 2), dtype=np.float64)
    left, found = whole, {}
    for grain in _GRAIN_PX:
        side = (1, 2 * grain + 1, 2 * grain + 1)
        opened = np.where(masks, ndimage.grey_opening(before, size=side, mode="constant"), 0)
        remaining = opened.sum(axis=(1, 2), dtype=np.float64)
        found[f"{grain}"] = over(left - remaining, whole)
        left = remaining
    return found


def correlation(signals: Sequence[Signal], masks: Mask) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Return Pearson's correlation of every two stains over a region; 0 where one of them is constant there."""
    flat, inside = np.stack(signals, axis=1).reshape(len(masks), len(signals), -1), masks.reshape(len(masks), 1, -1)
    area = inside.sum(axis=2)
    centred = np.where(inside, flat - over((flat * inside).sum(axis=2), area)[:, :, None], 0).astype(np.float64)
    products = centred @ centred.transpose(0, 2, 1)
    power = np.einsum("ncc->nc", products).copy()
    power[power < 1e-9 * np.maximum(area, 1)] = 0
    pairs = combinations(range(len(signals)), 2)
    return {(i, j): over(products[:, i, j], np.sqrt(power[:, i] * power[:, j])) for i, j in pairs}


def _quantiles(signal: Signal, masks: Mask) -> NDArray[np.float64]:
    """Return the quantiles of the pixels of each mask, interpolated linearly: (quantile, n)."""
    n, area = len(masks), masks.sum(axis=(1, 2))
    ordered = np.sort(np.where(masks, signal, np.float32(np.inf)).reshape(n, -1), axis=1)
    place = np.array(_QUANTILES)[:, None] * np.maximum(area - 1, 0)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, np.maximum(area - 1, 0))
    low, high = (ordered[np.arange(n), rows].astype(np.float64) for rows in (below, above))
    known = area > 0
    return np.where(
        known, np.where(known, low, 0) + (place - below) * (np.where(known, high, 0) - np.where(known, low, 0)), 0
    )


def _sum(stack: Signal) -> NDArray[np.float64]:
    return np.asarray(stack.sum(axis=(1, 2), dtype=np.float64))


def _pair(stack: NDArray[Any], dy: int, dx: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the stack and the stack moved by (dy, dx), where both are defined."""
    height, width = stack.shape[1:]
    here = stack[:, : height - dy, max(0, -dx) : width - max(0, dx)]
    there = stack[:, dy:, max(0, dx) : width + min(0, dx)]
    return here, there
