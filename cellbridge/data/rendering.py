"""Anatomy to noise-free pixels: five stains, and what each mechanism of a compound does to them.

Every structure that a compound changes is visible before the change: puncta condense out of beads that already sit on the
cortex, fragments lie where their filament lay. Given the response, a cell's picture is thus a function of its own picture.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cellbridge.data.anatomy import CHANNELS, PATCH_PX, Anatomy, Floats, outline_px

MECHANISMS = ("nucleus", "actin", "mitochondria", "er", "rna")

_STENCIL_PX = 3
_TOTALS = {"DNA": 600.0, "ER": 1900.0, "RNA": 1500.0, "AGP": 1700.0, "Mito": 1400.0}
"""Counts (in thousands) of a whole average cell: a compound moves stain about, it hardly changes how much there is."""


def render_cells(anatomy: Anatomy, strength: Floats) -> Floats:
    """Draw each cell with each mechanism at a strength.

    Parameters
    ----------
    strength : (n, mechanism), in [0, 1], in the order of `MECHANISMS`; zeros are the control.

    Returns
    -------
    (n, channel, PATCH_PX, PATCH_PX), expected counts without gain, background, blur and noise; zero outside the cell's territory.
    """
    cells = anatomy.cells
    nucleus, actin, mitochondria, er, rna = np.moveaxis(strength[:, :, None, None].astype(np.float32), 1, 0)
    radius = 5.3 * cells.dna ** (1 / 3) * cells.size**0.5 * (1.0 - 0.4 * strength[:, 0])
    outside = _outside_nucleus(anatomy, radius)
    inside_nucleus = np.clip(0.5 - outside, 0.0, 1.0)
    inside_cell = np.clip(anatomy.depth / 1.5 + 0.5, 0.0, 1.0) * anatomy.territory
    cytoplasm = inside_cell * (1.0 - inside_nucleus)
    spots = _nucleoli(anatomy, radius)
    profiles = {
        "DNA": _dna(anatomy, inside_nucleus, spots, nucleus),
        "ER": _er(anatomy, outside, cytoplasm, er) + 0.2 * inside_nucleus,
        "RNA": _rna(anatomy, outside, cytoplasm, inside_nucleus, spots, strength=rna),
        "AGP": _agp(anatomy, cytoplasm, inside_nucleus, actin),
        "Mito": _mito(anatomy, outside, cytoplasm, mitochondria),
    }
    amount = cells.size**2
    patches = np.empty((len(cells), len(CHANNELS), PATCH_PX, PATCH_PX), np.float32)
    for index, channel in enumerate(CHANNELS):
        profile = profiles[channel] * inside_cell
        total = 1e3 * _TOTALS[channel] * cells.expression[:, index] * (cells.dna if channel == "DNA" else amount)
        patches[:, index] = profile * (total / (profile.sum(axis=(1, 2)) + 1e-6))[:, None, None]
    return patches


def assemble(anatomy: Anatomy, patches: Floats, *, field_px: int, present: NDArray[np.bool_] | None = None) -> Floats:
    """Add the patches of the cells that are present into one field, (channel, field_px, field_px)."""
    canvas = np.zeros((patches.shape[1], field_px + 2 * PATCH_PX, field_px + 2 * PATCH_PX), np.float32)
    for index, (row, column) in enumerate(anatomy.corner + PATCH_PX):
        if present is None or present[index]:
            canvas[:, row : row + PATCH_PX, column : column + PATCH_PX] += patches[index]
    return canvas[:, PATCH_PX:-PATCH_PX, PATCH_PX:-PATCH_PX]


def _splat(points: Floats, weight: Floats, sigma: Floats | float) -> Floats:
    """Sum of unit Gaussians at points (n, k, 2; x and y in patch px), as (n, PATCH_PX, PATCH_PX)."""
    n, k, _ = points.shape
    base = np.floor(points).astype(np.int64)
    offset = np.arange(-_STENCIL_PX, _STENCIL_PX + 2)
    variance = 2.0 * np.broadcast_to(np.asarray(sigma, np.float32), (n, k))[..., None] ** 2
    profile = [np.exp(-((base[..., a, None] + offset - points[..., a, None]) ** 2) / variance) for a in (0, 1)]
    value = (weight / (np.pi * variance[..., 0]))[..., None, None] * profile[1][..., :, None] * profile[0][..., None, :]
    columns, rows = (np.clip(base[..., a, None] + offset, 0, PATCH_PX - 1) for a in (0, 1))
    flat = (np.arange(n)[:, None, None, None] * PATCH_PX + rows[..., :, None]) * PATCH_PX + columns[..., None, :]
    total = np.bincount(flat.ravel(), weights=value.ravel(), minlength=n * PATCH_PX * PATCH_PX)
    return total.reshape(n, PATCH_PX, PATCH_PX).astype(np.float32)


def _smooth(noise: Floats, sigma: float) -> Floats:
    """White noise of unit variance smoothed over `sigma` px and brought back to unit variance."""
    return np.asarray(gaussian_filter(noise, (0, sigma, sigma)) * (2.0 * np.sqrt(np.pi) * sigma), np.float32)


def _centre(anatomy: Anatomy, points: Floats) -> Floats:
    """Points given from the nucleus' centre, in patch px."""
    cells = anatomy.cells
    middle = np.stack([cells.x - anatomy.corner[:, 1], cells.y - anatomy.corner[:, 0]], axis=1) + cells.nucleus[:, :2]
    return np.asarray(points + middle.reshape((len(cells),) + (1,) * (points.ndim - 2) + (2,)), np.float32)


