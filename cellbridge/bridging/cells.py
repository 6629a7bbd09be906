"""The cells of a bridge between images: held in memory, coupled for training, some kept to judge by, and their moments."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cellbridge.bridge.image_moments import Views, joined, leading_modes, mean_images, pair_moments
from cellbridge.bridge.linear_guess import Moments
from cellbridge.bridging.coupling import ELEMENTS, CoupledRows, Labelled, Rows, coupled_rows, held_out, require_enough
from cellbridge.bridging.judging import PAIRS_JUDGED, held_out_pairs, unjudged
from cellbridge.config import BridgeFitConfig
from cellbridge.data import augment
from cellbridge.data.dataset import CellData
from cellbridge.data.pairs import PairSource
from cellbridge.data.store import Store

_PAIRS_FOR_MOMENTS = 1024
_IMAGES_FOR_MODES = 4096
_PAIRS_AT_ONCE = 512


@dataclass(frozen=True)
class BridgeCells:
    """The cells of a bridge in memory.

    Parameters
    ----------
    train : pairs in the order of training.
    coupled : their epochs.
    judge : rows that do not train.
    judged : pairs of which one cell or both are of these; None where there are none.
    unjudged : remarks on what held-out pairs say nothing of.
    """

    cells: Labelled
    train: PairSource
    coupled: CoupledRows
    judge: Rows
    judged: PairSource | None
    unjudged: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the coupling and on what is held out."""
        return (*self.coupled.notes, *self.unjudged)


def bridge_cells(
    store: Store, rows: Rows, conditions: tuple[str, ...], *, config: BridgeFitConfig, device: torch.device
) -> BridgeCells:
    """Hold the cells of `rows` in memory, keep some to judge by, and couple the others for training.

    Raises
    ------
    CouplingError : control cells and targets share no plate, or hardly any cells.
    NumericalError : a coupling that does not converge.
    """
    names, plates = store.condition_names[rows], store.plates[rows]
    numbers = torch.tensor([conditions.index(name) if name in conditions else -1 for name in names])
    data = CellData.load(store, rows, labels=numbers, device=device)
    cells = Labelled(data, names, plates, store.info.control)
    require_enough(cells, conditions)
    training, bridge = config.training, config.bridge
    train, judge = held_out(cells, bridge.held_out, seed=training.seed)
    coupled = coupled_rows(cells, train, bridge, config.transport, turned=config.augment, seed=training.seed)
    source = PairSource(
        data,
        coupled,
        count=coupled.count,
        batch_size=training.batch_size,
        accumulation=training.accumulation,
        seed=training.seed,
        augment=config.augment,
        align=bridge.align,
    )
    if not len(judge):
        notes = unjudged(cells, judge, conditions) if bridge.held_out else ()
        return BridgeCells(cells, source, coupled, judge, None, notes)
    whole = np.arange(len(cells.names))
    everyone = coupled_rows(cells, whole, bridge, config.transport, turned=config.augment, seed=training.seed)
    others, count = held_out_pairs(everyone, judge)
    notes = unjudged(cells, np.intersect1d(judge, np.concatenate(others(0)[:2])), conditions)
    if not count:
        return BridgeCells(cells, source, coupled, judge, None, notes)
    judged = PairSource(
        data,
        others,
        count=count,
        batch_size=min(count, PAIRS_JUDGED),
        seed=training.seed,
        augment=False,
        align=bridge.align,
    )
    return BridgeCells(cells, source, coupled, judge, judged, notes)


def pixel_std(cells: Labelled) -> float:
    """Return the root of the mean over channels of a pixel's variance: what `sigma_rel` is a share of."""
    channels = cells.data.image_shape[0]
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    for start in range(0, len(cells.data), _PAIRS_AT_ONCE):
        images = cells.data.batch(torch.arange(start, min(start + _PAIRS_AT_ONCE, len(cells.data)))).double()
        total = total + images.sum((0, 2, 3)).cpu()
        squares = squares + images.square().sum((0, 2, 3)).cpu()
        count += images[:, 0].numel()
    variance = squares / count - (total / count).square()
    return float(variance.mean().sqrt())


def bridge_moments(cells: BridgeCells, conditions: tuple[str, ...], *, config: BridgeFitConfig) -> Moments:
    """Return the second moments of an epoch's pairs, in every orientation that training shows."""
    source, target, turns = (torch.from_numpy(rows) for rows in cells.coupled(0))
    labels = cells.cells.data.labels.cpu()[target]
    views, counts = [], []
    for number in range(len(conditions)):
        chosen = (labels == number).nonzero()[:, 0]
        some = chosen[torch.linspace(0, len(chosen) - 1, min(len(chosen), _PAIRS_FOR_MOMENTS)).long()]
        views.append(_views(cells, source[some], target[some], turns[some], turned=config.augment))
        counts.append(len(target[chosen].unique()))
    kinds = [side for view in views for side in _centred(view, most=_IMAGES_FOR_MODES // (2 * len(views)))]
    modes = leading_modes(torch.cat(kinds), config.bridge.modes, seed=config.training.seed)
    coupled = config.bridge.coupling == "ot" or config.bridge.align
    return joined([pair_moments(view, modes, cells=n, coupled=coupled) for view, n in zip(views, counts, strict=True)])


def _views(cells: BridgeCells, source: Tensor, target: Tensor, turns: Tensor, *, turned: bool) -> Views:
    def views() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(source), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            pair = cells.train.images(source[part], target[part], None, turns=turns[part])
            for element in range(ELEMENTS if turned else 1):
                elements = torch.full((len(pair[0]),), element)
                yield augment.dihedral(pair[0], elements), augment.dihedral(pair[1], elements)

    return views


def _centred(views: Views, *, most: int) -> Iterator[Tensor]:
    """Yield a few sources and a few targets, less the mean of each, in every orientation."""
    means, taken = mean_images(views), 0
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in views():
        room = max(most // ELEMENTS, 1)
        for side, images, mean in zip(sides, pair, means, strict=True):
            side.append(images[:room] - mean)
        taken += min(room, len(pair[0]))
        if taken >= most:
            break
    yield from (torch.cat(side) for side in sides)
