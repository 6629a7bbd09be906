"""How much nearer to real cells one bridge brings translations than another, by the same cells and the same chance, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cellbridge.bridge.gaussian import Direction
from cellbridge.metrics.plans import energy_and_terms


@dataclass(frozen=True)
class Arrival:
    """Where the translations of one condition and direction arrive.

    Parameters
    ----------
    distance, untouched, linear : energy distance from real cells of the translated cells, of the untouched ones, and of the same translated
        by the linear start alone.
    open_part : half the mean squared difference of two translations of a cell, over that of two cells.
    rows : of the cells, those that are translated before the real ones, (cell,), int64.
    terms : what each of them adds to the distance, (cell,), as `distance_and_terms` gives them.
    """

    direction: Direction
    distance: float
    untouched: float
    linear: float
    open_part: float
    rows: Tensor = field(repr=False)
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


def distance_and_terms(moved: Tensor, real: Tensor) -> tuple[float, Tensor]:
    """Return the energy distance of moved rows (n, d) from real ones (m, d), and what each row of either adds to it, (n + m,), float64.

    The terms are those of first order, up to what depends on the real rows alone, less the mean of their sample: the sum of the squares of
    their differences between two models on the same rows is the variance of the difference of the distances.

    Raises
    ------
    ValueError : a sample of fewer than two.
    """
    distance, of_moved = energy_and_terms(moved, real)
    _, of_real = energy_and_terms(real, moved)
    return distance, torch.cat([_off_mean(of_moved), _off_mean(of_real)])


def _off_mean(terms: Tensor) -> Tensor:
    n = len(terms)
    return (terms - terms.mean()) * (n / (n - 1)) ** 0.5


def approach(before: Sequence[Arrival], after: Sequence[Arrival]) -> Approach:
    """Compare two bridges by the same held-out cells and the same chance.

    A cell is translated to every condition and is a real one, too, so that all that it says is added before it is squared.
    """
    if not before:
        return Approach(math.nan, math.nan)
    pairs = list(zip(before, after, strict=True))
    gain = sum(was.distance - now.distance for was, now in pairs) / len(pairs)
    cells, number = torch.cat([was.rows for was in before]).unique(return_inverse=True)
    terms = torch.cat([was.terms - now.terms for was, now in pairs])
    added = terms.new_zeros(len(cells)).index_add(0, number, terms)
    return Approach(gain, float(added.norm()) / len(pairs))