def _outside_nucleus(anatomy: Anatomy, radius: Floats) -> Floats:
    """Distance outwards from the nuclear envelope, px (negative inside)."""
    offset_x, offset_y, elongation, orientation = anatomy.cells.nucleus.T[:, :, None, None]
    x, y = anatomy.grid[0] - offset_x, anatomy.grid[1] - offset_y
    along = (x * np.cos(orientation) + y * np.sin(orientation)) * np.exp(-elongation)
    across = (y * np.cos(orientation) - x * np.sin(orientation)) * np.exp(elongation)
    return np.asarray(np.hypot(along, across) - radius[:, None, None], np.float32)


def _nucleoli(anatomy: Anatomy, radius: Floats) -> Floats:
    """Nucleoli as soft spots of height about 1."""
    points = _centre(anatomy, anatomy.nucleoli[..., :2] * radius[:, None, None])
    sigma = 0.21 * np.sqrt(anatomy.nucleoli[..., 2] + 0.1) * radius[:, None]
    return np.clip(
        _splat(points, (2 * np.pi * sigma**2 * (anatomy.nucleoli[..., 2] > 0)).astype(np.float32), sigma), 0.0, 1.2
    )


def _dna(anatomy: Anatomy, inside: Floats, spots: Floats, strength: Floats) -> Floats:
    """Chromatin with dark nucleoli; a shrunken nucleus is smooth, and denser as its DNA is conserved."""
    grain = 1.0 + (0.24 - 0.12 * strength) * _smooth(anatomy.texture[0], 0.8)
    return np.asarray(inside * np.maximum(grain, 0.2) * (1.0 - 0.6 * np.minimum(spots, 1.0)), np.float32)


def _er(anatomy: Anatomy, outside: Floats, cytoplasm: Floats, strength: Floats) -> Floats:
    """A net that thins out from the nuclear envelope; expanded, it fills the cell and swells into coarse sacs."""
    fine, coarse = _smooth(anatomy.texture[1], 0.9), _smooth(anatomy.texture[1], 1.9)
    net = (0.55 + 0.9 * np.exp(-((fine / 0.6) ** 2))) * np.clip(1.0 + 0.3 * coarse, 0.2, 2.0)
    sacs = 0.35 + 1.3 / (1.0 + np.exp(-3.0 * coarse))
    reach = 3.6 + 9.0 * strength
    fall = 0.16 + np.exp(-np.maximum(outside, 0.0) / reach) * (
        1.0 - 0.85 * strength * np.exp(-np.maximum(outside, 0.0) / 3.0)
    )
    return np.asarray(cytoplasm * fall * ((1.0 - strength) * net + strength * sacs), np.float32)


