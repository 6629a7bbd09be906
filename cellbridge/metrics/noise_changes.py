"""How the effects that the battery measures differ between two noises: of the same cells in other steps, or of other cells."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.gaussianity import drawn_effects, properties
from cellbridge.metrics.intervals import Blocks, Estimate, percentile_interval
from cellbridge.metrics.noise_properties import Property


@dataclass(frozen=True)
class Noise:
    """Noise, and what is known of the images that it was inverted from.

    Parameters
    ----------
    x_T : (n, channel, height, width). x_0 : of the same shape.
    foreground : (n, height, width), true inside cells.
    blocks : the images that the bootstrap draws together.
    """

    x_T: NDArray[np.floating]
    x_0: NDArray[np.floating] | None = None
    foreground: NDArray[np.bool_] | None = None
    blocks: Blocks | None = None

    def __len__(self) -> int:
        return len(self.x_T)

    @property
    def known(self) -> dict[str, Any]:
        """What is known, by the names under which the battery takes it."""
        return {"x_0": self.x_0, "foreground": self.foreground}


@dataclass(frozen=True)
class Change:
    """How one effect differs: after - before."""

    name: str
    before: float
    after: float
    difference: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "difference": self.difference.to_dict()}


def changes(before: Noise, after: Noise, *, paired: bool, resamples: int = 500, seed: int = 0) -> list[Change]:
    """Return after - before of every effect that both noises have.

    With x_T by N steps before and by 2N after, of the same cells, the difference is what the solver's grid puts into x_T; with training
    cells before and held-out cells after, what the model learnt of its training cells alone.

    Parameters
    ----------
    paired : the noises are of the same cells, so that the bootstrap draws the same blocks of both.

    Raises
    ------
    ValueError : paired noises are not of one shape; fewer than two images, or values that are not finite.
    """
    if paired and before.x_T.shape != after.x_T.shape:
        raise ValueError(f"x_T of shape {before.x_T.shape} and of {after.x_T.shape}: expected noises of the same cells")
    first, second = ({part.name: part for part in properties(noise.x_T, **noise.known)} for noise in (before, after))
    seeds = (seed, seed if paired else seed + 1)
    found = []
    for name in (name for name in first if name in second):
        # In both noises the band, or the pair of channels, that deviates most before.
        other = replace(second[name], statistic=first[name].statistic)
        draws = [
            drawn_effects(part, noise.blocks, resamples=resamples, seed=own)
            for part, noise, own in zip((first[name], other), (before, after), seeds, strict=True)
        ]
        was, now = _effect(first[name]), _effect(other)
        low, high = (None, None) if draws[0] is None or draws[1] is None else percentile_interval(draws[1] - draws[0])
        unit = "none" if before.blocks is None else before.blocks.unit
        difference = Estimate(now - was, low, high, min(len(before), len(after)), unit)
        found.append(Change(name, was, now, difference))
    return found


def _effect(part: Property) -> float:
    """Return the effect, by the statistic that the bootstrap draws."""
    if part.statistic is None or part.per_image is None:
        return part.effect
    return float(part.statistic(part.per_image.mean(axis=0, keepdims=True))[0])
