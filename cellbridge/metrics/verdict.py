"""Findings into one label: what a reader may believe of a translation.

Of several findings against a model, the label is the one that explains the others: a model that drops a stain does not look like the
target either, and one that is deaf to its condition does not look like most of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cellbridge.metrics import cell_findings, charges, findings
from cellbridge.metrics.findings import Case, Finding, Row, number, percent

SMALL_N = 30
"""Below this many cells in a row no verdict is given."""
_ORDER = (
    "channels",
    "copier",
    "plates",
    "memoriser",
    "intensity_shift",
    "stains_noisy",
    "stains_replaced",
    "condition_ignored",
    "smoothing",
    "stains_copied",
    "other_phenotype",
    "not_this_cell",
    "not_closer",
    "duplicates",
)
"""Findings against a model, the one first that explains those after it."""
_EXPLAINED_AWAY = ("smoothing", "intensity_shift")
"""Where each cell is nearer to its truth than copies and shifts, it is no matter that the phenotype is one of intensity."""


@dataclass(frozen=True)
class Verdict:
    """A label for the table, the findings behind it, and whether the translation held up.

    Parameters
    ----------
    held_up : None where it cannot be said, or not without a reservation that the label states.
    in_part : true where the phenotype is carried, in clearly fewer cells than among real ones.
    """

    label: str
    findings: tuple[Finding, ...]
    held_up: bool | None
    in_part: bool = False

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(finding.text for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        parts = [finding.to_dict() for finding in self.findings]
        text = " ".join(self.sentences)
        return {
            "label": self.label,
            "text": text,
            "held_up": self.held_up,
            "in_part": self.in_part,
            "findings": parts,
        }


def judge(
    rows: Sequence[Row],
    key: str,
    *,
    target: str,
    control: str,
    separable: Mapping[str, Any] | None,
    evidence: Mapping[str, Any] | None = None,
) -> Verdict:
    """Return the verdict on one model's row.

    Parameters
    ----------
    rows : the rows of `scorecard.score_target`.
    key : the model's row.
    separable, evidence : see `findings.Case`.
    """
    case = Case({row["key"]: row for row in rows}, key, target, control, separable, evidence or {})
    if case.model["n"] < SMALL_N:
        words = f"{case.model['n']} cells are too few to judge {target}."
        return Verdict("n too small", (Finding("n_small", "n too small", "open", words),), None)
    if _without_interval(case.model):
        return Verdict("no interval", (_bare_numbers(case),), None)
    found = _found(case)
    if any(one.key == "one_change" or (one.key == "cell_by_cell" and one.state == "for") for one in found):
        found = [replace(one, state="open") if one.key in _EXPLAINED_AWAY else one for one in found]
    against = {finding.key: finding for finding in found if finding.state == "against"}
    ordered = tuple(sorted(found, key=lambda finding: _place(finding, against)))
    if against:
        worst = min(against, key=_ORDER.index)
        return Verdict(_accusation(against[worst], found, _part(case.model)), ordered, False)
    return _acquitted(case, ordered)


def _found(case: Case) -> list[Finding]:
    """Return what there is to say, in the order in which it is read."""
    by_truth = cell_findings.cell_by_cell(case)
    parts = [
        findings.separable(case),
        findings.phenotype(case),
        by_truth,
        cell_findings.identity(case) if by_truth.key == "cell_by_cell" and by_truth.state == "open" else None,
        findings.condition_used(case),
        charges.memoriser(case),
        charges.duplicates(case),
        charges.plates(case),
        *charges.channels(case),
        findings.distance(case),
    ]
    return [finding for finding in parts if finding is not None]


def _place(finding: Finding, against: Mapping[str, Finding]) -> int:
    """Return where a finding is read: what speaks against the model first, and of that the one that explains most."""
    if finding.key in against and finding.state == "against":
        return _ORDER.index(finding.key)
    return len(_ORDER)


def _accusation(worst: Finding, found: Sequence[Finding], part: str) -> str:
    """Return the label of a model that something speaks against."""
    if worst.key not in ("not_this_cell", "not_closer") or not _shown(found):
        return worst.name
    what = f"a part of the phenotype ({part})" if part else "the phenotype"
    return f"shows {what}, but {worst.name}" if worst.key == "not_this_cell" else f"shows {what}; {worst.name}"


def _shown(found: Sequence[Finding]) -> bool:
    return any(finding.key == "phenotype" and finding.state == "for" for finding in found)


def _acquitted(case: Case, found: tuple[Finding, ...]) -> Verdict:
    """Return the verdict on a model that nothing speaks against."""
    states = {finding.key: finding.state for finding in found}
    if states.get("unknown") == "open":
        return Verdict(f"not judged: nothing at hand tells {case.target} from a control", found, None)
    by_truth = states.get("cell_by_cell") == "for" or "one_change" in states
    if "unseen" in states and not by_truth:
        return Verdict("the classifier cannot tell the target from the control", found, None)
    if "shift_not_excluded" in states and not by_truth:
        return Verdict("not told from an intensity shift", found, None)
    part = _part(case.model)
    what = f"a part of the phenotype ({part})" if part else "the phenotype"
    if "one_change" in states:
        label = f"carries {what}, closer to the truth than copies and shifts; not told from one change for every cell"
    elif states.get("cell_by_cell") == "for":
        label = f"carries {what}, " + ("closer to each cell's truth than copies and shifts" if part else "cell by cell")
    elif states.get("identity") == "for":
        label = f"carries {what}, and keeps each cell recognisable"
    else:
        label = f"carries {what}; whether of this very cell is not known"
    used = states.get("condition_used") == "for"
    if not used:
        label += "; whether the condition is used was not tested"
    reserved = bool(part) or not used or "one_change" in states
    return Verdict(label, found, None if reserved else True, in_part=bool(part))


def _without_interval(model: Row) -> bool:
    """Say whether a number that the verdict rests on has no interval."""
    resting = [*model.get("hit_against", {}).values(), *model.get("against", {}).values()]
    return any(found["low"] is None or found["high"] is None for found in resting)


def _bare_numbers(case: Case) -> Finding:
    """Say what was found, where nothing can be made of it."""
    sentences = [
        f"Too few wells or sites to resample (one site, mostly): there is no interval, so {case.target} is not judged."
    ]
    named = [
        (row["name"], row["target_hit"])
        for row in case.rows.values()
        if row.get("target_hit", {}).get("value") is not None
    ]
    if named:
        listed = ", ".join(f"{name} {percent(hit, interval=False)}" for name, hit in named)
        sentences.append(f"The classifier sees {case.target} in: {listed}.")
    if case.model.get("error", {}).get("value") is not None:
        sentences.append(f"Error per cell {number(case.model['error'])}.")
    return Finding("no_interval", "no interval", "open", " ".join(sentences))


def _part(model: Row) -> str:
    """Return the share of real cells' hit rate that is reached, where its interval lies wholly below 1; else nothing.

    The ratio's interval excludes 1 where, and only where, the difference's excludes 0.
    """
    found = model.get("hit_relative", {})
    if found.get("high") is None or found["high"] >= 1:
        return ""
    return f"{percent(found, interval=False)} of real cells' hit rate"
