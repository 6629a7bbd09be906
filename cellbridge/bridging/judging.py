"""What cells that were held out say of a bridge in training: its loss, how far its translations lie from real cells, and how much of a cell is open."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.image_matching import bridged_batches, matching_losses
from cellbridge.bridge.images import ImageBridge, ImageEndpoint
from cellbridge.bridge.integrate import row_chances, simulate, times
from cellbridge.bridging.coupling import Labelled, Rows
from cellbridge.config import BridgeFitConfig
from cellbridge.data.pairs import PairSource
from cellbridge.metrics.plans import energy_distance
from cellbridge.runtime import derive_seed
from cellbridge.training.slicing import sliced

PAIRS_JUDGED = 128
"""Pairs that the loss is of, at most."""
_AT_ONCE = 32
_REAL = 512
"""Most real cells that translations are held against."""
_AXES = 32
"""Whitened modes, or pixels a channel where there are none, that cells are compared by."""


@dataclass(frozen=True)
class _Side:
    """Cells to translate, and real cells of where they go to."""

    images: Tensor
    real: Tensor


@final
class HeldOut:
    """Looks at a bridge, always with the same cells and the same chance.

    Parameters
    ----------
    judge : rows that do not train.
    pairs : of these; None where there are none.
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
        """Return what is found, by name; nothing where there are no such cells."""
        found = {} if self._pairs is None else {"held_out_loss": self._loss(self._pairs)}
        forward = self.distances("forward")
        if forward:
            names = ("held_out_distance", "held_out_distance_untouched", "conditional_variance_ratio")
            found |= {
                name: float(np.mean(values)) for name, values in zip(names, zip(*forward, strict=True), strict=True)
            }
        return found

    def _loss(self, pairs: PairSource) -> float:
        seed = derive_seed("held out", self._seed)
        bridged = bridged_batches(pairs, reg=self._bridge.reg, seed=seed)(0, 0)
        losses = []
        for start in range(0, len(bridged.pairs.source), _AT_ONCE):
            part = sliced(bridged, slice(start, start + _AT_ONCE))
            losses.append(matching_losses(self._bridge, part.pairs, part.draw))
        return float(torch.cat(losses).mean())

    def distances(self, direction: Direction) -> list[tuple[float, float, float]]:
        """Return for each condition: energy distance of translated cells from real ones, of untouched cells, and the conditional variance.

        The latter is half the mean squared difference of two translations of a cell, over that of two cells.
        """
        found = []
        for number in range(len(self._bridge.linear.means)):
            side = self._side(number, direction)
            if side is not None:
                found.append(self._distance(number, side, direction))
        return found

    def _side(self, number: int, direction: Direction) -> _Side | None:
        labels = self._cells.data.labels.cpu().numpy()
        forward = direction == "forward"
        sources = self._judge[labels[self._judge] == (-1 if forward else number)]
        real = np.flatnonzero(labels == (number if forward else -1))
        if len(sources) < 4 or len(real) < 4:
            return None
        chosen = (_evenly(sources, self._judged), _evenly(np.setdiff1d(real, sources), _REAL))
        return _Side(*(self._cells.data.batch(torch.from_numpy(rows)) for rows in chosen))

    def _distance(self, number: int, side: _Side, direction: Direction) -> tuple[float, float, float]:
        twice = side.images[: len(side.images) // 2]
        moved = self._moved(number, torch.cat([side.images, twice]), direction)
        first, again = moved[: len(side.images)], moved[len(side.images) :]
        open_part = (first[: len(twice)] - again).square().mean() / 2
        spread = (first - first.mean(0)).square().mean() * len(first) / (len(first) - 1)
        features = [self._features(images, number) for images in (first, side.images, side.real)]
        return (
            energy_distance(features[0], features[2]),
            energy_distance(features[1], features[2]),
            float(open_part / spread.clamp_min(1e-12)),
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
