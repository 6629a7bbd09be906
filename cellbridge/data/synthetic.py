"""Synthetic Cell Painting whose truth is known: a structural causal model of cells, compounds and plates.

cell (position, shape, phase, own texture seeds) ──┐
condition (compound, dose) ── response, binary ────┼──▶ expected image ── plate (gain, blur, vignetting, noise) ──▶ counts
chance (one draw per cell and compound) ───────────┘

The same cells can be rendered under any condition on any plate. Whether a cell responds depends on what can be seen of it
(phase, size), on the dose, and on chance; how it looks once it responds depends on what can be seen and the dose alone. So the
best predictor of a cell's image under squared error is p · responding + (1 - p) · source, and no model beats its error.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from cellbridge.conditions import Condition
from cellbridge.data.anatomy import CHANNELS, Anatomy, Cells, Floats, dissect
from cellbridge.data.rendering import MECHANISMS, assemble, render_cells
from cellbridge.errors import ConditionError, did_you_mean

Sums = dict[str, NDArray[np.float64]]

FULL_SCALE = 65535
PIXEL_UM = 1.2


@dataclass(frozen=True)
class Compound:
    """What a compound does at a saturating dose, and at which doses.

    Parameters
    ----------
    nucleus, actin, mitochondria, er, rna : strength of each mechanism, in [0, 1] (see `rendering`).
    loss : probability that a cell is lost.
    responds : probability that an average cell responds.
    ec50_um, hill : dose of half the effect, and steepness.
    """

    nucleus: float = 0.0
    actin: float = 0.0
    mitochondria: float = 0.0
    er: float = 0.0
    rna: float = 0.0
    loss: float = 0.05
    responds: float = 0.88
    ec50_um: float = 1.0
    hill: float = 1.5

    def occupancy(self, dose_um: float) -> float:
        """Hill curve, dose^h / (dose^h + EC50^h), in [0, 1)."""
        return dose_um**self.hill / (dose_um**self.hill + self.ec50_um**self.hill)


COMPOUNDS: Mapping[str, Compound] = MappingProxyType(
    {
        "taxol": Compound(nucleus=1.0, mitochondria=0.8, rna=0.9, er=0.6, loss=0.12, ec50_um=0.08),
        "latrunculin": Compound(actin=1.0, nucleus=0.6, er=0.8, mitochondria=0.4, loss=0.06, ec50_um=0.1),
        "rotenone": Compound(mitochondria=1.0, rna=0.4, actin=0.2, loss=0.1, ec50_um=0.1),
        "tunicamycin": Compound(er=1.0, rna=1.0, nucleus=0.7, loss=0.08, ec50_um=0.5),
    }
)


@dataclass(frozen=True)
class Plate:
    """How a plate was stained and imaged; arrays are per channel, in the order of `CHANNELS`."""

    name: str
    gain: Floats
    background: Floats
    """Counts without cells."""
    blur_px: Floats
    vignetting: float
    """Loss of light in the corners, as a share."""
    centre: tuple[float, float]
    """Of the vignetting: row and column as a share of the field."""
    counts_per_photon: float = 2.0
    read_noise: float = 12.0


@dataclass(frozen=True)
class Response:
    """What a condition does to each cell of a field; `strength` is of responding, whether or not the cell responds."""

    probability: Floats
    responds: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    strength: Floats
    """(n, mechanism)."""


def generator(*parts: int | str) -> np.random.Generator:
    """Return a generator that is a function of its parts: a purpose, a seed, a plate, a well …"""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))


def draw_plate(name: str, random: np.random.Generator) -> Plate:
    """Draw a plate: gain varies by about 15 % and background by 20 % per channel."""
    n = len(CHANNELS)
    return Plate(
        name=name,
        gain=np.exp(random.normal(0.0, 0.15, n)).astype(np.float32),
        background=(np.array([380, 620, 700, 560, 480]) * np.exp(random.normal(0.0, 0.2, n))).astype(np.float32),
        blur_px=random.uniform(0.55, 0.75, n).astype(np.float32),
        vignetting=float(random.uniform(0.05, 0.15)),
        centre=(float(random.uniform(0.4, 0.6)), float(random.uniform(0.4, 0.6))),
    )


def draw_cells(random: np.random.Generator, *, number: int, field_px: int) -> Cells:
    """Draw the cells of one field, in colonies of one to three that touch; fewer than `number` where the field is full."""
    x, y, clone = _settle(random, number=number, field_px=field_px)
    n = len(x)
    phase = -np.log2(1.0 - random.uniform(0.0, 0.5, n))  # twice as many newborn cells as dividing ones
    phase = phase[clone]  # sisters divided together
    size = np.exp(random.normal(0.0, 0.09, n)) * (0.94 + 0.16 * phase)
    elongation = np.abs(random.normal(0.12, 0.08, n))
    orientation = random.uniform(0.0, np.pi, n)
    amplitude = random.normal(0.0, 1.0, (n, 4)) * np.array([0.05, 0.05, 0.03, 0.02])
    outline = np.stack([amplitude, random.uniform(0.0, 2 * np.pi, (n, 4))], axis=2)
    offset = random.normal(0.0, 0.9, (n, 2))
    nucleus = [offset[:, 0], offset[:, 1], random.uniform(0.03, 0.18, n), orientation + random.normal(0.0, 0.4, n)]
    expression = np.exp(random.normal(0.0, 0.12, (n, 1)) + random.normal(0.0, 0.2, (n, len(CHANNELS))))
    expression[:, 0] = np.exp(random.normal(0.0, 0.06, n))
    return Cells(
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        phase=phase.astype(np.float32),
        size=size.astype(np.float32),
        orientation=orientation.astype(np.float32),
        elongation=elongation.astype(np.float32),
        outline=outline.astype(np.float32),
        nucleus=np.stack(nucleus, axis=1).astype(np.float32),
        expression=expression.astype(np.float32),
        clone=clone,
        seed=random.integers(0, 2**62, n),
    )


def draw_chance(cells: Cells, random: np.random.Generator) -> NDArray[np.float64]:
    """Draw what no model can know, (n, 2), each uniform in [0, 1): for the response, one draw per colony, and for the loss.

    Sisters share their fate, which keeps neighbours from giving away the condition of a cell that does not respond. The draws
    for the response are stratified over the colonies of the field, so that the share of responders varies little by well.
    """
    colonies, colony = np.unique(cells.clone, return_inverse=True)
    n = len(colonies)
    response = (random.permutation(n) + random.random(n)) / n
    return np.stack([response[colony], random.random(len(cells))], axis=1)


def respond(cells: Cells, compound: Compound, dose_um: float, *, chance: NDArray[np.float64]) -> Response:
    """Decide what each cell does under a compound at a dose.

    With occupancy h of the dose: p = h^0.4 · logistic(logit(responds) + 1.1 z_phase + 0.8 z_size), and a cell responds where
    its chance is below p. Strength = mechanism · h · (0.85 + 0.15 phase). Loss is independent of the response.

    Parameters
    ----------
    chance : (n, 2), from `draw_chance`. The same chance at two doses makes responders at the lower dose responders at the
        higher one.
    """
    occupancy = compound.occupancy(dose_um)
    z_phase, z_size = (cells.phase - 0.44) / 0.29, (cells.size - 1.0) / 0.1
    logit = np.log(compound.responds / (1.0 - compound.responds)) + 1.1 * z_phase + 0.8 * z_size
    probability = occupancy**0.4 / (1.0 + np.exp(-logit))
    strength = np.array([getattr(compound, mechanism) for mechanism in MECHANISMS])
    return Response(
        probability=probability.astype(np.float32),
        responds=chance[:, 0] < probability,
        lost=chance[:, 1] < compound.loss * occupancy,
        strength=(strength * occupancy * (0.85 + 0.15 * cells.phase[:, None])).astype(np.float32),
    )


def compound_named(condition: Condition, compounds: Mapping[str, Compound] = COMPOUNDS) -> Compound:
    """Return what a condition's compound does; raise ConditionError where it is unknown or has no dose."""
    if condition.compound not in compounds:
        hint = did_you_mean(condition.compound, compounds)
        raise ConditionError(f'condition "{condition.name}": the generator knows no compound of that name.{hint}')
    if condition.dose_um is None or not condition.dose_um > 0:
        raise ConditionError(
            f'condition "{condition.name}" has no dose. Write it as "{condition.compound}@1" (micromolar).'
        )
    return compounds[condition.compound]


