"""Does it return training cells? The nearest training cell of each output, set against that of real cells which nobody trained on.

A copy lies far nearer to one training cell than to any other, turned, flipped or a little noisy as it may be; a new cell lies about as near to
its second-nearest as to its nearest. How near is near is said by held-out real cells, never by a constant.

Reference: Meehan, Chaudhuri and Dasgupta 2020, "A non-parametric test to detect data-copying in generative models", arXiv:2004.05675 (distances of
generated against those of held-out cells); the ratio to the second-nearest: Lowe 2004, "Distinctive image features from scale-invariant
keypoints", IJCV 60:91, §7.1.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.contrasts import Pair, newcombe
from cellbridge.metrics.identity import PIXELS, pixel_signature, pooled
from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, share

Floats = NDArray[np.floating]
_BLURS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Widths in px that held-out cells are smoothed by to be as smooth as the outputs."""
_CHUNK = 256


@dataclass(frozen=True)
class Nearest:
    """Of each cell, its nearest training cell under the eight flips and turns.

    Parameters
    ----------
    ratio : (n,), squared distance to the nearest over that to the second-nearest training cell, in [0, 1]; 0 is a copy.
    distance : (n,), squared distance to the nearest, 0 to 4 per channel on average.
    row : (n,), which training cell it is.
    """

    ratio: NDArray[np.float64]
    distance: NDArray[np.float64]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Memorisation:
    """How many outputs are copies of training cells.

    Parameters
    ----------
    copied : share of outputs nearer to one training cell, against the next one, than any cell of one half of the held-out real cells.
    held_out : the same share of the other half of the real cells: what a model that invents its cells scores.
    excess : copied - held_out; above 0 where outputs are copies. Its interval is of cells, not of wells: that an output is some training cell
        is no property that its well shares, and copies on one plate alone would hide in the spread between wells.
    nearer : share of (output, held-out cell) pairs in which the output's ratio is the smaller; 1/2 where both are alike. Descriptive.
    threshold : ratio below which a cell counts as copied.
    blur_px : by which held-out cells were smoothed, to be as smooth as the outputs.
    nearest : per output, for pictures and tables of single cells.
    """

    copied: Estimate
    held_out: Estimate
    excess: Estimate
    nearer: float
    threshold: float
    blur_px: float
    nearest: Nearest

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without those of single cells."""
        found = asdict(replace(self, nearest=None))  # type: ignore[arg-type]
        found.pop("nearest")
        return found | {name: getattr(self, name).to_dict() for name in ("copied", "held_out", "excess")}


def nearest_training_cell(images: Floats, training: Floats) -> Nearest:
    """Find each image's nearest training cell, whichever way it was turned or flipped.

    Distances are between `pixel_signature`s: images averaged down, each channel centred and of unit length. So gain, offset and fine noise of a
    channel do not hide a copy.

    Parameters
    ----------
    images, training : (n, channel, size, size), square.

    Raises
    ------
    ValueError : images are not square, or there are fewer than two training cells.
    """
    if images.shape[-1] != images.shape[-2] or len(training) < 2:
        raise ValueError(
            f"images of {images.shape[-2:]} px and {len(training)} training cells; expected square images and two or more training cells"
        )
    bank = pixel_signature(training).astype(np.float32)
    lengths = (bank**2).sum(axis=1)
    parts = [_of_chunk(images[start : start + _CHUNK], bank, lengths) for start in range(0, len(images), _CHUNK)]
    ratio, distance, row = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Nearest(ratio, distance, row)


def memorisation(
    outputs: Floats,
    training: Floats,
    held_out: Floats,
    blocks: Pair,
    *,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> Memorisation | None:
    """Judge whether outputs are copies of training cells; None with fewer than four held-out cells or two training cells.

    Held-out cells are smoothed until they are as smooth as the outputs, since a smooth image lies nearer to everything. Half of them, by blocks
    where there are several, give the threshold, and the other half is scored by it: the row beside which outputs are judged.

    Parameters
    ----------
    outputs, training, held_out : (n, channel, size, size): what the model made for the target, the target's cells that it was trained on, and
        real target cells that it was not.
    blocks : of outputs and of held-out cells.
    """
    if len(held_out) < 4 or len(training) < 2:
        return None
    blur = matching_blur(held_out, outputs)
    found, real = (nearest_training_cell(part, blurred(training, blur)) for part in (outputs, blurred(held_out, blur)))
    setting = _half(blocks[1], seed=seed)
    threshold = float(real.ratio[setting].min())
    copied, usual = found.ratio < threshold, real.ratio[~setting] < threshold
    rest = blocks[1].take(np.flatnonzero(~setting))
    settings = {"resamples": resamples, "seed": seed}
    order = np.sort(real.ratio)
    above = len(order) - np.searchsorted(order, found.ratio, side="right")
    ties = np.searchsorted(order, found.ratio, side="right") - np.searchsorted(order, found.ratio, side="left")
    return Memorisation(
        copied=share(copied, blocks[0], level=level, **settings),
        held_out=share(usual, rest, level=level, **settings),
        excess=newcombe(copied, usual, level=level),
        nearer=float(((above + ties / 2) / len(order)).mean()),
        threshold=threshold,
        blur_px=blur,
        nearest=found,
    )


def blurred(images: Floats, sigma_px: float) -> Floats:
    """Smooth images (n, channel, height, width) by a Gaussian."""
    from scipy.ndimage import gaussian_filter

    return images if sigma_px == 0 else np.asarray(gaussian_filter(images, (0, 0, sigma_px, sigma_px)))


def matching_blur(images: Floats, like: Floats) -> float:
    """Return by how much images are to be smoothed to be as rough as others; 0 where they are the smoother ones.

    Roughness: mean squared difference of neighbouring pixels over the variance, median over images, geometric mean over channels.
    """
    wanted = _roughness(like)
    best, previous = 0.0, np.inf
    for sigma_px in _BLURS:
        distance = abs(_roughness(blurred(images, sigma_px)) - wanted)
        if distance >= previous:
            break
        best, previous = sigma_px, distance
    return best


def _roughness(images: Floats) -> float:
    across = np.diff(images.astype(np.float64), axis=3) ** 2
    down = np.diff(images.astype(np.float64), axis=2) ** 2
    steps = across.mean(axis=(2, 3)) + down.mean(axis=(2, 3))
    variance = images.astype(np.float64).var(axis=(2, 3))
    usable = variance > 1e-12
    found = [
        np.median(steps[rows, channel] / variance[rows, channel]) for channel, rows in enumerate(usable.T) if rows.any()
    ]
    return float(np.log(np.maximum(found, 1e-6)).mean()) if found else 0.0


def _of_chunk(
    images: Floats, bank: NDArray[np.float32], lengths: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    nearest = np.full((len(images), len(bank)), np.inf, np.float32)
    # Averaging down commutes with flips and turns only where its parts are equal.
    small = pooled(images, size=PIXELS) if images.shape[-1] % PIXELS == 0 else images
    for turned in _flips_and_turns(small):
        signature = pixel_signature(turned).astype(np.float32)
        squared = (signature**2).sum(axis=1)[:, None] + lengths - 2 * signature @ bank.T
        np.minimum(nearest, squared, out=nearest)
    row = nearest.argmin(axis=1)
    two = np.sort(np.partition(nearest, 1, axis=1)[:, :2].clip(min=0), axis=1).astype(np.float64)
    # Both are zero where the training cells repeat one another: then the second says nothing, and the cell is a copy.
    ratio = np.where(two[:, 1] > 1e-6, two[:, 0] / np.maximum(two[:, 1], 1e-6), 0.0)
    return ratio, two[:, 0] / images.shape[1], row


def _flips_and_turns(images: Floats) -> list[Floats]:
    turned = [np.rot90(images, turns, axes=(2, 3)) for turns in range(4)]
    return turned + [np.flip(part, axis=3) for part in turned]


def _half(blocks: Blocks, *, seed: int) -> NDArray[np.bool_]:
    """Choose half of the cells: whole blocks where there are four or more, so that two remain on either side; else cells of every block."""
    random = np.random.default_rng([seed, 8])
    codes = np.unique(blocks.codes)
    if len(codes) >= 4:
        return np.asarray(np.isin(blocks.codes, random.permutation(codes)[: len(codes) // 2]))
    chosen = np.zeros(len(blocks.codes), dtype=bool)
    for code in codes:
        rows = random.permutation(np.flatnonzero(blocks.codes == code))
        chosen[rows[: len(rows) // 2]] = True
    return chosen
