"""Doses between those that have an adapter: which adapters to blend, and by how much."""

import math
from collections.abc import Sequence

from cellbridge.errors import ConditionError


def dose_shares(dose_um: float | None, known_um: Sequence[float]) -> dict[float, float]:
    """Return the share of each of the two nearest doses, by linear interpolation of the logarithm.

    w = (log d_high - log d) / (log d_high - log d_low) of the lower dose and 1 - w of the higher one; a known dose is all its own.

    Parameters
    ----------
    dose_um, known_um : in micromolar; an adapter of dose 0 has no logarithm, and is not blended.

    Raises
    ------
    ConditionError : there is no dose, or it does not lie between two known ones.
    """
    if dose_um is None:
        raise ConditionError("a blend by doses needs a dose to blend for. Write the condition as compound@dose.")
    if dose_um in known_um:
        return {dose_um: 1.0}
    lower = [known for known in known_um if 0 < known < dose_um]
    higher = [known for known in known_um if known > dose_um]
    if not lower or not higher:
        doses = ", ".join(f"{known:g}" for known in sorted(known_um)) or "none"
        raise ConditionError(
            f"{dose_um:g} µM does not lie between two doses that have an adapter ({doses}). Give adapters of a lower and of a higher dose."
        )
    low, high = max(lower), min(higher)
    share = math.log(high / dose_um) / math.log(high / low)
    return {low: share, high: 1 - share}
