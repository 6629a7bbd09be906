"""Values of metrics.json as text and as bars on an axis.

A value is an estimate {"value", "low", "high", "n", "resampled"}, a number {"value"}, a text {"text"}, or what could not be computed
{"not_computed": why}.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Value = Mapping[str, Any]

_ABSENT = "does not apply"
_LARGE = 1e6
"""From here on a number is given in powers of ten; a model that breaks a stain may lie that far away."""


def shown(found: Value | None, *, digits: int, factor: float = 1.0, unit: str = "") -> dict[str, str]:
    """Return a value's text, its interval, what stands behind it (n and what was resampled), and why it is missing.

    Parameters
    ----------
    found : None where it does not apply.
    factor : what the value is multiplied by.
    """
    if found is None:
        return {"value": "–", "interval": "", "behind": "", "why": _ABSENT}
    if "text" in found:
        return {"value": str(found["text"]), "interval": "", "behind": "", "why": "", "words": "yes"}
    if found.get("value") is None:
        return {"value": "–", "interval": "", "behind": "", "why": str(found.get("not_computed", _ABSENT))}
    value, low, high = (_number(found.get(key), digits, factor) for key in ("value", "low", "high"))
    interval = f"{low} to {high}" if low and high else ""
    return {"value": f"{value} {unit}".rstrip(), "interval": interval, "behind": _behind(found), "why": ""}


def brief(found: Any) -> str:
    """Return a value of unknown scale in three significant digits, with its interval, for the small print."""
    if isinstance(found, Mapping):
        if found.get("value") is None:
            return str(found.get("text", found.get("not_computed", _ABSENT)))
        value, low, high = (found.get(key) for key in ("value", "low", "high"))
        interval = f" [{brief(low)}, {brief(high)}]" if low is not None and high is not None else ""
        return f"{brief(value)}{interval}"
    if isinstance(found, list | tuple):
        return ", ".join(map(brief, found))
    if isinstance(found, bool) or not isinstance(found, int | float):
        return "–" if found is None else str(found)
    return (str(found) if isinstance(found, int) else f"{found:.3g}").replace("-", "−")


def reasons(cells: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return why values of a table are missing, each reason once with the columns that it holds for; "does not apply" goes without."""
    of: dict[str, list[str]] = {}
    for column, cell in cells:
        why = cell.get("why", "")
        if why and why != _ABSENT and column not in of.setdefault(why, []):
            of[why].append(column)
    return [f"– in {', '.join(columns)}: {why}" for why, columns in of.items()]


def scale(rows: Iterable[Mapping[str, Any]], key: str, *, to_one: bool = False) -> tuple[float, float] | None:
    """Return the ends of a column's axis, 0 and the largest value among them; None where no row has a value.

    Parameters
    ----------
    to_one : whether 1 lies on the axis, too.
    """
    found = [row[key] for row in rows if row.get(key, {}).get("value") is not None]
    if not found:
        return None
    values = [part for one in found for part in (one["value"], one.get("low"), one.get("high")) if part is not None]
    low, high = max(min(0.0, *values), -1.0), max(values)
    if to_one:
        high = min(max(1.0, high), 2.5)
    return low, high if high > low else low + 1.0


def bar(
    found: Value | None, axis: tuple[float, float] | None, *, factor: float = 1.0, unit: str = ""
) -> dict[str, Any]:
    """Return a value's text, and its point and interval as percent of the axis."""
    if found is None or found.get("value") is None or axis is None:
        return {"text": "–", "why": str((found or {}).get("not_computed", _ABSENT)), "drawn": False}

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - axis[0]) / (axis[1] - axis[0]))), 2)

    digits = 0 if unit == "%" else 3 if axis[1] < 1 else 2
    low, high = (found["value"] if found.get(end) is None else found[end] for end in ("low", "high"))
    text = shown(found, digits=digits, factor=factor, unit=unit)
    return {
        "text": text["value"],
        "interval": text["interval"],
        "behind": text["behind"],
        "why": "",
        "drawn": True,
        "point": place(found["value"]),
        "low": place(low),
        "width": max(0.4, place(high) - place(low)),
        "zero": place(0.0) if axis[0] < 0 else None,
    }


def p_value(p: float) -> str:
    """Return a p-value in three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float | None, digits: int, factor: float) -> str:
    if value is None:
        return ""
    scaled = factor * value
    return (f"{scaled:.2e}" if abs(scaled) >= _LARGE else f"{scaled:.{digits}f}").replace("-", "−")


def _behind(found: Value) -> str:
    parts = [f"n = {found['n']}"] if found.get("n") is not None else []
    return "; ".join(parts + ([str(found["resampled"])] if found.get("resampled") else []))
