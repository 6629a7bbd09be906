"""What cells that were held out say of a bridge in training: what its network adds to the linear guess, how far its translations lie from real
cells, and how much of a cell is open.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from cellbridge.bridge.drift import Endpoint
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.image_matching import Bridged, Draw, ImagePairs, losses_beside_silence, training_draw
from cellbridge.bridge.images import ImageBridge, ImageEndpoint
from cellbridge.bridge.integrate import row_chances, simulate, times
from cellbridge.bridge.preconditioning import Chance
from cellbridge.bridging.approach import Arrival, distance_and_terms
from cellbridge.bridging.coupling import FEWEST, CoupledRows, Labelled, Rows
from cellbridge.config import BridgeFitConfig
from cellbridge.data.pairs import EpochRows, PairSource
from cellbridge.errors import ConfigError
from cellbridge.metrics.plans import energy_distance
from cellbridge.runtime import derive_seed, generator
from cellbridge.training.slicing import sliced

PAIRS_JUDGED = 128
"""Pairs that the loss is of, at most; of fewer, each is asked at several times."""
_AT_ONCE = 32
_REAL = 512
"""Most real cells that translations are held against."""
_AXES = 32
"""Whitened modes, or pixels a channel where there are none, that cells are compared by."""
_FEWEST = 4
"""Cells of a side, translated or real, below which nothing is said of it."""
_NO_GAIN = 1e-3
"""What a network gains without having learnt anything, at most."""
_MOST_DRAWS = 8
"""Of a cell or pair, where there are few."""

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")


def require_judges(cells: Labelled, judge: Rows, conditions: tuple[str, ...]) -> None:
    """Raise ConfigError where held-out cells are too few to say whether a round of fitting helps.

    Parameters
    ----------
    judge : rows that do not train.
    """
    for name in (cells.control, *conditions):
        count = int((cells.names[judge] == name).sum())
        if count < _FEWEST:
            raise ConfigError(
                f"bridge.imf_rounds are kept only if held-out cells say so, and {count} cells of {name} are held out where {_FEWEST} are "
                "needed. Raise bridge.held_out, add wells, or leave the rounds out."
            )


def held_out_pairs(coupled: CoupledRows, judge: Rows) -> tuple[EpochRows, int]:
    """Return the pairs of all cells' first epoch of which one cell or both did not train, the same for every epoch, and their number.

    Held-out cells coupled among themselves, a tenth of them all, would lie farther apart than the pairs of the training do.
    """
    source, target, turns = coupled(0)
    chosen = np.isin(source, judge) | np.isin(target, judge)
    rows = source[chosen], target[chosen], turns[chosen]
    return lambda epoch: rows, int(chosen.sum())


def unjudged(cells: Labelled, asked: Rows, conditions: tuple[str, ...]) -> tuple[str, ...]:
    """Return a note where held-out cells ask for the control, or for one of the conditions, not at all.

    Parameters
    ----------
    asked : held-out cells that have a partner.
    """
    known = set(cells.names[asked])
    missing = [name for name in (cells.control, *conditions) if name not in known]
    if not missing:
        return ()
    return (
        f"no held-out pair asks for {' or '.join(missing)}, so that nothing says whether the network learnt what leads there. Of a plate's "
        f"cells of a condition some are held out where there are {FEWEST} or more: add wells, or raise bridge.held_out.",
    )


def without_gain(said: Mapping[str, float]) -> str | None:
    """Return a warning where in some direction the network does not beat saying nothing by a standard error, or None."""
    judged = {
        way: (said[f"gain_{way}"], said.get(f"gain_{way}_error", math.inf))
        for way in DIRECTIONS
        if f"gain_{way}" in said
    }
    nothing = {way: found for way, found in judged.items() if not found[0] > max(found[1], _NO_GAIN)}
    if not nothing:
        return None
    figures = " and ".join(f"{gain:z.3f} ± {error:.3f} {way}" for way, (gain, error) in nothing.items())
    return (
        f"the network adds nothing to its linear start: on held-out pairs it gains {figures} over saying nothing. Train longer "
        "(training.steps) or on more cells, or take the bridge for the linear guess that it is there."
    )


@final
class _LinearStart(Endpoint):
    """A bridge whose network says nothing."""

    def __init__(self, whole: ImageEndpoint):
        self._whole = whole

    def mean(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        guess, _ = self._whole.bridge.linear(x, self._whole.where(s, direction))
        return guess

    def draw(self, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        return self.mean(x, s, direction)


@final
class HeldOut:
    """Looks at a bridge, always with the same cells and the same chance.

    Parameters
    ----------
    judge : rows that do not train.
    pairs : of which one cell or both are of these; None where there are none.
    """

    def __init__(
        self, bridge: ImageBridge, cells: Labelled, judge: Rows, pairs: PairSource | None, *, config: BridgeFitConfig
    ):
        self._bridge = bridge
        self._cells = cells
        self._judge = judge
        self._pairs = pairs
        self._steps = config.bridge.simulation_steps
        self._judged = config.bridge.judged
        self._seed = config.training.seed
        low, high = bridge.reg
        self._reg = (low * high) ** 0.5

    def look(self) -> dict[str, float]:
        """Return what is found, by name; nothing where there are no such cells, and nothing that is not a number."""
        found = {} if self._pairs is None else self._gains(self._pairs)
        forward = self.arrivals(("forward",))
        if forward:
            columns = {
                "held_out_distance": [one.distance for one in forward],
                "held_out_distance_linear": [one.linear for one in forward],
                "held_out_distance_untouched": [one.untouched for one in forward],
                "conditional_variance_ratio": [one.open_part for one in forward],
            }
            found |= {name: float(np.mean(values)) for name, values in columns.items()}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _gains(self, pairs: PairSource) -> dict[str, float]:
        """Return the loss on pairs, and what the network gains over saying nothing, 1 - loss / loss of silence: 0 before it is trained."""
        batch = pairs(0)
        judge = torch.from_numpy(self._judge).to(batch.target_rows.device)
        new = [torch.isin(rows, judge) for rows in (batch.source_rows, batch.target_rows)]
        found_at: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for number in range(min(-(-PAIRS_JUDGED // len(batch.source)), _MOST_DRAWS)):
            chance = generator(batch.source.device, "held out", self._seed, number)
            draw = training_draw(batch.source, reg=self._bridge.reg, generator=chance)
            # Asked for is the end that did not train; where neither did, either.
            draw = replace(draw, forward=torch.where(new[0] & new[1], draw.forward, new[1]))
            cells = torch.where(draw.forward, batch.target_rows, batch.source_rows)
            found_at.append((draw.forward.cpu(), cells.cpu(), *self._losses(batch, draw)))
        forward, cells, said, unsaid = (torch.cat(parts) for parts in zip(*found_at, strict=True))
        gain, error = _gain(said, unsaid, cells)
        found = {"held_out_loss": float(said.mean()), "gain": gain, "gain_error": error}
        for way, mask in zip(DIRECTIONS, (forward, ~forward), strict=True):
            found[f"gain_{way}"], found[f"gain_{way}_error"] = _gain(said[mask], unsaid[mask], cells[mask])
        return found

    def _losses(self, pairs: ImagePairs, draw: Draw) -> tuple[Tensor, Tensor]:
        bridged, found = Bridged(pairs, draw), []
        for start in range(0, len(pairs.source), _AT_ONCE):
            part = sliced(bridged, slice(start, start + _AT_ONCE))
            found.append(torch.stack(losses_beside_silence(self._bridge, part.pairs, part.draw)).double().cpu())
        losses, silence = torch.cat(found, 1)
        return losses, silence

    def arrivals(self, directions: Sequence[Direction] = DIRECTIONS, *, draws: int = 1) -> list[Arrival]:
        """Return where translations arrive, for each direction and condition that has held-out cells.

        Parameters
        ----------
        draws : translations of a cell; of more than one, as many more as make up for held-out cells being fewer than `bridge.judged`.
        """
        found = []
        for direction in directions:
            for number in range(len(self._bridge.linear.means)):
                rows = self._rows(number, direction)
                if rows is not None:
                    found.append(self._arrival(number, *rows, direction, draws=draws))
        return found

    def _rows(self, number: int, direction: Direction) -> tuple[Rows, Rows] | None:
        """Return cells to translate, and real cells of where they go to; None where either are hardly any."""
        labels = self._cells.data.labels.cpu().numpy()
        forward = direction == "forward"
        sources = self._judge[labels[self._judge] == (-1 if forward else number)]
        real = np.flatnonzero(labels == (number if forward else -1))
        if min(len(sources), len(real)) < _FEWEST:
            return None
        return _evenly(sources, self._judged), _evenly(real, _REAL)

    def _arrival(self, number: int, sources: Rows, real: Rows, direction: Direction, *, draws: int) -> Arrival:
        rows = [torch.from_numpy(each) for each in (sources, real)]
        start, target = (self._cells.data.batch(each) for each in rows)
        n = len(start)
        draws = 1 if draws == 1 else min(max(draws, -(-self._judged // n)), _MOST_DRAWS)
        model = ImageEndpoint(self._bridge, condition=number, reg=self._reg)
        moved = self._moved(model, torch.cat([*[start] * draws, start[: n // 2]]), direction)
        first, again = moved[:n], moved[draws * n :]
        spread = (first - first.mean(0)).square().mean() * n / (n - 1)
        there = self._features(target, number)
        judged = [distance_and_terms(self._features(part, number), there) for part in moved[: draws * n].split(n)]
        linear = self._moved(_LinearStart(model), start, direction)
        return Arrival(
            direction,
            distance=float(np.mean([distance for distance, _ in judged])),
            untouched=energy_distance(self._features(start, number), there),
            linear=energy_distance(self._features(linear, number), there),
            open_part=float((first[: n // 2] - again).square().mean() / 2 / spread.clamp_min(1e-12)),
            rows=torch.cat(rows),
            terms=torch.stack([terms for _, terms in judged]).mean(0),
        )

    def _moved(self, model: Endpoint, images: Tensor, direction: Direction) -> Tensor:
        seeds = torch.tensor([derive_seed("held out cell", self._seed, i) for i in range(len(images))])
        parts = []
        for start in range(0, len(images), 64):
            part = slice(start, start + 64)
            chances = row_chances(seeds[part].to(images.device), tuple(images.shape[1:]))
            parts.append(
                simulate(
                    model,
                    images[part],
                    reg=self._reg,
                    chances=chances,
                    direction=direction,
                    grid=times(self._steps),
                    step="mean",
                )
            )
        return torch.cat(parts).float().clamp(-1, 1)

    def _features(self, images: Tensor, number: int) -> Tensor:
        """Return the leading modes in standard deviations of the control's, or coarse pixels where there are no modes."""
        linear = self._bridge.linear
        modes = linear.modes[:_AXES].flatten(1)
        if not len(modes):
            return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1).cpu()
        deviations = linear.covariances[number, 0].diagonal()[: len(modes)].sqrt()
        return ((images.flatten(1) @ modes.T) / deviations.clamp_min(1e-12)).cpu()


def _gain(said: Tensor, unsaid: Tensor, cells: Tensor) -> tuple[float, float]:
    """Return 1 - loss / loss of silence, and its standard error: over the cells that are asked for, each of them in many pairs or few.

    Parameters
    ----------
    said, unsaid : losses, (pair,).
    cells : that are asked for, (pair,).
    """
    gain = float(1 - said.mean() / unsaid.mean())
    distinct, number = cells.unique(return_inverse=True)
    n = len(distinct)
    if n < 2:
        return gain, math.nan
    added = said.new_zeros(n).index_add(0, number, said - (1 - gain) * unsaid)
    return gain, float(added.norm() / unsaid.sum()) * (n / (n - 1)) ** 0.5


def _evenly(rows: Rows, most: int) -> Rows:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
