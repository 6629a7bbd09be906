"""Charges: findings that each look for a failure in places of their own, training cells, other outputs, plates or stains.

Their intervals stand at levels corrected for the number of places and of charges, so that a model without fault is seldom charged.
"""

from collections.abc import Mapping
from typing import Any

from cellbridge.metrics.findings import Case, Finding, listed, number, percent

UNCHANGED = "does not change as real cells do"
_ALIKE = "the same in all cells"
_NOISY = "noisier than nearly all real cells"
"""What `channels` says of a stain that is there, but is left as it was; of one that is one picture for all cells; and of one that is mostly noise."""


def memoriser(case: Case) -> Finding | None:
    """Say where outputs are copies of training cells more often than real cells seem to be."""
    found = case.evidence.get("memorisation")
    if found is None or found["excess"]["low"] is None:
        return None
    text = (
        f"{percent(found['copied'])} of the outputs lie as near to one training cell as no real cell does; of real cells that nobody "
        f"trained on {percent(found['held_out'])}"
    )
    evidence = {key: found[key] for key in ("copied", "held_out", "excess")}
    if found["excess"]["low"] > 0:
        return Finding("memoriser", "returns training cells", "against", f"{text}: they are copies.", evidence)
    return Finding("memoriser", "invents its cells", "for", f"{text}.", evidence)


def duplicates(case: Case) -> Finding | None:
    """Say where outputs repeat one another, also flipped or turned, more often than their sources do."""
    found = case.evidence.get("repeats")
    if found is None or found["share"]["low"] <= found["sources"]["high"]:
        return None
    text = (
        f"{percent(found['share'])} of the outputs repeat another one; {found['distinct']} are distinct. Of their sources "
        f"{percent(found['sources'])} repeat another. n counts copies."
    )
    return Finding("duplicates", "repeats its outputs", "against", text, {"share": found["share"]})


def plates(case: Case) -> Finding | None:
    """Say where a model does nothing on some plates."""
    by_measure = case.evidence.get("plates") or {}
    failing: dict[str, list[str]] = {}
    works: dict[str, None] = {}
    for measure, found in by_measure.items():
        for part in found:
            if part["state"] == "fails":
                failing.setdefault(part["plate"], []).append(f"{_GAINS[measure]} {number(part['gain'], digits=2)}")
            elif part["state"] == "works":
                works[part["plate"]] = None
    if not failing:
        return None
    working = [plate for plate in works if plate not in failing]
    failed = "; ".join(f"on {plate} {', '.join(words)}" for plate, words in failing.items())
    name = f"works on {listed('plate', working)} only" if working else f"fails on {listed('plate', list(failing))}"
    text = f"What is gained over copying lies not above 0 on some plates, and below that of the others: {failed}."
    evidence = {f"{part['plate']}, {measure}": part["gain"] for measure, found in by_measure.items() for part in found}
    return Finding("plates", name, "against", text, evidence)


_GAINS = {"hits": "share of target hits", "error": "squared error"}


def channels(case: Case) -> list[Finding]:
    """Name each stain that is missing, noisy, another one or the same in all cells, and each that does not change as real cells do."""
    missing: list[Mapping[str, Any]] = []
    replaced: list[Mapping[str, Any]] = []
    noisy: list[Mapping[str, Any]] = []
    unchanged: list[Mapping[str, Any]] = []
    for part in case.evidence.get("channels") or []:
        words = part["findings"]
        gone = any(word.startswith("dropped") or word == _ALIKE for word in words)
        lot = unchanged if words == [UNCHANGED] else noisy if _NOISY in words else replaced if words else []
        (missing if gone else lot).append(part)
    found = []
    for key, measure, parts in (
        ("channels", "empty", missing),
        ("stains_noisy", "noisy", noisy),
        ("stains_replaced", "seen", replaced),
    ):
        if parts:
            stains = ", ".join(part["channel"] for part in parts)
            each = " and ".join(dict.fromkeys(_of_stain(part) for part in parts))
            name = f"adds noise to {stains}" if parts is noisy else each
            text = "Stain by stain: " + "; ".join(f"{part['channel']} {', '.join(part['findings'])}" for part in parts)
            numbers = {part["channel"]: part[measure] for part in parts}
            found.append(Finding(key, name, "against", f"{text}.", numbers))
    if unchanged:
        stains = ", ".join(part["channel"] for part in unchanged)
        slopes = ", ".join(f"{part['channel']} {number(part['effect']['slope'], digits=2)}" for part in unchanged)
        text = f"Real cells change in {stains}; the outputs' effect there has the slope {slopes}, where 1 is right and 0 a copy."
        numbers = {part["channel"]: part["effect"]["slope"] for part in unchanged}
        found.append(Finding("stains_copied", f"does not change {stains} as real cells do", "against", text, numbers))
    return found


def _of_stain(part: Mapping[str, Any]) -> str:
    words = part["findings"]
    if any(word.startswith("dropped") for word in words):
        return f"drops the {part['channel']} channel"
    if _ALIKE in words:
        return f"shows one {part['channel']} for all cells"
    return f"shows another stain as {part['channel']}"
