"""What synthetic cells are, and where everything in them lies: shapes, territories, organelles; all before any compound."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
PATCH_PX = 48
"""Side of the square that one cell is drawn in, centred on the cell."""

_N_NUCLEOLI, _N_GOLGI, _N_BEADS, _N_FILAMENTS, _N_LINKS = 4, 6, 10, 20, 6


@dataclass(frozen=True)
class Cells:
    """The cells of one field, one row each: everything about them that no compound changes.

    Parameters
    ----------
    x, y : (n,), centre in the field, px.
    phase : (n,), age in the cell cycle, in [0, 1]; DNA doubles between 0.45 and 0.8.
    size : (n,), radius relative to the average cell.
    orientation, elongation : (n,), long axis in radians, and half the log ratio of the axes.
    outline : (n, 4, 2), amplitude and phase of the outline's harmonics 2 to 5.
    nucleus : (n, 4), offset x and y from the centre, elongation, orientation.
    expression : (n, channel), amount of each stain relative to the average cell.
    clone : (n,), index of the first cell of each cell's colony: cells that touch come from one mother and share their chance.
    seed : (n,), draws the layout of organelles and the textures.
    """

    x: Floats
    y: Floats
    phase: Floats
    size: Floats
    orientation: Floats
    elongation: Floats
    outline: Floats
    nucleus: Floats
    expression: Floats
    clone: NDArray[np.int64]
    seed: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def radius_px(self) -> Floats:
        """Mean radius of the cell outline."""
        return np.asarray(12.6 * self.size, np.float32)

    @property
    def dna(self) -> Floats:
        """DNA content, 1 (before replication) to 2."""
        return np.asarray(1.0 + np.clip((self.phase - 0.45) / 0.35, 0.0, 1.0), np.float32)


@dataclass(frozen=True)
class Anatomy:
    """Cells laid out on pixels, before any compound: grids are (n, PATCH_PX, PATCH_PX), points (n, k, 2) in patch px."""

    cells: Cells
    corner: NDArray[np.int64]
    """(n, 2), row and column in the field of each patch's first pixel; may be negative."""
    grid: Floats
    """(2, n, PATCH_PX, PATCH_PX): x and y from the cell's centre, px."""
    depth: Floats
    """Distance inwards from the cell's outline, px, approximately."""
    territory: Floats
    """Share of each pixel that is this cell's, in [0, 1]: neighbours divide where they touch, whatever happens to them later."""
    texture: Floats
    """(3, n, PATCH_PX, PATCH_PX) white noise: chromatin, ER, cytoplasm."""
    nucleoli: Floats
    """(n, k, 3): position in units of the nuclear radius, weight."""
    golgi: Floats
    beads: Floats
    """(n, k, 2): angle and weight of the actin beads on the cortex."""
    filaments: Floats
    """(n, filament, link, 2), px from the nucleus' centre."""


def dissect(cells: Cells, *, field_px: int) -> Anatomy:
    """Lay out the organelles, outlines and territories of the cells of a field; a pure function of the cells."""
    corner = np.stack([np.floor(cells.y), np.floor(cells.x)], axis=1).astype(np.int64) - PATCH_PX // 2
    steps = np.arange(PATCH_PX, dtype=np.float32)
    grid_x = np.broadcast_to(
        (corner[:, 1, None] + steps - cells.x[:, None])[:, None, :], (len(cells), PATCH_PX, PATCH_PX)
    )
    grid_y = np.broadcast_to(
        (corner[:, 0, None] + steps - cells.y[:, None])[:, :, None], (len(cells), PATCH_PX, PATCH_PX)
    )
    grid = np.stack([grid_x, grid_y]).astype(np.float32)
    distance, outline = np.hypot(*grid), outline_px(cells, np.arctan2(grid[1], grid[0]))
    texture, nucleoli, golgi, beads, filaments = _draw_layout(cells)
    return Anatomy(
        cells=cells,
        corner=corner,
        grid=grid,
        depth=outline - distance,
        territory=_territory(distance / outline, corner, cells.radius_px, field_px=field_px),
        texture=texture,
        nucleoli=nucleoli,
        golgi=golgi,
        beads=beads,
        filaments=filaments,
    )


