"""How far x_T lies from N(0, I) by Fréchet's distance, in blocks of few dimensions, where the distance means something.

In the 20,480 dimensions of an image, the distance of a few hundred images of perfect noise is all bias. In a block of d dimensions its
bias is small, and known: it is the mean over draws of noise of the same size.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.spectrum import LOW_MODES, low_modes

Floats = NDArray[np.float64]
_PIXELS = 20_000


@dataclass(frozen=True)
class BlockDistance:
    """The distance of one block of x_T to N(0, I).

    Parameters
    ----------
    features : dimensions of the block. n : vectors in it.
    bias : mean distance of standard normal noise at this n.
    p : share of draws of noise that lie as far or further (each draw counts, and so does x_T itself).
    """

    name: str
    features: int
    n: int
    distance: float
    bias: float
    p: float

    @property
    def excess(self) -> float:
        """The distance without its bias."""
        return self.distance - self.bias

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "excess": self.excess}


def frechet_to_normal(vectors: Floats) -> float:
    """Return the Fréchet distance of (n, d) vectors to N(0, I): |mean|² + tr(S + I - 2 S^½).

    Raises
    ------
    ValueError : fewer than two vectors.
    """
    if len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vector(s): a covariance needs two or more")
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors, rowvar=False, ddof=1).reshape(vectors.shape[1], -1))
    spread = ((np.sqrt(np.maximum(eigenvalues, 0)) - 1) ** 2).sum()
    return float((vectors.mean(axis=0) ** 2).sum() + spread)


def frechet_blocks(x_T: NDArray[np.floating], *, draws: int = 99, seed: int = 0) -> list[BlockDistance]:
    """Measure blocks of x_T (n, channel, height, width): each channel's low modes (mean over channels), the channels' means, and pixels.

    Parameters
    ----------
    draws : of noise behind bias and p.

    Raises
    ------
    ValueError : fewer than two images.
    """
    x = np.asarray(x_T, dtype=np.float64)
    rng = np.random.default_rng([seed, 12])
    modes = low_modes(x).reshape(*x.shape[:2], LOW_MODES**2).transpose(1, 0, 2)
    means = x.mean(axis=(2, 3))[None] * np.sqrt(x.shape[2] * x.shape[3])
    pixels = x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
    chosen = np.sort(rng.permutation(len(pixels))[:_PIXELS])
    blocks = {
        "low modes of a channel": modes,
        "means of the channels": means,
        "channels of a pixel": pixels[chosen][None],
    }
    return [_measured(name, block, draws=draws, rng=rng) for name, block in blocks.items()]


def _measured(name: str, block: Floats, *, draws: int, rng: np.random.Generator) -> BlockDistance:
    """Measure (part, n, d): the mean over parts, beside draws of noise of the same shape."""
    found = float(np.mean([frechet_to_normal(part) for part in block]))
    noise = np.array(
        [np.mean([frechet_to_normal(part) for part in rng.standard_normal(block.shape)]) for _ in range(draws)]
    )
    p = (1 + int((noise >= found).sum())) / (1 + draws)
    return BlockDistance(name, block.shape[2], block.shape[1], found, float(noise.mean()), p)