def render_field(
    cells: Cells,
    plate: Plate,
    *,
    field_px: int,
    noise: np.random.Generator,
    strength: Floats | None = None,
    present: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint16]:
    """Render cells under any condition on any plate.

    Parameters
    ----------
    noise : draws shot and read noise; generators in the same state give renders that differ only where the expected image does.
    strength : (n, mechanism); row i is the response of cell i, zeros (the default) the control. See `respond`.
    present : which cells are there; all by default.

    Returns
    -------
    (channel, field_px, field_px), counts in the order of `CHANNELS`.
    """
    anatomy = dissect(cells, field_px=field_px)
    untouched = np.zeros((len(cells), len(MECHANISMS)), np.float32)
    patches = render_cells(anatomy, untouched if strength is None else strength)
    return expose(assemble(anatomy, patches, field_px=field_px, present=present), plate, noise=noise)


def expose(expected: Floats, plate: Plate, *, noise: np.random.Generator) -> NDArray[np.uint16]:
    """Image a field: blur, vignetting, gain, background, then shot and read noise (normal approximation of Poisson)."""
    _, height, width = expected.shape
    row = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height - plate.centre[0]
    column = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width - plate.centre[1]
    light = 1.0 - plate.vignetting * 2.0 * (row**2 + column**2)
    blurred = np.stack(
        [gaussian_filter(e, float(b), truncate=3.5) for e, b in zip(expected, plate.blur_px, strict=True)]
    )
    mean = (blurred * plate.gain[:, None, None] + plate.background[:, None, None]) * light
    draw = noise.standard_normal(mean.shape, dtype=np.float32)
    counts = mean + draw * np.sqrt(mean * plate.counts_per_photon + plate.read_noise**2)
    return np.clip(np.rint(counts), 0, FULL_SCALE).astype(np.uint16)


