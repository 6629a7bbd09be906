"""Does it work on every plate? Evidence per cell, plate by plate, so that one good plate cannot carry the others."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.contrasts import student_difference
from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, corrected_level, student_mean

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class PerPlate:
    """Evidence by plate, at a level that holds for all plates together.

    Parameters
    ----------
    estimates : plate → mean of its cells' evidence. The interval is over its wells, or the blocks that it has; none with one block.
    works, fails : plates whose interval lies above 0; plates whose interval does not, while another plate's lies above it.
    spread : mean evidence of the best plate less that of the worst, at the level corrected for all pairs of plates; None with one plate.
    """

    estimates: dict[str, Estimate]
    works: tuple[str, ...]
    fails: tuple[str, ...]
    spread: Estimate | None

    @property
    def on_all(self) -> bool | None:
        """Whether evidence lies above 0 on every plate; None where some plate has no interval."""
        if any(found.low is None for found in self.estimates.values()):
            return None
        return len(self.works) == len(self.estimates)

    def to_dict(self) -> dict[str, Any]:
        spread = {"not_computed": "one plate"} if self.spread is None else self.spread.to_dict()
        named = {"works": list(self.works), "fails": list(self.fails), "on_all": self.on_all, "spread": spread}
        return {"plates": {name: found.to_dict() for name, found in self.estimates.items()}} | named


def per_plate(evidence: Floats, plates: NDArray[Any], blocks: Blocks, *, level: float = LEVEL) -> PerPlate:
    """Say on which plates evidence lies above 0.

    A plate fails where its own interval reaches 0 and, beyond that, another plate's evidence lies above its own: a plate with few cells, whose
    interval is merely wide, is not accused. Intervals are Student's over blocks, Bonferroni-corrected for plates, and for pairs of plates.

    Parameters
    ----------
    evidence : (cell,), such as a model's target hit less that of copying the same cell, or less that of another condition.
    plates : (cell,).
    """
    of = np.asarray(plates)
    rows = {str(name): np.flatnonzero(of == name) for name in np.unique(of)}
    each = corrected_level(len(rows), level=level)
    estimates = {name: student_mean(evidence[own], blocks.take(own), level=each) for name, own in rows.items()}
    works = tuple(name for name, found in estimates.items() if found.low is not None and found.low > 0)
    pairs = corrected_level(len(rows) * (len(rows) - 1) // 2, level=level)

    def lead(first: str, second: str) -> Estimate:
        sides = (blocks.take(rows[first]), blocks.take(rows[second]))
        return student_difference(evidence[rows[first]], evidence[rows[second]], sides, level=pairs)

    if len(rows) < 2:
        return PerPlate(estimates, works, (), None)
    fails = tuple(name for name in rows if name not in works and any(_above(lead(other, name)) for other in works))
    order = sorted(rows, key=lambda name: estimates[name].value)
    return PerPlate(estimates, works, fails, lead(order[-1], order[0]))


def _above(found: Estimate) -> bool:
    return found.low is not None and found.low > 0
