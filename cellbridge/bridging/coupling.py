"""Cells of a store as the pairs of an epoch: control cells with cells of a condition, coupled plate by plate.

Cells have no orientation. Where training turns them, a source and a target cost what they cost at the nearest of the target's eight orientations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellbridge.bridge.image_moments import leading_modes
from cellbridge.config import ImageBridgeConfig, TransportConfig
from cellbridge.data import augment
from cellbridge.data.dataset import CellData
from cellbridge.errors import CouplingError
from cellbridge.runtime import generator
from cellbridge.transport.cost import Cost, project, random_projection
from cellbridge.transport.coupling import Coupling, couple
from cellbridge.transport.strata import Cells, EpochPairs, Features, Pairs
from cellbridge.transport.whitening import whiten_by_plate

Rows = NDArray[np.int64]

FEWEST = 20
"""Cells of a condition, or of the control, below which there is no bridge to fit."""

ELEMENTS = 8
_CELLS_AT_ONCE = 512
_FOR_MODES = 2048
"""Control cells that the leading components are those of."""


@dataclass(frozen=True)
class Labelled:
    """Cells in memory, labelled by the number of their condition (-1: the control), with what is known of each.

    Parameters
    ----------
    names, plates : condition and plate of each cell.
    """

    data: CellData
    names: NDArray[np.object_]
    plates: NDArray[np.object_]
    control: str

    def of(self, rows: Rows, *, treated: bool) -> Rows:
        """Return those of the rows that are control cells, or those that are not."""
        return rows[(self.names[rows] != self.control) == treated]

    def labels_of(self, rows: Rows) -> tuple[list[str], list[str]]:
        """Return plate and condition of each of the rows."""
        return self.plates[rows].tolist(), self.names[rows].tolist()


def require_enough(cells: Labelled, conditions: tuple[str, ...]) -> None:
    """Raise CouplingError where a side has hardly any cells."""
    for name in (cells.control, *conditions):
        count = int((cells.names == name).sum())
        if count < FEWEST:
            raise CouplingError(
                f"{count} cells of {name} to train on: a bridge needs {FEWEST} or more of each side. Add plates or wells, widen split or "
                "plates, or leave the condition out."
            )


def held_out(cells: Labelled, share: float, *, seed: int) -> tuple[Rows, Rows]:
    """Return the rows that train and the rows that judge, the latter a share of every condition's cells on every plate by lot.

    Groups of fewer than `FEWEST` cells all train.
    """
    judge = np.zeros(len(cells.names), dtype=bool)
    for plate, name in sorted(set(zip(cells.plates.tolist(), cells.names.tolist(), strict=True))):
        rows = np.flatnonzero((cells.plates == plate) & (cells.names == name))
        if len(rows) >= FEWEST:
            order = torch.randperm(len(rows), generator=generator("cpu", "held out pairs", seed, plate, name)).numpy()
            judge[rows[order[: round(share * len(rows))]]] = True
    return np.flatnonzero(~judge), np.flatnonzero(judge)


class CoupledRows:
    """Epoch → rows of the sources and of their targets, and how each target is turned: a function of (seed, epoch).

    Parameters
    ----------
    rows : of the cells that may be paired.
    transport : None draws targets by lot.
    turned : the orientation of a target is chosen with it, or by lot where the target is.

    Raises
    ------
    CouplingError : targets on a plate without control cells, or hardly any cells on a side.
    """

    def __init__(
        self,
        cells: Labelled,
        rows: Rows,
        *,
        transport: TransportConfig | None,
        across_plates: bool,
        turned: bool,
        seed: int,
    ):
        self._sources, targets = cells.of(rows, treated=False), cells.of(rows, treated=True)
        self._turned, self._seed = turned, seed
        elements = ELEMENTS if turned and transport is not None else 1
        self._targets = targets
        found, still, others = _features(cells, self._sources, targets, elements, transport, seed=seed)
        self._pairs = EpochPairs(
            Cells(found, *cells.labels_of(self._sources)),
            Cells(still, *cells.labels_of(targets), others),
            solve=None if transport is None else _solver(transport),
            seed=seed,
            block=1024 if transport is None else transport.stratum,
            across_plates=across_plates,
        )
        self.notes = self._pairs.notes
        self._told: dict[int, dict[str, float]] = {}
        self.count = sum(len(stratum.sources) for stratum in self._pairs.strata)

    def __call__(self, epoch: int) -> tuple[Rows, Rows, Rows]:
        pairs = self._pairs(epoch)
        if epoch not in self._told:
            self._told[epoch] = _described(pairs)
        turns = pairs.turn
        if self._turned and not pairs.blocks:
            drawn = augment.draw_dihedral(len(turns), generator=generator("cpu", "turns", self._seed, epoch))
            turns = drawn.numpy()
        return self._sources[pairs.source], self._targets[pairs.target], turns

    def figures(self, epoch: int) -> dict[str, float]:
        """Return what the couplings of an epoch were like, means over its pairs; nothing of independent pairs."""
        if epoch not in self._told:
            self(epoch)
        return self._told[epoch]


def _described(pairs: Pairs) -> dict[str, float]:
    weights = np.array([block.sources for block in pairs.blocks], dtype=np.float64)
    names = ("relative_entropy", "retained_mass", "cost", "marginal_error") if pairs.blocks else ()
    return {
        f"plan_{name}": float(np.average([getattr(block, name) for block in pairs.blocks], weights=weights))
        for name in names
    }


def _solver(transport: TransportConfig) -> Callable[[Cost], Coupling]:
    if transport.reg_rel == 0:
        return partial(couple, method="exact")
    return partial(couple, reg=transport.reg_rel, reg_unit="spread", tau=transport.tau)


def _features(
    cells: Labelled, sources: Rows, targets: Rows, elements: int, transport: TransportConfig | None, *, seed: int
) -> tuple[Tensor, Tensor, Sequence[Features]]:
    """Return what the cost is computed on: of the sources, of the targets as they are, and of these in each further orientation."""
    if transport is None or not len(sources) or not len(targets):
        return torch.zeros(len(sources), 1), torch.zeros(len(targets), 1), []
    embed = _embedding(cells, sources, transport, seed=seed)
    found = _embedded(cells, sources, embed, element=0)
    if transport.cost == "pixels":
        others = [_Asked(cells, targets, embed, element) for element in range(1, elements)]
        return found, _embedded(cells, targets, embed, element=0), others
    turned = [_embedded(cells, targets, embed, element=element) for element in range(elements)]
    if transport.cost != "whitened":
        return found, turned[0], turned[1:]
    plates = np.concatenate([cells.plates[sources], *[cells.plates[targets]] * elements])
    control = torch.arange(len(plates)) < len(sources)
    known = np.isin(plates, np.unique(cells.plates[sources]))
    if not known.all():
        raise CouplingError("cost: whitened needs control cells on every plate. Use cost: principal across plates.")
    white = whiten_by_plate(
        torch.cat([found, *turned]).cpu(), plates=plates.tolist(), control=control, components=transport.components
    )
    white = white.to(found.device)
    still, *others = white[len(sources) :].split(len(targets))
    return white[: len(sources)], still, others


@dataclass(frozen=True)
class _Asked:
    """Features of cells in one orientation, made for the rows that are asked for: pixels of all, eight times, need not fit into memory."""

    cells: Labelled
    rows: Rows
    embed: Callable[[Tensor], Tensor]
    element: int

    def __getitem__(self, rows: Rows, /) -> Tensor:
        return _embedded(self.cells, self.rows[rows], self.embed, element=self.element)


def _embedding(cells: Labelled, sources: Rows, transport: TransportConfig, *, seed: int) -> Callable[[Tensor], Tensor]:
    """Return images → features."""
    dimension = int(np.prod(cells.data.image_shape))
    if transport.cost == "pixels":
        return lambda images: images.flatten(1)
    if transport.cost == "projection":
        drawn = random_projection(dimension, transport.width, generator=generator("cpu", "projection", seed))
        return lambda images: project(images, drawn)
    some = sources[np.linspace(0, len(sources) - 1, min(len(sources), _FOR_MODES)).astype(np.int64)]
    images = cells.data.batch(torch.from_numpy(some))
    modes = leading_modes(images - images.mean(0), transport.components, seed=seed).flatten(1)
    return lambda images: images.flatten(1) @ modes.T


def _embedded(cells: Labelled, rows: Rows, embed: Callable[[Tensor], Tensor], *, element: int) -> Tensor:
    parts = []
    for start in range(0, len(rows), _CELLS_AT_ONCE):
        some = torch.from_numpy(rows[start : start + _CELLS_AT_ONCE])
        parts.append(embed(cells.data.batch(some, elements=torch.full((len(some),), element))))
    return torch.cat(parts)


def coupled_rows(
    cells: Labelled, rows: Rows, bridge: ImageBridgeConfig, transport: TransportConfig, *, turned: bool, seed: int
) -> CoupledRows:
    """Return the pairs that a configuration asks for."""
    return CoupledRows(
        cells,
        rows,
        transport=transport if bridge.coupling == "ot" else None,
        across_plates=transport.across_plates,
        turned=turned,
        seed=seed,
    )
