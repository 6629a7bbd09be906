"""Is it still this cell? What the errors per cell say, and, where the truth is not known, whether an output finds its source again."""

from collections.abc import Mapping
from typing import Any

from cellbridge.metrics.findings import NULLS, Case, Finding, number, percent

CELL_NULLS = (*(key for key, _ in NULLS), "random_target")
"""Null rows of every target that a model is to be nearer to each cell's truth than; a random cell of the target is no cell of its own."""


def cell_by_cell(case: Case) -> Finding:
    """Compare the error against each cell's counterfactual with that of copies, shifts, smoothing and other cells of the target; where the
    truth is not known, say so.
    """
    model, error = case.model, case.model.get("error")
    if error is None:
        return Finding("cell_by_cell", "truth per cell not known", "open", "The truth per cell is not known here.")
    if "not_computed" in error:
        words = f"Error per cell: not computed ({error['not_computed']})."
        return Finding("cell_by_cell", "truth per cell not known", "open", words)
    against = {key: model["against"][key] for key in CELL_NULLS if key in model["against"]}
    lost = [case.rows[key]["name"] for key, found in against.items() if found["high"] >= 0]
    copy = case.rows["copy"]["error"]["value"] if "copy" in case.rows else None
    sentence = f"Error per cell {number(error)}" + (f" against {copy:.3f} for copying" if copy is not None else "")
    score = model.get("score", {})
    if score.get("value") is not None:
        sentence += f"; on the scale where 0 is the best possible and 1 is copying: {number(score, digits=2)}"
    evidence = {"error": error, **{f"less {case.rows[key]['name']}": found for key, found in against.items()}}
    if not lost:
        own = model["against"].get(f"template:{case.key}")
        if own is not None and own["high"] >= 0:
            return _one_change(
                case, f"{sentence}. It is closer to the truth than copies, smoothed or shifted", own, evidence
            )
        text = f"{sentence}. It is closer to the truth than copies, smoothed or shifted{_than_one_change(case, own)}."
        return Finding("cell_by_cell", "closer to each cell's truth than copies and shifts", "for", text, evidence)
    worse = "copy" in against and against["copy"]["low"] > 0
    name = "not of this cell" if worse else "no nearer to the truth than a null row"
    text = f"{sentence}. It is not closer to the truth than: {', '.join(lost)}."
    return Finding("not_this_cell" if worse else "not_closer", name, "against", text, evidence)


def _one_change(case: Case, sentence: str, own: Mapping[str, Any], evidence: Mapping[str, Any]) -> Finding:
    """Say that the model's mean change, given to every cell alike, would have come as near: squared error favours a mean, so it is no charge."""
    text = (
        f"{sentence}, but its own mean change, one for all cells of a plate, comes as near (difference {number(own)}): "
        f"nothing says that the change depends on the cell{_beside_training(case)}."
    )
    both = {**evidence, "less its own mean change": own}
    return Finding("one_change", "not told from one change for every cell", "open", text, both)


def _than_one_change(case: Case, own: Mapping[str, Any] | None) -> str:
    """Say what else is beaten, or comes nearer: its own mean change, and the mean difference image of training cells."""
    words = "" if own is None else f", and than its own mean change for all cells ({number(own)})"
    return words + _beside_training(case)


def _beside_training(case: Case) -> str:
    trained = case.model["against"].get("mean_image")
    if trained is None or trained["high"] < 0:
        return ""
    return f"; the mean difference image of training cells comes as near or nearer ({number(trained)}), which squared error favours"


def identity(case: Case) -> Finding:
    """Say whether outputs find their own sources again among all sources of the plate; by chance, half of the others lie nearer."""
    found = case.evidence.get("identity")
    if found is None or found["auc"]["low"] is None:
        return Finding(
            "identity", "identity not judged", "open", "Nothing says that an output is still its own source cell."
        )
    auc, first = found["auc"], found["top_1"]
    text = (
        f"An output's own source is nearer to it than {percent(auc)} of the other sources of its plate (by chance 50\u00a0%), "
        f"and the nearest of all in {percent(first)} (by chance {100 * found['chance']:.0f}\u00a0%)"
    )
    evidence = {"auc": auc, "top_1": first, "chance": {"value": found["chance"]}}
    if auc["low"] > 0.5:
        return Finding("identity", "keeps its cell recognisable", "for", f"{text}.", evidence)
    return Finding(
        "not_this_cell", "not of this cell", "against", f"{text}: no sign of the source cell is left.", evidence
    )