def squared_errors(anatomy: Anatomy, response: Response, plate: Plate, *, source: Floats, responding: Floats) -> Sums:
    """Sum, over the cells that are not lost and their own pixels, the squared errors of three predictors that know the truth.

    Per pixel with d = responding - source (counts, after the plate's gain, without blur and noise):
    Bayes p (1 - p) d^2, copying the source p d^2, making every cell respond (1 - p) d^2; all are expectations over chance.

    Returns
    -------
    "bayes", "copy", "respond": (channel,) sums; "pixels": (1,) number of pixels.
    """
    kept = ~response.lost
    own = (anatomy.depth > 0)[kept] & (anatomy.territory > 0.5)[kept]
    change = ((responding - source)[kept] * plate.gain[:, None, None]) ** 2
    per_cell = np.einsum("nchw,nhw->nc", change, own, dtype=np.float64)
    p = response.probability[kept].astype(np.float64)
    weights = {"bayes": p * (1 - p), "copy": p, "respond": 1 - p}
    sums = {name: (weight[:, None] * per_cell).sum(axis=0) for name, weight in weights.items()}
    return {**sums, "pixels": np.array([own.sum()], np.float64)}


def rms_counts(sums: Sequence[Sums]) -> dict[str, dict[str, float]]:
    """Return the root mean square error in counts, per predictor and channel, from the sums of many fields.

    "bayes" is the floor: no model that sees the source cell has a smaller expected error.
    """
    pixels = max(float(sum(part["pixels"][0] for part in sums)), 1.0)
    errors = {name: np.sqrt(sum(part[name] for part in sums) / pixels) for name in ("bayes", "copy", "respond")}
    return {
        name: {channel: round(float(value), 2) for channel, value in zip(CHANNELS, values, strict=True)}
        for name, values in errors.items()
    }


def scatter_wells(contents: Sequence[Condition], random: np.random.Generator) -> dict[str, Condition]:
    """Give each of at most 384 wells' contents a place on the plate; sorted by well."""
    places = random.permutation(384)[: len(contents)].tolist()
    filled = sorted(zip(places, contents, strict=True), key=lambda pair: pair[0])
    return {f"{chr(ord('A') + place // 24)}{place % 24 + 1:02d}": condition for place, condition in filled}


def _settle(
    random: np.random.Generator, *, number: int, field_px: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Draw centres and colonies: sisters lie 20 to 26 px apart, cells of different colonies at least 30 px."""
    margin, points, clone = 10.0, np.empty((0, 2)), np.empty(0, np.int64)
    for _ in range(60 * number):
        if len(points) == number:
            break
        mother = int(random.integers(len(points))) if len(points) and random.random() < 0.4 else -1
        if mother >= 0 and np.count_nonzero(clone == clone[mother]) < 3:
            angle, reach = random.uniform(0.0, 2 * np.pi), random.uniform(20.0, 26.0)
            point, colony = points[mother] + reach * np.array([np.cos(angle), np.sin(angle)]), int(clone[mother])
        else:
            point, colony = random.uniform(margin, field_px - margin, 2), len(points)
        apart = np.where(clone == colony, 20.0, 30.0)
        if np.all((point >= margin) & (point <= field_px - margin)) and np.all(
            np.hypot(*(points - point).T) >= apart - 1e-9
        ):
            points, clone = np.vstack([points, point]), np.append(clone, colony)
    return points[:, 0], points[:, 1], clone
