"""Pairs of an epoch, solved plate by plate and condition by condition, as index arrays that depend on (seed, epoch) alone.

A plate's staining and illumination are larger than most compounds' effects: couplings across plates pair plates, not cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from cellbridge import runtime
from cellbridge.errors import CouplingError
from cellbridge.transport.cost import Cost, transport_cost
from cellbridge.transport.coupling import Coupling
from cellbridge.transport.pairing import draw_independent, draw_targets

Indices = NDArray[np.int64]


class Features(Protocol):
    """Rows of numbers, held or made when they are asked for."""

    def __getitem__(self, rows: Indices, /) -> Tensor: ...


FEWEST = 2
"""Cells on a side below which a stratum is refused."""

FEW = 32
"""Cells on a side below which a stratum is noted: its couplings repeat the same few cells."""


@dataclass(frozen=True)
class Cells:
    """One side of the pairs.

    Parameters
    ----------
    features : (cell, …) that the cost is computed on: images, projections or whitened embeddings.
    plates, conditions : of each cell.
    turned : of targets, the features of the same cells in other orientations that count as the same: the cost is that of the nearest.
    """

    features: Tensor
    plates: Sequence[str]
    conditions: Sequence[str]
    turned: Sequence[Features] = ()


@dataclass(frozen=True)
class Stratum:
    """The cells that may be paired with one another.

    Parameters
    ----------
    plate, condition : of the targets.
    sources, targets : rows of either side.
    """

    plate: str
    condition: str
    sources: Indices
    targets: Indices


@dataclass(frozen=True)
class SolvedBlock:
    """What one solved block of a stratum was like: for logs and events.

    Parameters
    ----------
    sources, targets : how many cells were coupled.
    """

    plate: str
    condition: str
    sources: int
    targets: int
    relative_entropy: float
    retained_mass: float
    marginal_error: float
    cost: float
    method: str


@dataclass(frozen=True)
class Pairs:
    """The pairs of an epoch: in each stratum every source once.

    Parameters
    ----------
    source, target : (pair,), int64 rows of either side, stratum after stratum.
    turn : (pair,), the target's orientation: 0 as it is, else 1 + its number among `Cells.turned`.
    blocks : one entry per coupling that was solved; none for independent pairs.
    """

    source: Indices
    target: Indices
    turn: Indices
    blocks: tuple[SolvedBlock, ...]


def strata(source: Cells, target: Cells, *, across_plates: bool = False) -> tuple[tuple[Stratum, ...], tuple[str, ...]]:
    """Return one stratum for each (plate, condition) of the targets, and notes on what to know of them.

    Parameters
    ----------
    across_plates : targets on a plate without sources are paired with the sources of all plates; elsewhere pairs stay within plates.

    Raises
    ------
    CouplingError : targets on a plate without sources unless `across_plates`, or hardly any cells on a side.
    """
    for name, side in (("source", source), ("target", target)):
        if not len(side.features) == len(side.plates) == len(side.conditions):
            raise CouplingError(
                f"{name}: {len(side.features)} rows of features, {len(side.plates)} plates and {len(side.conditions)} conditions, "
                "expected one of each per cell."
            )
    plates = {"source": np.asarray(source.plates), "target": np.asarray(target.plates)}
    conditions = np.asarray(target.conditions)
    if len(plates["source"]) == 0 or len(conditions) == 0:
        raise CouplingError(
            f"{len(plates['source'])} source cells and {len(conditions)} target cells: both sides need some."
        )
    found: list[Stratum] = []
    notes: list[str] = []
    lonely: list[str] = []
    for plate, condition in sorted({(str(p), str(c)) for p, c in zip(plates["target"], conditions, strict=True)}):
        sources = np.flatnonzero(plates["source"] == plate)
        targets = np.flatnonzero((plates["target"] == plate) & (conditions == condition))
        if len(sources) == 0:
            lonely.append(f"{plate} ({len(targets)} of {condition})")
            sources = np.arange(len(plates["source"]))
        found.append(Stratum(plate, condition, sources, targets))
        notes += _judge(found[-1])
    if lonely and not across_plates:
        raise CouplingError(
            f"no source cell on the plate of these targets: {', '.join(lonely)}. Pairs across plates would learn the difference of "
            "plates. Leave these targets out, or allow it with across_plates: true."
        )
    notes += [f"plate {text}: paired with sources of other plates (across_plates: true)" for text in lonely]
    unused = sorted(set(plates["source"].tolist()) - set(plates["target"].tolist()))
    if unused and not lonely:
        notes.append(f"sources of plates without targets are not used: {', '.join(map(str, unused))}")
    return tuple(found), tuple(notes)


def _judge(stratum: Stratum) -> list[str]:
    """Refuse a stratum with hardly any cells, and note one with few."""
    where = f"{stratum.condition} on plate {stratum.plate}"
    counts = f"{len(stratum.sources)} source and {len(stratum.targets)} target cells"
    fewest = min(len(stratum.sources), len(stratum.targets))
    if fewest < FEWEST:
        raise CouplingError(
            f"{where}: {counts}, expected {FEWEST} or more on each side. Leave the plate or the condition out."
        )
    return [f"{where}: {counts}; few enough for pairs to repeat themselves"] if fewest < FEW else []


def pair_epoch(
    source: Cells,
    target: Cells,
    parts: Sequence[Stratum],
    *,
    solve: Callable[[Cost], Coupling] | None,
    seed: int,
    epoch: int,
    block: int = 1024,
    dtype: torch.dtype = torch.float32,
) -> Pairs:
    """Pair every source of each stratum with one target; equal for equal (seed, epoch), whatever other strata there are.

    The sources of a stratum are cut at random into blocks of nearly equal size, each of which is coupled with as many targets, drawn
    anew for each epoch without repetition (or with all of the stratum's targets where there are fewer).

    Parameters
    ----------
    solve : costs of a block → its coupling, such as `partial(couple, reg=…)`; None draws independent pairs.
    block : most cells on a side of one coupling, 512 to 2048.
    dtype : of the costs.
    """
    if block < FEWEST:
        raise CouplingError(f"block = {block}, expected {FEWEST} or more cells; 512 to 2048 are usual.")
    pairs, blocks = [(np.empty(0, np.int64),) * 3], []
    for part in parts:
        generator = runtime.generator("cpu", "pairs", seed, epoch, part.plate, part.condition)
        for rows, columns in _blocks(part, block, generator):
            if solve is None:
                chosen = draw_independent(len(rows), len(columns), generator=generator).cpu().numpy()
                turns = np.zeros(len(rows), np.int64)
            else:
                cost, nearest = _least_cost(source, rows, target, columns, dtype)
                coupling = solve(cost)
                chosen = draw_targets(coupling, generator=generator).cpu().numpy()
                turns = nearest[torch.arange(len(rows)), torch.from_numpy(chosen)].cpu().numpy().astype(np.int64)
                blocks.append(_described(part, cost, coupling))
            pairs.append((rows, columns[chosen], turns))
    sources, targets, turns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return Pairs(sources, targets, turns, tuple(blocks))


def _least_cost(
    source: Cells, rows: Indices, target: Cells, columns: Indices, dtype: torch.dtype
) -> tuple[Cost, Tensor]:
    """Return the costs of a block, each that of the target's nearest orientation, and which that is."""
    cost = transport_cost(source.features[rows], target.features[columns], dtype=dtype)
    nearest = torch.zeros(cost.shape, dtype=torch.uint8, device=cost.device)
    for number, features in enumerate(target.turned, start=1):
        other = transport_cost(source.features[rows], features[columns], dtype=dtype)
        nearest.masked_fill_(other < cost, number)
        cost = torch.minimum(cost, other)
    return cost, nearest


def _blocks(part: Stratum, size: int, generator: Generator) -> list[tuple[Indices, Indices]]:
    """Cut shuffled sources into blocks of nearly equal size, and give each as many targets, repeated only once all were used."""
    count = -(-len(part.sources) // size)
    shuffled = part.sources[torch.randperm(len(part.sources), generator=generator).numpy()]
    blocks: list[tuple[Indices, Indices]] = []
    waiting = np.empty(0, np.int64)
    for rows in np.array_split(shuffled, count):
        wanted = min(len(rows), len(part.targets))
        if len(waiting) < wanted:
            # A fresh order of those that are not waiting comes after these, so that no block holds a target twice.
            rest = np.setdiff1d(part.targets, waiting)
            waiting = np.concatenate([waiting, rest[torch.randperm(len(rest), generator=generator).numpy()]])
        blocks.append((rows, waiting[:wanted]))
        waiting = waiting[wanted:]
    return blocks


def _described(part: Stratum, cost: Cost, coupling: Coupling) -> SolvedBlock:
    n, m = cost.shape
    return SolvedBlock(
        part.plate,
        part.condition,
        n,
        m,
        coupling.relative_entropy,
        coupling.retained_mass,
        coupling.marginal_error,
        coupling.cost,
        coupling.method,
    )


@final
class EpochPairs:
    """The pairs of the epoch that was asked for last, kept until another is asked for.

    Parameters
    ----------
    solve, seed, block, dtype : as in `pair_epoch`.
    across_plates : as in `strata`.
    """

    def __init__(
        self,
        source: Cells,
        target: Cells,
        *,
        solve: Callable[[Cost], Coupling] | None,
        seed: int,
        block: int = 1024,
        across_plates: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        self.strata, self.notes = strata(source, target, across_plates=across_plates)
        self._source, self._target = source, target
        self._solve, self._seed, self._block, self._dtype = solve, seed, block, dtype
        self._kept: tuple[int, Pairs] | None = None

    def __call__(self, epoch: int) -> Pairs:
        """Return the pairs of an epoch, a function of (seed, epoch)."""
        if self._kept is None or self._kept[0] != epoch:
            pairs = pair_epoch(
                self._source,
                self._target,
                self.strata,
                solve=self._solve,
                seed=self._seed,
                epoch=epoch,
                block=self._block,
                dtype=self._dtype,
            )
            self._kept = (epoch, pairs)
        return self._kept[1]
