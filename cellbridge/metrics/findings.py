"""What the numbers of one model say, each with its evidence in words: findings, from which `verdict` makes a label.

No threshold here was fitted to anything: a row beats another where the interval of their difference on the same cells excludes 0, and a
charge that many intervals could bring (stains, plates, training cells) stands at a level corrected for their number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Mapping[str, Any]
State = Literal["against", "for", "open"]

NULLS = (("copy", "control"), ("denoised", "smoothing"), ("shift", "shift"), ("moments", "shift"))
"""Null rows of every target, by what explains the outputs where one of them is not beaten; the imitation of the model itself is another shift."""


@dataclass(frozen=True)
class Finding:
    """One thing that the numbers say.

    Parameters
    ----------
    key : a short name for programs.
    name : what a reader sees.
    state : whether it speaks against the model, for it, or leaves something open.
    text : one or two sentences with the numbers.
    evidence : the numbers, by name.
    """

    key: str
    name: str
    state: State
    text: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return vars(self) | {"evidence": dict(self.evidence)}


@dataclass(frozen=True)
class Case:
    """One model on one target.

    Parameters
    ----------
    rows : of `scorecard.score_target`, by key.
    key : the model's row.
    target, control : conditions, by name.
    separable : AUC estimate of real target cells against real control cells, on held-out cells; None where not known.
    evidence : what sections found of this model, as plain JSON: "identity" (`identity.Retrieval`), "memorisation", "repeats", "plates"
        (`plate_gains`, by what is gained: "hits", "error"), "channels", "affine" (`affine_share`), "shuffled" (`condition_use.ShuffledGap`),
        "unchanged" (true where outputs are their sources), "seen" (null row → hits among real target cells less those in it), each where it
        could be computed.
    """

    rows: Mapping[str, Row]
    key: str
    target: str
    control: str
    separable: Mapping[str, Any] | None
    evidence: Mapping[str, Any]

    @property
    def model(self) -> Row:
        return self.rows[self.key]


def separable(case: Case) -> Finding | None:
    """Say where the classifier cannot tell the real target from the control, so that its hits say little."""
    found = case.separable
    if found is None or found.get("value") is None or found["low"] is None or found["low"] > 0.5:
        return None
    text = (
        f"Real {case.target} cannot be told from {case.control} by the classifier (AUC {number(found, digits=2)}), "
        "so target hits say little."
    )
    return Finding("separable", "the target is hard to tell", "open", text, {"auc": found})


def phenotype(case: Case) -> Finding:
    """Compare how often the classifier sees the target, with each null row in turn."""
    model, target = case.model, case.target
    hit = model["target_hit"]
    if "not_computed" in hit:
        return Finding(
            "unknown",
            "the classifier does not know the target",
            "open",
            f"Target hit: not computed ({hit['not_computed']}).",
        )
    nulls = [(kind, case.rows[key]) for key, kind in _nulls(case) if key in case.rows]
    text = _hits_in_words(case, [row for _, row in nulls])
    evidence: dict[str, Any] = {"target_hit": hit}
    evidence |= {f"above {row['name']}": model["hit_against"][row["key"]] for _, row in nulls}
    if case.evidence.get("unchanged"):
        words = f"{text} No pixel of any cell was changed."
        return Finding("copier", f"indistinguishable from {case.control}", "against", words, evidence)
    for kind, row in nulls:
        if model["hit_against"][row["key"]]["low"] <= 0:
            return _explained(kind, row, case, text, evidence)
    return Finding("phenotype", f"shows {target}", "for", text, evidence)


def _nulls(case: Case) -> list[tuple[str, str]]:
    """Return the null rows to beat; the model's own imitation among them only where most of what the model does is affine.

    Elsewhere the imitation is an image that no model returned, and a classifier may take it for anything.
    """
    return [*NULLS, *([(f"imitation:{case.key}", "shift")] if _mostly_affine(case) else [])]


def _mostly_affine(case: Case) -> bool:
    """Say whether most of what the model changes, more than half by its interval, is an affine map of intensities."""
    affine = case.evidence.get("affine")
    return affine is not None and affine["low"] is not None and affine["low"] > 0.5


def _explained(kind: str, row: Row, case: Case, text: str, evidence: Mapping[str, Any]) -> Finding:
    """Name what does as well as the model, where the classifier sees the target in real cells at all."""
    if _blind(case) and not _mostly_affine(case):
        seen = case.evidence["seen"]["copy"]
        words = f"{text} Real cells are not seen so more often than copies are ({number(seen, digits=2)}): hits say nothing."
        return Finding(
            "unseen", f"the classifier does not see {case.target}", "open", words, {**evidence, "seen": seen}
        )
    if kind == "control":
        if _mostly_affine(case):
            affine = case.evidence["affine"]
            words = f"{text} Most of what it changes is an affine map of each stain's intensities: {percent(affine)}."
            return Finding(
                "intensity_shift", "explained by an intensity shift", "against", words, {**evidence, "affine": affine}
            )
        away = case.model.get("control_against", {}).get("copy")
        if away is not None and away["high"] is not None and away["high"] < 0:
            words = (
                f"{text} They are seen as {case.control} less often than copies are: what they show is something else."
            )
            return Finding(
                "other_phenotype", f"does not look like {case.target}", "against", words, {**evidence, "control": away}
            )
        return Finding("copier", f"indistinguishable from {case.control}", "against", text, evidence)
    names = {"smoothing": "explained by smoothing", "shift": "explained by an intensity shift"}
    keys = {"smoothing": "smoothing", "shift": "intensity_shift"}
    words = f"{text} That is not more often than in the row “{row['name']}”"
    affine = case.evidence.get("affine")
    own = case.rows.get(f"imitation:{case.key}")
    if kind == "shift" and _blind(case, row["key"]) and not _mostly_affine(case):
        seen = case.evidence["seen"][row["key"]]
        words = f"{words}, but neither is it among real cells ({number(seen, digits=2)}): hits cannot tell."
        return Finding(
            "shift_not_excluded", "not told from an intensity shift", "open", words, {**evidence, "seen": seen}
        )
    if kind == "shift" and affine is None and own is not None and case.model["hit_against"][own["key"]]["low"] > 0:
        words = f"{words}, but more often than in “{own['name']}”, the shift that the model could have made."
        both = {**evidence, f"above {own['name']}": case.model["hit_against"][own["key"]]}
        return Finding("shift_not_excluded", "not told from an intensity shift", "open", words, both)
    if kind == "shift" and affine is not None and not _mostly_affine(case):
        words = (
            f"{words}, although not most of what the model changes is an affine map of intensities ({percent(affine)})."
        )
        both = {**evidence, "affine": affine}
        return Finding("shift_not_excluded", "not told from an intensity shift", "open", words, both)
    return Finding(keys[kind], names[kind], "against", f"{words}.", evidence)


def _blind(case: Case, row: str = "copy") -> bool:
    """Say whether the classifier is not known to see the target in real cells more often than in a null row: then low hits accuse nobody."""
    seen = case.evidence.get("seen", {}).get(row)
    return seen is not None and (seen["low"] is None or seen["low"] <= 0)


def _hits_in_words(case: Case, nulls: Sequence[Row]) -> str:
    model, target, real = case.model, case.target, case.rows.get("real")
    beside = f", real {target} {percent(real['target_hit'])}" if real is not None else ""
    text = f"The classifier sees {target} in {percent(model['target_hit'])} of the outputs{beside}"
    listed = ", ".join(f"{row['name']} {percent(row['target_hit'], interval=False)}" for row in nulls)
    sentences = [f"{text}; {listed}." if listed else f"{text}."]
    relative = model.get("hit_relative", {})
    if relative.get("low") is not None and relative["low"] > 1:
        sentences.append(
            "That is more often than in real cells: the effect, or the share of cells that respond, is overdone."
        )
    if relative.get("high") is not None and relative["high"] < 1:
        times = number(relative, digits=2)
        sentences.append(f"That is {times} times as often as in real cells: the phenotype is carried in part at most.")
    return " ".join(sentences)


def condition_used(case: Case) -> Finding:
    """Compare outputs for the target with outputs of the same cells for other targets."""
    gap, shuffled = case.evidence.get("shuffled"), case.rows.get(f"shuffled:{case.key}")
    known = "not_computed" not in case.model["target_hit"]
    if shuffled is None or gap is None or not known or gap["log_odds"]["low"] is None:
        why = (
            "nothing was translated to another target"
            if shuffled is None
            else "the classifier does not know the target"
        )
        text = f"Whether the condition is used was not tested: {why}."
        return Finding("condition_used", "use of the condition not tested", "open", text)
    share = percent(shuffled["target_hit"], interval=False)
    odds, evidence = number(gap["log_odds"], digits=2), {"log_odds": gap["log_odds"], "hits": gap["hits"]}
    seen = (
        f"Outputs of the same cells for other targets are seen as {case.target} in {share}, {percent(gap['hits'])} of the cells fewer, "
        f"and their log odds of it lie {odds} lower"
    )
    somewhere = [part["plate"] for part in gap.get("plates", []) if _gained(part)]
    if _gained(gap) or somewhere:
        where = "" if _gained(gap) else f" on {listed('plate', somewhere)}"
        text = f"{seen}: the condition is used{where}."
        return Finding("condition_used", "uses its condition", "for", text, evidence)
    if _blind(case) and gap["log_odds"]["high"] > 0:
        text = f"{seen}, of a classifier that does not see the target in real cells either."
        return Finding("condition_used", "use of the condition cannot be told", "open", text, evidence)
    text = f"{seen}: no sign that the condition is used."
    return Finding("condition_ignored", "does not depend on its condition", "against", text, evidence)


def _gained(gap: Mapping[str, Any]) -> bool:
    """Say whether the right condition gains over others, in log odds or in hits; a model that ignores it gains in neither.

    The log odds, of target against control, are high for whatever is unlike the control, outputs for another strong compound too; hits do
    not move where a weak model reaches none.
    """
    return any((gap[name]["low"] or 0) > 0 for name in ("log_odds", "hits"))


def listed(unit: str, names: Sequence[str]) -> str:
    """Return names after what they are names of."""
    return f"{unit}{'' if len(names) == 1 else 's'} {', '.join(names)}"


def distance(case: Case) -> Finding | None:
    """Say how much of the gap between control and target is closed, or how far off the outputs lie; it is never a verdict by itself."""
    gap, found = case.model.get("gap_closed", {}), case.model.get("frechet", {})
    if gap.get("value") is not None:
        text = f"It closes {number(gap, digits=2)} of the Fréchet distance between control and target (n = {case.model['n_distance']})."
        return Finding("distance", "distance to real cells", "open", text, {"gap_closed": gap})
    floor = case.rows.get("real", {}).get("frechet", {})
    if "copy" in case.rows or found.get("value") is None or floor.get("value") is None:
        return None
    text = (
        f"The Fréchet distance to real {case.target} is {number(found, digits=1)}, between halves of the real ones {number(floor, digits=1)} "
        f"(n = {case.model['n_distance']}). Without a control nothing says how much of a distance is the compound's effect."
    )
    return Finding("distance", "distance to real cells", "open", text, {"frechet": found, "floor": floor})


def percent(found: Mapping[str, Any], *, interval: bool = True) -> str:
    """Return a share in percent, with its interval."""
    text = f"{100 * found['value']:.0f}\u00a0%"
    if not interval or found.get("low") is None:
        return text
    return f"{text} ({100 * found['low']:.0f}–{100 * found['high']:.0f})"


def number(found: Mapping[str, Any], *, digits: int = 3) -> str:
    """Return an estimate, with its interval."""
    value, low, high = (
        None if found[key] is None else f"{found[key]:.{digits}f}".replace("-", "−") for key in ("value", "low", "high")
    )
    return f"{value}" if low is None else f"{value} ({low} to {high})"