def _rna(
    anatomy: Anatomy, outside: Floats, cytoplasm: Floats, inside: Floats, spots: Floats, *, strength: Floats
) -> Floats:
    """Cytoplasmic RNA and bright nucleoli; on loss the nucleoli go and the nucleus empties."""
    fall = 0.2 + np.exp(-np.maximum(outside, 0.0) / (4.6 + 4.0 * strength))
    grain = 1.0 + 0.2 * _smooth(anatomy.texture[2], 1.0)
    nuclear = 0.75 * (1.0 - 0.85 * strength) + 2.4 * (1.0 - strength) * spots
    return np.asarray(cytoplasm * fall * np.maximum(grain, 0.2) + inside * nuclear, np.float32)


def _agp(anatomy: Anatomy, cytoplasm: Floats, inside: Floats, strength: Floats) -> Floats:
    """Cortex with beads, fibres along the cell, Golgi; on actin loss cortex and fibres go and the beads sink in as puncta."""
    cells = anatomy.cells
    turn = cells.orientation[:, None, None]
    across = anatomy.grid[1] * np.cos(turn) - anatomy.grid[0] * np.sin(turn)
    warp, thick = 2.2 * _smooth(anatomy.texture[2], 2.5), _smooth(anatomy.texture[0], 2.2)
    fibres = (0.5 + 0.5 * np.cos(2 * np.pi * across / 3.6 + warp + cells.seed[:, None, None] % 7)) ** 2
    fibres = fibres * np.clip(0.55 + 0.6 * thick, 0.0, 2.0)
    cortex = np.exp(-(((anatomy.depth - 1.2) / 1.3) ** 2))
    angle, weight = anatomy.beads[..., 0], anatomy.beads[..., 1]
    sunk = strength[:, :, 0]
    reach = (outline_px(cells, angle) - 1.4) * (1.0 - 0.3 * sunk)
    at_centre = np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=2)
    middle = np.stack([cells.x - anatomy.corner[:, 1], cells.y - anatomy.corner[:, 0]], axis=1)[:, None]
    beads = _splat(at_centre + middle, weight, 1.0 + 0.25 * sunk)
    golgi = _splat(_centre(anatomy, anatomy.golgi), np.ones(anatomy.golgi.shape[:2], np.float32), 1.0)
    actin = (1.0 - 0.95 * strength) * (0.9 * cortex + 0.45 * fibres) + (3.5 + 8.0 * strength) * beads
    return np.asarray(
        cytoplasm * (0.28 + actin + 3.2 * golgi) + inside * (0.3 + 0.15 * fibres * (1.0 - strength)), np.float32
    )


def _mito(anatomy: Anatomy, outside: Floats, cytoplasm: Floats, strength: Floats) -> Floats:
    """Filaments around the nucleus; fragmented, each contracts into two grains that disperse through the cell."""
    n, filaments, links, _ = anatomy.filaments.shape
    amount = strength[:, :, :, None]
    halves = anatomy.filaments.reshape(n, filaments, 2, links // 2, 2).mean(axis=3).repeat(links // 2, axis=2)
    placed = anatomy.filaments + 0.9 * amount * (halves - anatomy.filaments)
    placed = placed * (1.0 + 0.5 * amount)
    points = _centre(anatomy, placed.reshape(n, -1, 2))
    grains = _splat(points, np.ones(points.shape[:2], np.float32), 0.72 + 0.2 * strength[:, :, 0])
    haze = 0.05 + 0.12 * np.exp(-np.maximum(outside, 0.0) / 4.0)
    return np.asarray(cytoplasm * (haze + grains) + 0.06 * (outside < 0), np.float32)
