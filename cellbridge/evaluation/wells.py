"""Wells by their profiles, over all targets: do generated wells find real ones, does the effect grow with dose, and is the mechanism seen?"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cellbridge.conditions import Condition
from cellbridge.evaluation.counting import wells_of
from cellbridge.evaluation.sections import Column, Section, absent, share, table
from cellbridge.evaluation.target import Target
from cellbridge.metrics import profiles
from cellbridge.metrics.classification import moa_hits
from cellbridge.metrics.effects import Effect, Sample, dose_monotonicity, paired_effect, real_effect
from cellbridge.metrics.intervals import share as share_of
from cellbridge.metrics.profiles import Profiles, Retrieved

_MAP = (
    "Query: the profile of a well of outputs. Positives: real wells of the condition that was asked for; negatives: real control wells of the same "
    "plate, the sources among them. 1 where every positive is nearer than every negative. p is against random orders, and cannot be below the smallest p."
)
_COLUMNS = (
    Column("condition", "asked for"),
    Column("precision", "mean average precision"),
    Column("chance", "by chance"),
    Column("p", "p", digits=4),
    Column("corrected_p", "p, corrected", digits=4),
    Column("smallest_p", "smallest p", digits=4),
    Column("n_queries", "queries", digits=0),
    Column("n_positives", "positives", digits=1),
    Column("n_negatives", "negatives", digits=1),
)
_ROWS = ("copy", "shift", "counterfactual")


def judge_wells(targets: list[Target], moa: Mapping[str, str]) -> list[Section]:
    """Judge every model by its wells, over all targets.

    Parameters
    ----------
    moa : condition → mechanism of action; empty where none is known.
    """
    sections = [_retrieval(targets), _doses(targets)]
    return [*sections, _mechanisms(targets, moa)] if moa else sections


def _retrieval(targets: list[Target]) -> Section:
    title = "Do generated wells find real ones?"
    why = profiles.missing()
    real, control = _real(targets), _control(targets)
    if why is not None or real is None or control is None:
        return absent("profiles", title, why or "too few real cells on these plates")
    control_name, seed, rows = targets[0].comparison.source, targets[0].draws.seed, []
    for key in _keys(targets):
        queries = _queries(targets, key, control)
        found = profiles.profile_map(queries, real, control=control_name, seed=seed) if queries is not None else None
        rows += _cells(targets, key, found or {})
    halves = {
        target.comparison.target: profiles.split_halves(real, target.comparison.target, seed=seed) for target in targets
    }
    for condition, parts in halves.items():
        found = profiles.profile_map(*parts, control=control_name, seed=seed) if parts is not None else None
        if found and condition in found:
            name = f"real {condition}, one half against the other"
            rows.append({"key": "real", "name": name, "kind": "real"} | _retrieved(condition, found[condition]))
    return table("profiles", title, _MAP, columns=_COLUMNS, rows=rows)


def _keys(targets: list[Target]) -> list[str]:
    models = sorted({arm.key for target in targets for arm in target.models})
    return [*models, *(key for key in _ROWS if any(target.arm(key) is not None for target in targets))]


def _cells(targets: list[Target], key: str, found: Mapping[str, Retrieved]) -> list[dict[str, Any]]:
    arm = next(part for part in (target.arm(key) for target in targets) if part is not None)
    rows = [{"key": key, "name": arm.name, "kind": arm.kind} | _retrieved(name, part) for name, part in found.items()]
    return rows


def _retrieved(condition: str, found: Retrieved) -> dict[str, Any]:
    names = ("precision", "chance", "p", "corrected_p", "smallest_p", "n_queries", "n_positives", "n_negatives")
    return {"condition": {"text": condition}} | {name: getattr(found, name) for name in names}


def _extractor(targets: list[Target]) -> str:
    return targets[0].sights.judges.extractors[0].name


def _control(targets: list[Target]) -> Sample | None:
    plates = np.unique(np.concatenate([target.plates for target in targets]))
    rows = targets[0].rows_on(targets[0].comparison.source, plates)
    return targets[0].real_sample(rows, _extractor(targets)) if len(rows) >= 2 else None


def _real(targets: list[Target]) -> Profiles | None:
    """Return the real wells of every target and of the control, on the plates under judgement."""
    first, control = targets[0], _control(targets)
    if control is None:
        return None
    plates = np.unique(np.concatenate([target.plates for target in targets]))
    names = [first.comparison.source, *(target.comparison.target for target in targets)]
    rows = np.concatenate([first.rows_on(name, plates) for name in names])
    cells = first.real_sample(rows, _extractor(targets))
    conditions = first.reference.condition_names[rows].astype(str)
    return profiles.well_profiles(cells, list(conditions), list(wells_of(first.reference, rows)), control=control)


def _queries(targets: list[Target], key: str, control: Sample) -> Profiles | None:
    """Return the wells of an arm, over all targets, each by the condition that was asked for and its sources' well."""
    name, parts = _extractor(targets), []
    for target in targets:
        arm = target.arm(key)
        if arm is not None:
            asked = [target.comparison.target] * len(target.comparison.sources)
            wells = list(wells_of(target.reference, target.comparison.sources))
            parts.append(profiles.well_profiles(target.sample(arm, name), asked, wells, control=control))
    if not parts:
        return None
    joined = (
        np.concatenate([getattr(part, field) for part in parts])
        for field in ("vectors", "plates", "conditions", "wells")
    )
    return Profiles(*joined)


