"""Drawn cells whose truth is known: the same cell can be drawn under the control and under a compound that changes every stain."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from cellbridge.metrics.intervals import Blocks

CHANNELS = ("DNA", "ER", "Mito")
SIZE = 24


@dataclass(frozen=True)
class Drawn:
    """Images (n, channel, height, width) in [-1, 1], and where the cells lie."""

    images: np.ndarray
    plates: np.ndarray
    wells: np.ndarray

    @property
    def blocks(self) -> Blocks:
        return Blocks(np.unique(self.wells, return_inverse=True)[1].astype(np.int64), "wells")


def draw(seed: int, *, treated: bool = False, plates: int = 2, wells: int = 3, per_well: int = 20) -> Drawn:
    """Draw cells of some plates; the same seed draws the same cells on the same plates, camera noise included."""
    rng = np.random.default_rng(seed)
    n = plates * wells * per_well
    yy, xx = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    radius, stretch, turn = rng.uniform(6, 9, n), rng.uniform(1, 1.5, n), rng.uniform(0, np.pi, n)
    shift, stain = rng.normal(0, 1.2, (n, 2)), rng.uniform(0.8, 1.2, (n, 3))
    texture = gaussian_filter(rng.standard_normal((n, 2, SIZE, SIZE)), (0, 0, 1.2, 1.2)) * 3
    noise = rng.normal(0, 0.03, (n, 3, SIZE, SIZE))
    x, y = (axis[None] - shift[:, i, None, None] for i, axis in enumerate((xx, yy)))
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    away = np.hypot((x * cos + y * sin) * stretch[:, None, None], y * cos - x * sin)
    nucleus = (radius * (0.32 if treated else 0.45))[:, None, None]
    body, kernel = (1 / (1 + np.exp(1.5 * (away - edge))) for edge in (radius[:, None, None], nucleus))
    er = (0.55 if treated else 1.0) * body * (1 + 0.35 * texture[:, 0]) * (1 - 0.5 * kernel)
    spots = np.clip(texture[:, 1] + (0.8 if treated else 0.2), 0, None) * body * (1 - kernel)
    signal = np.stack([1.1 * kernel, 0.9 * er, 0.5 * spots], axis=1) * stain[:, :, None, None]
    of_plate = np.repeat(np.arange(plates), wells * per_well)
    gain = np.random.default_rng([seed, 1]).uniform(0.9, 1.1, (plates, 3))[of_plate]
    images = np.clip(-0.8 + signal * gain[:, :, None, None] + noise, -1, 1).astype(np.float32)
    names = np.array([f"P{plate}" for plate in of_plate])
    places = np.repeat(np.arange(plates * wells), per_well)
    return Drawn(images, names, np.array([f"{plate}/{place}" for plate, place in zip(names, places, strict=True)]))


def study(seed: int) -> dict[str, Drawn]:
    """Draw sources and their counterfactuals, and as many other cells: real target and control cells, and training cells of the target."""
    return {
        "source": draw(4 * seed),
        "counterfactual": draw(4 * seed, treated=True),
        "real": draw(4 * seed + 1, treated=True),
        "control": draw(4 * seed + 2),
        "training": draw(4 * seed + 3, treated=True),
    }
