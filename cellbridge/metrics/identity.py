"""Is it still this cell? Whether an output finds its own source again, what moving the cells costs, and what a way there and back leaves."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.content import cell_squared_error
from cellbridge.metrics.intervals import (
    LEVEL,
    Blocks,
    Estimate,
    bootstrap,
    percentile_interval,
    resampled_means,
    share,
    student_mean,
)

Floats = NDArray[np.floating]
PIXELS = 16
"""Side that images are averaged down to before they are compared: noise goes, place and shape stay."""


@dataclass(frozen=True)
class Retrieval:
    """Whether the nearest of all sources is an output's own.

    Parameters
    ----------
    top_1 : share of outputs whose own source is the nearest; k sources that tie count 1/k.
    chance : of `top_1` for an output that knows nothing of its source, mean of 1/(sources it is compared with); exact.
    median_rank : of the own source; 1 is the nearest.
    auc : share of other sources that lie farther than the own one, ties counting half; exactly 1/2 by chance, whatever the number of sources.
    gallery : mean number of sources that an output is compared with.
    ranks : (n,), of each output's own source; ties share their mean rank.
    """

    top_1: Estimate
    chance: float
    median_rank: Estimate
    auc: Estimate
    gallery: float
    ranks: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        numbers = {"chance": self.chance, "gallery": self.gallery}
        return {name: getattr(self, name).to_dict() for name in ("top_1", "median_rank", "auc")} | numbers


def pixel_signature(images: Floats, *, size: int = PIXELS) -> NDArray[np.float64]:
    """Return what an image looks like apart from gain and offset: averaged down, each channel centred and of unit length, (n, number).

    Parameters
    ----------
    images : (n, channel, height, width). Where `size` does not divide a side, the mean is over the nearest equal parts.
    """
    small = pooled(images, size=size)
    flat = small.reshape(*small.shape[:2], -1)
    flat = flat - flat.mean(axis=2, keepdims=True)
    norms = np.linalg.norm(flat, axis=2, keepdims=True)
    return np.asarray((flat / np.where(norms > 1e-9, norms, np.inf)).reshape(len(images), -1))


def pooled(images: Floats, *, size: int) -> NDArray[np.float64]:
    """Average images (n, channel, height, width) down to at most `size` pixels a side."""
    result = images.astype(np.float64)
    for axis in (2, 3):
        pixels = result.shape[axis]
        if pixels > size:
            edges = np.linspace(0, pixels, size + 1).round().astype(int)
            widths = np.diff(edges).reshape([-1 if part == axis else 1 for part in range(4)])
            result = np.add.reduceat(result, edges[:-1], axis=axis) / widths
    return result


def identity_retrieval(
    outputs: Floats,
    sources: Floats,
    *,
    plates: NDArray[Any] | None = None,
    blocks: Blocks,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Retrieval:
    """Look for each output's own source among all sources, of the same plate where plates are given.

    Outputs and sources are each centred and scaled by their own cells' (of that plate), so that what a compound does to all cells alike counts
    for nothing; then compared by cosine. A model that returns other cells, of whatever condition, stays at chance.

    Parameters
    ----------
    outputs, sources : (n, …), row by row: `pixel_signature`, or features of shape and position.
    plates : (n,); None compares with all sources.

    Raises
    ------
    ValueError : fewer than two cells.
    """
    if len(outputs) < 2 or len(outputs) != len(sources):
        raise ValueError(
            f"{len(outputs)} outputs of {len(sources)} sources; as many of each are needed, and two at least"
        )
    groups = np.zeros(len(outputs)) if plates is None else np.asarray(plates)
    first, rank, auc, chance, gallery = (np.ones(len(outputs)) for _ in range(5))
    auc[:] = 0.5
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        chance[rows], gallery[rows] = 1 / len(rows), len(rows)
        if len(rows) > 1:
            first[rows], rank[rows], auc[rows] = _places(_similarity(outputs[rows], sources[rows]))
    settings = {"resamples": resamples, "seed": seed}
    return Retrieval(
        top_1=_share(first, blocks, level=level, **settings),
        chance=float(chance.mean()),
        median_rank=median(rank, blocks, level=level, **settings),
        auc=_within_one(student_mean(auc, blocks, level=level)),
        gallery=float(gallery.mean()),
        ranks=rank,
    )


def median(values: Floats, blocks: Blocks, *, resamples: int, seed: int, level: float = LEVEL) -> Estimate:
    """Estimate the median over cells, with the percentile interval over draws of whole blocks."""
    value = float(np.median(values))
    weights = resampled_means(np.eye(len(values)), blocks, resamples=resamples, seed=seed)
    if weights is None:
        return Estimate(value, None, None, len(values), blocks.unit)
    order = np.argsort(values)
    reached = (weights[:, order].cumsum(axis=1) >= 0.5 - 1e-12).argmax(axis=1)
    low, high = percentile_interval(values[order][reached].astype(np.float64), level=level)
    return Estimate(value, low, high, len(values), blocks.unit)


@dataclass(frozen=True)
class Transport:
    """What it costs to move the sources to their outputs, mean of ½|x - y|².

    Parameters
    ----------
    cost, optimal, random : paired as they are; under the cheapest one-to-one pairing; under any pairing.
    relative : (cost - optimal) / (random - optimal): 0 is optimal, 1 is as if cells were exchanged at random.
    """

    cost: Estimate
    optimal: Estimate
    random: Estimate
    relative: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).to_dict() for name in ("cost", "optimal", "random")}
        missing = {"not_computed": "every pairing costs the same"}
        return parts | {"relative": missing if self.relative is None else self.relative.to_dict()}


def transport_cost(
    outputs: Floats,
    sources: Floats,
    blocks: Blocks,
    *,
    resamples: int,
    seed: int,
    level: float = LEVEL,
    most: int = 2000,
) -> Transport:
    """Compare the cost of the pairs with that of the optimal assignment of the same outputs to the same sources.

    Parameters
    ----------
    outputs, sources : (n, …), row by row, in one and the same space.
    most : cells that are assigned; more are drawn from (the assignment takes n³).

    References
    ----------
    Crouse 2016, "On implementing 2D rectangular assignment algorithms", IEEE TAES 52:1679 (scipy's linear_sum_assignment).
    """
    from scipy.optimize import linear_sum_assignment

    rows = np.sort(np.random.default_rng([seed, 5]).permutation(len(outputs))[:most])
    x, y = (part[rows].reshape(len(rows), -1).astype(np.float64) for part in (sources, outputs))
    cost = np.maximum((x**2).sum(axis=1)[:, None] / 2 + (y**2).sum(axis=1)[None] / 2 - x @ y.T, 0.0)
    taken = linear_sum_assignment(cost)[1]
    table = np.stack([np.diag(cost), cost[np.arange(len(rows)), taken], cost.mean(axis=1)], axis=1)
    part, settings = blocks.take(rows), {"resamples": resamples, "seed": seed}

    def relative(means: NDArray[np.float64]) -> NDArray[np.float64]:
        spread = means[:, 2] - means[:, 1]
        return np.asarray((means[:, 0] - means[:, 1]) / np.where(spread > 0, spread, np.nan))

    own, optimal, random = (
        bootstrap(table[:, column], lambda means: means[:, 0], part, level=level, **settings) for column in range(3)
    )
    alike = random.value - optimal.value <= 1e-9 * random.value
    found = None if alike else bootstrap(table, relative, part, level=level, **settings)
    return Transport(own, optimal, random, found)


@dataclass(frozen=True)
class Return:
    """How far cells lie from what should be themselves, beside how far other cells of the plate lie.

    Parameters
    ----------
    error : root mean square over the cell, channels equally weighted, in standard deviations of each channel.
    other : the same between a cell and another one of its plate: what an output that is some other cell would score.
    relative : error / other; 0 is the very cell, 1 another one.
    ssim : structural similarity of each cell with itself, mean over cells and channels; 1 is equal.
    """

    error: Estimate
    other: Estimate
    relative: Estimate | None
    ssim: Estimate

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).to_dict() for name in ("error", "other", "ssim")}
        missing = {"not_computed": "all cells of a plate are equal"}
        return parts | {"relative": missing if self.relative is None else self.relative.to_dict()}


@dataclass(frozen=True)
class Scored:
    """The cells that a translation should have left, or brought back, as they were.

    Parameters
    ----------
    images : (n, channel, height, width), in [-1, 1].
    masks : (n, height, width), true inside the cell.
    deviation : (channel,), standard deviation of real images (`content.channel_deviation`).
    plates : (n,).
    """

    images: Floats
    masks: NDArray[np.bool_]
    deviation: NDArray[np.float64]
    plates: NDArray[Any]
    blocks: Blocks


def null_translation(outputs: Floats, sources: Scored, *, resamples: int, seed: int, level: float = LEVEL) -> Return:
    """Compare cells that were translated to their own condition (DMSO → DMSO) with themselves; should be near 0.

    Raises
    ------
    ValueError : a mask is empty, or a channel has no spread.

    References
    ----------
    Structural similarity: Wang et al. 2004, IEEE TIP 13:600, as scikit-image computes it, over a range of 2.
    """
    images, masks, settings = sources.images, sources.masks, {"resamples": resamples, "seed": seed}
    errors = cell_squared_error(outputs, images, masks, deviation=sources.deviation)
    partner = _partners(sources.plates, seed=seed)
    others = cell_squared_error(images[partner], images, masks, deviation=sources.deviation)
    similar = np.array([_ssim(a, b) for a, b in zip(outputs, images, strict=True)])

    def root(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(means[:, 0]))

    def ratio(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(means[:, 0] / np.where(means[:, 1] > 0, means[:, 1], np.nan)))

    table = np.stack([errors, others], axis=1)
    return Return(
        error=bootstrap(errors, root, sources.blocks, level=level, **settings),
        other=bootstrap(others, root, sources.blocks, level=level, **settings),
        relative=bootstrap(table, ratio, sources.blocks, level=level, **settings) if others.any() else None,
        ssim=bootstrap(similar, lambda means: means[:, 0], sources.blocks, level=level, **settings),
    )


def round_trip(returned: Floats, sources: Scored, *, resamples: int, seed: int, level: float = LEVEL) -> Return:
    """Compare cells that went to a condition and back (A → B → A) with themselves; read it beside `null_translation`.

    Alone it proves nothing: a model that copies comes back perfectly.
    """
    return null_translation(returned, sources, resamples=resamples, seed=seed, level=level)


def _similarity(outputs: Floats, sources: Floats) -> NDArray[np.float64]:
    """Return cosines (output, source) after each set was centred and scaled by its own cells."""
    rows = []
    for part in (outputs, sources):
        flat = part.reshape(len(part), -1).astype(np.float64)
        flat = flat - flat.mean(axis=0)
        spread = flat.std(axis=0)
        floor = 1e-6 * max(float(spread.max(initial=0.0)), 1e-12)
        flat = flat / np.where(spread > floor, spread, np.inf)
        norms = np.linalg.norm(flat, axis=1, keepdims=True)
        rows.append(flat / np.where(norms > 0, norms, np.inf))
    return np.asarray(rows[0] @ rows[1].T)


def _places(similarity: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return for each output its share of the first place, the rank of its own source, and the share of others that lie farther."""
    own = np.diag(similarity)[:, None]
    n = len(similarity)
    nearer = (similarity > own + 1e-12).sum(axis=1)
    ties = (np.abs(similarity - own) <= 1e-12).sum(axis=1) - 1
    first = np.where(nearer == 0, 1 / (1 + ties), 0.0)
    return first, 1 + nearer + ties / 2, 1 - (nearer + ties / 2) / (n - 1)


def _share(values: Floats, blocks: Blocks, *, resamples: int, seed: int, level: float) -> Estimate:
    """Estimate a share whose members may count in part; whole ones get Wilson's width, too."""
    settings = {"resamples": resamples, "seed": seed}
    if np.isin(values, (0.0, 1.0)).all():
        return share(values > 0.5, blocks, level=level, **settings)
    return bootstrap(values, lambda means: means[:, 0], blocks, level=level, **settings)


def _within_one(found: Estimate) -> Estimate:
    """Cut an interval to [0, 1]."""
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (found.low, found.high))
    return replace(found, low=low, high=high)


def _partners(plates: NDArray[Any], *, seed: int) -> NDArray[np.int64]:
    """Return for each cell another one of its plate; itself where it is alone."""
    rng, partner = np.random.default_rng([seed, 6]), np.arange(len(plates))
    for plate in np.unique(plates):
        rows = rng.permutation(np.flatnonzero(np.asarray(plates) == plate))
        partner[rows] = np.roll(rows, 1)
    return partner


def _ssim(image: Floats, other: Floats) -> float:
    from skimage.metrics import structural_similarity

    window = min(7, *(side - 1 + side % 2 for side in image.shape[1:]))
    return float(structural_similarity(image, other, channel_axis=0, data_range=2.0, win_size=window))
