"""Numbers into words: what a reader may believe of a translation, computed from intervals against the null rows.

No threshold here was fitted to anything: a row beats another where the interval of their difference on the same cells excludes 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

SMALL_N = 30
"""Below this many cells in a row no verdict is given."""


@dataclass(frozen=True)
class Verdict:
    """A label for the table, the sentences behind it, and whether the translation held up.

    Parameters
    ----------
    held_up : None where it cannot be said, or not without a reservation that the label states.
    in_part : true where the phenotype is carried, in clearly fewer cells than among real ones.
    """

    label: str
    sentences: tuple[str, ...]
    held_up: bool | None
    in_part: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        text = " ".join(self.sentences)
        return {"label": self.label, "text": text, "held_up": self.held_up, "in_part": self.in_part}


def judge(rows: Sequence[Row], key: str, *, target: str, control: str, separable: Mapping[str, Any] | None) -> Verdict:
    """Return the verdict on one model's row.

    Parameters
    ----------
    rows : the rows of `scorecard.score_target`.
    key : the model's row.
    separable : AUC estimate of real target cells against real control cells, on held-out cells; None where not known.
    """
    by_key = {row["key"]: row for row in rows}
    model = by_key[key]
    if model["n"] < SMALL_N:
        return Verdict("n too small", (f"{model['n']} cells are too few to judge {target}.",), None)
    if _without_interval(model):
        words = (
            f"Too few wells or sites to resample (one site, mostly): there is no interval, so {target} is not judged."
        )
        return Verdict("no interval", (words, *_bare_numbers(by_key, model, target=target)), None)
    phenotype, hit_words = _phenotype(by_key, model, target=target, control=control)
    closer, error_words = _per_cell(by_key, model)
    used, shuffle_words = _condition_used(by_key, model, target=target)
    sentences = (
        *_separable(separable, target=target, control=control),
        *hit_words,
        *error_words,
        *shuffle_words,
        *_distance(model),
    )
    if phenotype != "carries" and not (phenotype in ("shift", "smoothing") and closer == "closer"):
        label = {
            "unknown": "target not known to the classifier",
            "control": f"indistinguishable from {control}",
            "shift": "explained by an intensity shift",
            "smoothing": "explained by smoothing",
        }[phenotype]
        return Verdict(label, sentences, None if phenotype == "unknown" else False)
    return _of_phenotype(_part(model), closer, used, sentences)


def _of_phenotype(part: str, closer: str, used: bool | None, sentences: tuple[str, ...]) -> Verdict:
    """Return the verdict on outputs that show the target's phenotype, in all or (where `part` says so) in a part of the cells."""
    if used is False:
        return Verdict("does not depend on its condition", sentences, False)
    what = f"a part of the phenotype ({part})" if part else "the phenotype"
    if closer == "worse":
        return Verdict(f"shows {what}, but not of this cell", sentences, False)
    if closer == "not closer":
        return Verdict(f"shows {what}; no nearer to the truth than a null row", sentences, False)
    if closer == "unknown":
        label = f"carries {what}; whether of this very cell is not known"
    else:
        label = f"carries {what}, " + ("closer to each cell's truth than every null row" if part else "cell by cell")
    if used is None:
        label += "; whether the condition is used was not tested"
    return Verdict(label, sentences, None if part or used is None else True, in_part=bool(part))


def _without_interval(model: Row) -> bool:
    """Say whether a number that the verdict rests on has no interval."""
    resting = [*model.get("hit_against", {}).values(), *model.get("against", {}).values()]
    return any(found["low"] is None or found["high"] is None for found in resting)


def _bare_numbers(rows: Mapping[str, Row], model: Row, *, target: str) -> list[str]:
    """Say what was found, where nothing can be made of it."""
    sentences = []
    named = [
        (row["name"], row["target_hit"]) for row in rows.values() if row.get("target_hit", {}).get("value") is not None
    ]
    if named:
        listed = ", ".join(f"{name} {_percent(hit, interval=False)}" for name, hit in named)
        sentences.append(f"The classifier sees {target} in: {listed}.")
    if model.get("error", {}).get("value") is not None:
        sentences.append(f"Error per cell {_number(model['error'])}.")
    return sentences


def _part(model: Row) -> str:
    """Return the share of real cells' hit rate that is reached, where its interval lies wholly below 1; else nothing.

    The ratio's interval excludes 1 where, and only where, the difference's excludes 0.
    """
    found = model.get("hit_relative", {})
    if found.get("high") is None or found["high"] >= 1:
        return ""
    return f"{_percent(found, interval=False)} of real cells' hit rate"