def _doses(targets: list[Target]) -> Section:
    """Say whether the effect grows with dose: its projection on the real effect of the highest dose."""
    title = "Does the effect grow with dose?"
    compounds: dict[str, list[Target]] = {}
    for target in targets:
        compounds.setdefault(Condition.parse(target.comparison.target).compound, []).append(target)
    rows = []
    for compound, of_compound in compounds.items():
        if len(of_compound) >= 3:
            rows += _dose_rows(compound, sorted(of_compound, key=_dose))
    if not rows:
        return absent("dose", title, "no compound was asked for at three doses or more")
    about = "Rank correlation of dose and size of the effect along the real effect of the highest dose; p over all orders of the doses."
    columns = (
        Column("spearman", "Spearman"),
        Column("p", "p", digits=3),
        Column("smallest_p", "smallest p", digits=3),
        Column("n_doses", "doses", digits=0),
    )
    return table("dose", title, about, columns=columns, rows=rows)


def _dose(target: Target) -> float:
    return Condition.parse(target.comparison.target).dose_um or 0.0


def _dose_rows(compound: str, targets: list[Target]) -> list[dict[str, Any]]:
    control, name = _control(targets), _extractor(targets)
    reals = [_real_effect(target, control, name) for target in targets]
    if control is None or any(real is None for real in reals):
        return []
    known = [real for real in reals if real is not None]
    axis = known[-1].mean / np.linalg.norm(known[-1].mean)
    sizes = {("real", f"real {compound}", "real"): [float(real.mean @ axis) for real in known]}
    for key in sorted({arm.key for target in targets for arm in target.models}):
        arms = [target.arm(key) for target in targets]
        if all(arm is not None for arm in arms):
            sizes[(key, f"{next(arm.name for arm in arms if arm is not None)}, {compound}", "model")] = [
                float(_made(target, key, control, name).mean @ axis) for target in targets
            ]
    rows = []
    for (key, words, kind), found in sizes.items():
        test = dose_monotonicity([_dose(target) for target in targets], found, seed=targets[0].draws.seed)
        if test is not None:
            cells = {field: getattr(test, field) for field in ("spearman", "p", "smallest_p", "n_doses")}
            rows.append({"key": key, "name": words, "kind": kind} | cells)
    return rows


def _real_effect(target: Target, control: Sample | None, name: str) -> Effect | None:
    rows = target.rows_on(target.comparison.target, target.plates)
    if control is None or len(rows) < 2:
        return None
    return real_effect(target.real_sample(rows, name), control, **target.draws.settings)


def _made(target: Target, key: str, control: Sample, name: str) -> Effect:
    arms = target.require(key), target.require("copy")
    output, source = (target.sample(arm, name) for arm in arms)
    return paired_effect(output, source, control, **target.draws.settings)


def _mechanisms(targets: list[Target], moa: Mapping[str, str]) -> Section:
    """Say how often the classifier sees the target's mechanism of action, whichever compound it takes it for."""
    title, conditions = "Is the mechanism seen?", targets[0].sights.judges.conditions
    names = sorted({moa.get(name, name) for name in conditions})
    groups = np.array([names.index(moa.get(name, name)) for name in conditions])
    rows = []
    for target in targets:
        if target.comparison.target not in moa:
            continue
        wanted = names.index(moa[target.comparison.target])
        for arm in target.arms:
            if arm.kind in ("model", "real") or arm.key in _ROWS:
                hits = share_of(moa_hits(arm.logits, groups, wanted), arm.blocks, **target.draws.settings)
                words = f"{arm.name}, {target.comparison.target}"
                cells = {"moa": {"text": names[wanted]}, "hits": hits}
                rows.append({"key": arm.key, "name": words, "kind": arm.kind} | cells)
    if not rows:
        return absent("moa", title, "no target has a mechanism (moa)")
    about = (
        "Share of cells for which the classifier's conditions of the target's mechanism are the most likely together."
    )
    return table("moa", title, about, columns=(Column("moa", "mechanism"), share("hits", "seen as it")), rows=rows)
