"""What a suite finds: a value with its interval, beside the goal that it was held against, if it has one."""

import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def row(
    claim: str,
    value: float,
    *,
    interval: Sequence[float] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "",
) -> Row:
    """Return one line of the table; `met` compares the value with its one goal, and is None where there is none."""
    assert at_least is None or at_most is None
    met: bool | None = None
    goal: str | None = None
    if at_least is not None:
        goal, met = f"≥ {at_least:g}", value >= at_least
    if at_most is not None:
        goal, met = f"≤ {at_most:g}", value <= at_most
    ends = None if interval is None else [_finite(end) for end in interval]
    return {"claim": claim, "value": _finite(value), "interval": ends, "unit": unit, "goal": goal, "met": met}


def not_measured(claim: str, why: str) -> Row:
    """Return a line that says why there is no value."""
    return {"claim": claim, "value": None, "interval": None, "unit": "", "goal": None, "met": None, "why": why}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
