"""What cells that were held out say of a bridge in training: what its network adds to the linear guess, how far its translations lie from real
cells, and how much of a cell is open.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.image_matching import Bridged, Draw, ImagePairs, losses_beside_silence, training_draw
from cellbridge.bridge.images import ImageBridge, ImageEndpoint
from cellbridge.bridge.integrate import row_chances, simulate, times
from cellbridge.bridging.coupling import CoupledRows, Labelled, Rows
from cellbridge.config import BridgeFitConfig
from cellbridge.data.pairs import EpochRows, PairSource
from cellbridge.errors import ConfigError
from cellbridge.metrics.plans import energy_and_terms, energy_distance
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


@dataclass(frozen=True)
class Arrival:
    """Where the translations of one condition and direction arrive.

    Parameters
    ----------
    distance, untouched : energy distance of the translated and of the untouched cells from real ones.
    open_part : half the mean squared difference of two translations of a cell, over that of two cells.
    terms : what each held-out cell adds to the distance, (cell,), up to what depends on the real cells alone.
    """

    direction: Direction
    distance: float
    untouched: float
    open_part: float
    terms: Tensor = field(repr=False)


@dataclass(frozen=True)
class Approach:
    """How much nearer translations come, mean over conditions and directions, and its standard error over cells."""

    gain: float
    error: float

    @property
    def is_sure(self) -> bool:
        """Whether it is more than a standard error; what is not a number never is."""
        return self.gain > self.error


def approach(before: Sequence[Arrival], after: Sequence[Arrival]) -> Approach:
    """Compare two bridges by the same held-out cells and the same chance.

    The cells of the control are the same for every condition, so that what they say is added before its variance is taken.
    """
    if not before:
        return Approach(math.nan, math.nan)
    parts: dict[tuple[Direction, int], Tensor] = {}
    for number, (was, now) in enumerate(zip(before, after, strict=True)):
        key = (was.direction, 0 if was.direction == "forward" else number)
        parts[key] = parts.get(key, torch.zeros(())) + was.terms - now.terms
    gain = sum(was.distance - now.distance for was, now in zip(before, after, strict=True)) / len(before)
    variance = sum(len(terms) * float(terms.var()) for terms in parts.values())
    return Approach(gain, math.sqrt(variance) / len(before))


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


def without_gain(said: Mapping[str, float]) -> str | None:
    """Return a warning where the network does not beat saying nothing by a standard error, or None."""
    gain, error = said.get("gain"), said.get("gain_error", math.inf)
    if gain is None or gain > max(error, _NO_GAIN):
        return None
    return (
        f"the network adds nothing to its linear start: on held-out pairs it gains {gain:.3f} ± {error:.3f} over saying nothing. Train longer "
        "(training.steps) or on more cells, or take the bridge for the linear guess that it is."
    )


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
        self._bridge, self._cells, self._judge, self._pairs = bridge, cells, judge, pairs
        self._steps, self._judged, self._seed = (
            config.bridge.simulation_steps,
            config.bridge.judged,
            config.training.seed,
        )
        low, high = bridge.reg
        self._reg = (low * high) ** 0.5

    def look(self) -> dict[str, float]:
        """Return what is found, by name; nothing where there are no such cells, and nothing that is not a number."""
        found = {} if self._pairs is None else self._gains(self._pairs)
        forward = self.arrivals(("forward",))
        if forward:
            columns = zip(*((one.distance, one.untouched, one.open_part) for one in forward), strict=True)
            names = ("held_out_distance", "held_out_distance_untouched", "conditional_variance_ratio")
            found |= {name: float(np.mean(values)) for name, values in zip(names, columns, strict=True)}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _gains(self, pairs: PairSource) -> dict[str, float]:
        """Return the loss on pairs, and what the network gains over saying nothing, 1 - loss / loss of silence: 0 before it is trained."""
        batch = pairs(0)
        judge = torch.from_numpy(self._judge).to(batch.target_rows.device)
        new = [torch.isin(rows, judge) for rows in (batch.source_rows, batch.target_rows)]
        found_at: list[tuple[Tensor, Tensor, Tensor]] = []
        for number in range(min(-(-PAIRS_JUDGED // len(batch.source)), _MOST_DRAWS)):
            chance = generator(batch.source.device, "held out", self._seed, number)
            draw = training_draw(batch.source, reg=self._bridge.reg, generator=chance)
            # Asked for is the end that did not train; where neither did, either.
            draw = replace(draw, forward=torch.where(new[0] & new[1], draw.forward, new[1]))
            found_at.append((draw.forward.cpu(), *self._losses(batch, draw)))
        asked, said, unsaid = (torch.stack(parts) for parts in zip(*found_at, strict=True))
        gain = 1 - said.mean() / unsaid.mean()
        rest = (said - (1 - gain) * unsaid).mean(0)
        error = rest.std() / len(rest) ** 0.5 / unsaid.mean()
        found = {"held_out_loss": said.mean(), "gain": gain, "gain_error": error}
        found |= {
            f"gain_{way}": 1 - said[mask].mean() / unsaid[mask].mean()
            for way, mask in zip(DIRECTIONS, (asked, ~asked), strict=True)
        }
        return {name: float(value) for name, value in found.items()}

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
        start, target = (self._cells.data.batch(torch.from_numpy(rows)) for rows in (sources, real))
        n = len(start)
        draws = 1 if draws == 1 else min(max(draws, -(-self._judged // n)), _MOST_DRAWS)
        moved = self._moved(number, torch.cat([*[start] * draws, start[: n // 2]]), direction)
        first, again = moved[:n], moved[draws * n :]
        spread = (first - first.mean(0)).square().mean() * n / (n - 1)
        there = self._features(target, number)
        judged = [energy_and_terms(self._features(part, number), there) for part in moved[: draws * n].split(n)]
        return Arrival(
            direction,
            distance=float(np.mean([distance for distance, _ in judged])),
            untouched=energy_distance(self._features(start, number), there),
            open_part=float((first[: n // 2] - again).square().mean() / 2 / spread.clamp_min(1e-12)),
            terms=torch.stack([terms for _, terms in judged]).mean(0),
        )

    def _moved(self, number: int, images: Tensor, direction: Direction) -> Tensor:
        model = ImageEndpoint(self._bridge, condition=number, reg=self._reg)
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


def _evenly(rows: Rows, most: int) -> Rows:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
