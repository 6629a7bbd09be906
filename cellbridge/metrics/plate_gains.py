"""On which plates does it work? What a model gains over copying, plate by plate, and against the other plates.

A mean over plates hides a model that works on one of them alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.contrasts import student_difference
from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, corrected_level, student_mean

Floats = NDArray[np.floating]
State = Literal["works", "fails", "unclear"]


@dataclass(frozen=True)
class PlateGain:
    """One plate.

    Parameters
    ----------
    gain : mean over the plate's cells of what the output gains over the copy, at the usual level.
    beside_others : gain less the gain on all other plates, at a level corrected for the number of plates; one-sided, since only less counts.
    possible : what there is to gain; None where that is not known.
    state : "works" where the gain lies above 0; "fails" where it does not, lies below that of the other plates, and there was something
        to gain; else "unclear".
    """

    plate: str
    n: int
    gain: Estimate
    beside_others: Estimate
    possible: Estimate | None
    state: State

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        missing = {"not_computed": "no real target cell on this plate"}
        parts = {"gain": self.gain.to_dict(), "beside_others": self.beside_others.to_dict()}
        possible = missing if self.possible is None else self.possible.to_dict()
        return {"plate": self.plate, "n": self.n, **parts, "possible": possible, "state": self.state}


def plate_gains(
    gains: Floats,
    plates: NDArray[Any],
    blocks: Blocks,
    *,
    possible: Mapping[str, Estimate],
    level: float = LEVEL,
) -> list[PlateGain]:
    """Judge every plate; empty with fewer than two.

    Parameters
    ----------
    gains : (cell,), what the output gains over the copy of its source: a hit, or a part of the error; 0 where it is as good as the copy.
    plates : (cell,).
    possible : plate → what there is to gain, such as the hits of real target cells less those of copies.
    level : at which the comparisons of all plates with the others hold together.
    """
    names = sorted({str(name) for name in plates})
    if len(names) < 2:
        return []
    one_sided = 1 - 2 * (1 - corrected_level(len(names), level=level))
    found = []
    for name in names:
        here, elsewhere = (np.flatnonzero(rows) for rows in (plates == name, plates != name))
        own, rest = blocks.take(here), blocks.take(elsewhere)
        gain = student_mean(gains[here], own)
        beside = student_difference(gains[here], gains[elsewhere], (own, rest), level=one_sided)
        state = _state(gain, beside, possible.get(name))
        found.append(PlateGain(name, len(here), gain, beside, possible.get(name), state))
    return found


def _state(gain: Estimate, beside: Estimate, possible: Estimate | None) -> State:
    if gain.low is None:
        return "unclear"
    if gain.low > 0:
        return "works"
    worse = beside.high is not None and beside.high < 0
    something = possible is not None and possible.low is not None and possible.low > 0
    return "fails" if worse and something else "unclear"