def outline_px(cells: Cells, angle: Floats) -> Floats:
    """Radius of the outline at an angle, (n, …) → (n, …): an ellipse of the cell's area with four harmonics."""
    shape = (len(cells),) + (1,) * (angle.ndim - 1)
    turned = angle - cells.orientation.reshape(shape)
    stretch = np.exp(cells.elongation.reshape(shape))
    ellipse = 1.0 / np.sqrt((np.cos(turned) / stretch) ** 2 + (np.sin(turned) * stretch) ** 2)
    wave = np.ones_like(ellipse)
    for order in range(4):
        amplitude, phase = cells.outline[:, order, 0].reshape(shape), cells.outline[:, order, 1].reshape(shape)
        wave += amplitude * np.cos((order + 2) * turned + phase)
    return np.asarray(cells.radius_px.reshape(shape) * ellipse * wave, np.float32)


def _draw_layout(cells: Cells) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Draw textures and organelle positions, each cell from its own seed."""
    n = len(cells)
    texture = np.empty((3, n, PATCH_PX, PATCH_PX), np.float32)
    nucleoli, golgi = np.empty((n, _N_NUCLEOLI, 3), np.float32), np.empty((n, _N_GOLGI, 2), np.float32)
    beads = np.empty((n, _N_BEADS, 2), np.float32)
    filaments = np.empty((n, _N_FILAMENTS, _N_LINKS, 2), np.float32)
    for index, seed in enumerate(cells.seed):
        random = np.random.default_rng(int(seed))
        texture[:, index] = random.standard_normal((3, PATCH_PX, PATCH_PX), dtype=np.float32)
        angle = 2 * np.pi * (
            np.arange(_N_NUCLEOLI) / _N_NUCLEOLI + random.uniform(-0.09, 0.09, _N_NUCLEOLI)
        ) + random.uniform(0, 7)
        reach = random.uniform(0.25, 0.62, _N_NUCLEOLI)
        weight = np.where(
            np.arange(_N_NUCLEOLI) < random.integers(2, _N_NUCLEOLI + 1), random.uniform(0.6, 1.4, _N_NUCLEOLI), 0
        )
        nucleoli[index] = np.stack([reach * np.cos(angle), reach * np.sin(angle), weight], axis=1)
        side = random.uniform(0, 2 * np.pi) + random.normal(0, 0.45, _N_GOLGI)
        distance = 6.0 * cells.dna[index] ** (1 / 3) * cells.size[index] ** 0.5 + random.uniform(0.6, 2.2, _N_GOLGI)
        golgi[index] = np.stack([distance * np.cos(side), distance * np.sin(side)], axis=1)
        even = np.arange(_N_BEADS) + random.uniform(-0.3, 0.3, _N_BEADS)
        beads[index] = np.stack(
            [2 * np.pi * even / _N_BEADS + random.uniform(0, 7), random.gamma(4, 0.25, _N_BEADS)], axis=1
        )
        start, reach = random.uniform(0, 2 * np.pi, _N_FILAMENTS), 5.8 + random.exponential(2.2, _N_FILAMENTS)
        heading = start + np.pi / 2 + random.normal(0, 0.8, _N_FILAMENTS)
        turns = heading[:, None] + np.cumsum(random.normal(0, 0.35, (_N_FILAMENTS, _N_LINKS)), axis=1)
        walk = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], axis=2), axis=1) * 0.95
        origin = np.stack([reach * np.cos(start), reach * np.sin(start)], axis=1) * cells.size[index]
        filaments[index] = origin[:, None] + walk - walk.mean(axis=1, keepdims=True)
    return texture, nucleoli, golgi, beads, filaments


def _territory(scaled: Floats, corner: NDArray[np.int64], radius_px: Floats, *, field_px: int) -> Floats:
    """Divide contested pixels: a pixel goes to the cell in whose outline it lies deepest, softly over about a pixel."""
    side = field_px + 2 * PATCH_PX
    nearest, second = np.full((side, side), 9.0, np.float32), np.full((side, side), 9.0, np.float32)
    windows = [np.s_[r : r + PATCH_PX, c : c + PATCH_PX] for r, c in corner + PATCH_PX]
    for window, own in zip(windows, scaled, strict=True):
        second[window] = np.minimum(second[window], np.maximum(nearest[window], own))
        nearest[window] = np.minimum(nearest[window], own)
    others = np.stack([np.where(scaled[i] <= nearest[w], second[w], nearest[w]) for i, w in enumerate(windows)])
    return np.asarray(np.clip((others - scaled) * radius_px[:, None, None] / 2.0 + 0.5, 0.0, 1.0), np.float32)