def _separable(found: Mapping[str, Any] | None, *, target: str, control: str) -> list[str]:
    if found is None or found.get("value") is None or found["low"] is None or found["low"] > 0.5:
        return []
    return [
        f"Real {target} cannot be told from {control} by the classifier (AUC {_interval(found)}), so target hits say little."
    ]


def _phenotype(rows: Mapping[str, Row], model: Row, *, target: str, control: str) -> tuple[str, list[str]]:
    """Compare how often the classifier sees the target, with each null row in turn."""
    hit = model["target_hit"]
    if "not_computed" in hit:
        return "unknown", [f"Target hit: not computed ({hit['not_computed']})."]
    real = rows.get("real")
    beside = f", real {target} {_percent(real['target_hit'])}" if real is not None else ""
    words = f"The classifier sees {target} in {_percent(hit)} of the outputs{beside}"
    nulls = [(kind, rows[key]) for key, kind in _NULLS if key in rows]
    listed = ", ".join(f"{row['name']} {_percent(row['target_hit'], interval=False)}" for _, row in nulls)
    sentences = [f"{words}; {listed}." if listed else f"{words}."]
    relative = model.get("hit_relative", {})
    if relative.get("low") is not None and relative["low"] > 1:
        sentences.append(
            "That is more often than in real cells: the effect, or the share of cells that respond, is overdone."
        )
    if relative.get("high") is not None and relative["high"] < 1:
        times = _number(relative, digits=2)
        sentences.append(f"That is {times} times as often as in real cells: the phenotype is carried in part at most.")
    for kind, row in nulls:
        if model["hit_against"][row["key"]]["low"] <= 0:
            return kind, sentences
    return "carries", sentences


_NULLS = (("copy", "control"), ("denoised", "smoothing"), ("shift", "shift"), ("moments", "shift"))


def _per_cell(rows: Mapping[str, Row], model: Row) -> tuple[str, list[str]]:
    error = model.get("error")
    if error is None:
        return "unknown", [
            "The truth per cell is not known here, so nothing says that an output is still its own source cell."
        ]
    if "not_computed" in error:
        return "unknown", [f"Error per cell: not computed ({error['not_computed']})."]
    against = {key: model["against"][key] for key, _ in _NULLS if key in model["against"]}
    lost = [rows[key]["name"] for key, found in against.items() if found["high"] >= 0]
    copy = rows["copy"]["error"]["value"] if "copy" in rows else None
    sentence = f"Error per cell {_number(error)}" + (f" against {copy:.3f} for copying" if copy is not None else "")
    score = model.get("score", {})
    if score.get("value") is not None:
        sentence += f"; on the scale where 0 is the best possible and 1 is copying: {_number(score, digits=2)}"
    if not lost:
        return "closer", [f"{sentence}. It is closer to the truth than every null row."]
    worse_than_copy = "copy" in against and against["copy"]["low"] > 0
    return ("worse" if worse_than_copy else "not closer"), [
        f"{sentence}. It is not closer to the truth than: {', '.join(lost)}."
    ]


def _condition_used(rows: Mapping[str, Row], model: Row, *, target: str) -> tuple[bool | None, list[str]]:
    shuffled = rows.get(f"shuffled:{model['key']}")
    if (
        shuffled is None
        or "not_computed" in shuffled.get("target_hit", {"not_computed": ""})
        or "not_computed" in model["target_hit"]
    ):
        return None, [
            "Whether the condition is used was not tested: nothing was translated to another target."
            if shuffled is None
            else "Whether the condition is used was not tested: the classifier does not know the target."
        ]
    percent = _percent(shuffled["target_hit"], interval=False)
    if model["hit_against"][shuffled["key"]]["low"] > 0:
        return True, [
            f"Outputs of the same cells for other targets are seen as {target} in {percent}: the condition is used."
        ]
    return False, [
        f"Outputs of the same cells for other targets are seen as {target} just as often ({percent}): the condition is not used."
    ]


def _distance(model: Row) -> list[str]:
    gap = model.get("gap_closed", {})
    if gap.get("value") is None:
        return []
    return [
        f"It closes {_number(gap, digits=2)} of the Fréchet distance between control and target (n = {model['n_distance']})."
    ]


def _percent(found: Mapping[str, Any], *, interval: bool = True) -> str:
    text = f"{100 * found['value']:.0f}\u00a0%"
    if not interval or found.get("low") is None:
        return text
    return f"{text} ({100 * found['low']:.0f}–{100 * found['high']:.0f})"


def _number(found: Mapping[str, Any], *, digits: int = 3) -> str:
    value, low, high = (
        None if found[key] is None else f"{found[key]:.{digits}f}".replace("-", "−") for key in ("value", "low", "high")
    )
    return f"{value}" if low is None else f"{value} ({low} to {high})"


def _interval(found: Mapping[str, Any]) -> str:
    return _number(found, digits=2)
