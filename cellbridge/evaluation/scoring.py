"""One target's part of `metrics.json`: its table, its sections, the verdict on every model, and the values of single cells."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cellbridge.data.comparison import Comparison
from cellbridge.data.store import Store
from cellbridge.evaluation.arms import draws_of
from cellbridge.evaluation.condition import judge_condition
from cellbridge.evaluation.copies import judge_copies
from cellbridge.evaluation.counting import count_row
from cellbridge.evaluation.effects import judge_effects
from cellbridge.evaluation.identity import judge_identity
from cellbridge.evaluation.leak import judge_leak
from cellbridge.evaluation.noise import noises_of
from cellbridge.evaluation.noise_references import judge_x_T, x_T_section
from cellbridge.evaluation.nuclei import judge_nuclei
from cellbridge.evaluation.overlap import judge_overlap
from cellbridge.evaluation.places import judge_places
from cellbridge.evaluation.spread import judge_spread
from cellbridge.evaluation.stains import judge_stains
from cellbridge.evaluation.target import Part, Target, images_of
from cellbridge.metrics.affine_share import affine_share
from cellbridge.metrics.classification import target_hits
from cellbridge.metrics.contrasts import share_difference
from cellbridge.metrics.findings import NULLS
from cellbridge.metrics.scorecard import Arm, Judge, score_target
from cellbridge.metrics.verdict import judge

_SECTIONS: Mapping[str, Callable[[Target], Part]] = {
    "plates": judge_places,
    "identity": judge_identity,
    "shuffled": judge_condition,
    "effects": judge_effects,
    "channels": judge_stains,
    "copies": judge_copies,
    "overlap": judge_overlap,
    "leak": judge_leak,
    "nuclei": judge_nuclei,
}
"""In reading order; the name is that of its evidence in the verdict."""


@dataclass(frozen=True)
class Scored:
    """What is said of one target.

    Parameters
    ----------
    metrics : its part of `metrics.json`, but for its figures.
    parts : what each section said, by its name.
    """

    metrics: dict[str, Any]
    parts: Mapping[str, Part]


def score(target: Target, classifier: Mapping[str, Any]) -> Scored:
    """Score one target.

    Parameters
    ----------
    classifier : its accuracy on real cells, which says what it can tell apart.
    """
    comparison, truth = target.comparison, target.truth
    scoring = Judge(
        extractors=[extractor.name for extractor in target.sights.judges.extractors],
        target=target.label,
        control=target.control_label,
        **target.draws.settings,
    )
    scores = score_target(target.arms, draws_of(target.sights.reference, comparison), truth=truth, judge=scoring)
    scores["rows"] = _with_count(scores["rows"], count_row(target))
    parts = {name: make(target) for name, make in _SECTIONS.items()}
    spread = judge_spread(target)
    parts |= {} if spread is None else {"spread": spread}
    noise = _noise(target)
    metrics = {
        "target": comparison.target,
        "source": comparison.source,
        "n": len(comparison.sources),
        **_places(target.reference, comparison),
        "n_lost": comparison.lost,
        "n_unmatched": comparison.unmatched,
        "n_truth": 0 if truth is None else int(truth.known.sum()),
        "n_responders": 0 if truth is None else int((truth.responds & truth.known).sum()),
        "resampled": target.blocks.unit,
        **scores,
        "verdicts": _verdicts(target, scores["rows"], parts, classifier),
        "noise": noise,
        "nuclei": {},
        "sections": [*(part.section for part in parts.values()), x_T_section(noise)],
        "notes": [*_uneven(comparison), *target.notes, *_bias(scores["distances"])],
    }
    return Scored(metrics, parts)


def _noise(target: Target) -> dict[str, Any]:
    """Judge x_T of every model that keeps it; what it is held against lies beside the store of the first."""
    sights = target.sights
    noises = noises_of({model: sights.store_of(model) for model in sights.translated}, target.comparison)
    names = sorted(noises, key=lambda model: model not in sights.x_T_references)
    return judge_x_T(
        {model: noises[model] for model in names},
        target.reference,
        target.comparison,
        translated=sights.store_of(names[0]) if names else None,
        references=sights.x_T_references.get(names[0]) if names else None,
        **target.draws.settings,
    )


def _with_count(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Put the row of cell counts after the other null rows."""
    last = max(index for index, found in enumerate(rows) if found["kind"] in ("model", "null"))
    return [*rows[: last + 1], row, *rows[last + 1 :]]


def _verdicts(
    target: Target, rows: list[dict[str, Any]], parts: Mapping[str, Part], classifier: Mapping[str, Any]
) -> list[dict[str, Any]]:
    comparison = target.comparison
    separable = classifier.get("per_condition", {}).get(comparison.target, {}).get("auc")
    words = {"target": comparison.target, "control": comparison.source, "separable": separable}
    found = []
    for arm in target.models:
        affine = _affine(target, arm)
        evidence: dict[str, Any] = {"affine": affine, "unchanged": affine is None, "seen": _seen(target)}
        for name, part in parts.items():
            if arm.key in part.evidence:
                of_model = part.evidence[arm.key]
                evidence |= of_model if name == "copies" else {name: of_model}
        verdict = judge(rows, arm.key, **words, evidence=evidence)
        found.append({"model": arm.name, "key": arm.key} | verdict.to_dict())
    return found


def _seen(target: Target) -> dict[str, Any]:
    """Return how much more often real target cells are hit than each null row's: what hits can show at all."""
    real, label = target.arm("real"), target.label
    if real is None or label is None:
        return {}
    hits = target_hits(real.logits, label)
    rows = [arm for key, _ in NULLS if (arm := target.arm(key)) is not None]
    return {
        arm.key: share_difference(hits, target_hits(arm.logits, label), (real.blocks, arm.blocks)).to_dict()
        for arm in rows
    }


def _affine(target: Target, arm: Arm) -> dict[str, Any] | None:
    """Return how much of what a model changes its own affine imitation explains."""
    imitation, source = (images_of(target.require(key)) for key in (f"imitation:{arm.key}", "copy"))
    settings = target.draws
    found = affine_share(
        images_of(arm), imitation, source, arm.blocks, resamples=settings.resamples, seed=settings.seed
    )
    return None if found is None else found.to_dict()


def cell_table(target: Target, scored: Scored) -> pd.DataFrame:
    """Return the values of single cells, one row per (arm, cell)."""
    tables = []
    for arm in target.arms:
        real = arm.kind == "real"
        rows = target.comparison.real if real else target.comparison.sources
        if not real and not arm.paired:
            continue
        obs = target.reference.obs.iloc[rows]
        frame = pd.DataFrame(
            {f"Metadata_{name}": obs[f"Metadata_{name}"].to_numpy() for name in ("Cell", "Plate", "Well", "Site")}
        )
        frame.insert(0, "Metadata_Target", target.comparison.target)
        frame.insert(1, "Metadata_Arm", arm.key)
        frame.insert(2, "Metadata_ArmName", arm.name)
        frame.insert(3, "Metadata_Kind", arm.kind)
        frame["Metadata_Source"] = target.comparison.target if real else target.comparison.source
        frame["Metadata_Output"] = _output_ids(target, arm.key, len(rows))
        frame["predicted"] = np.array(target.sights.judges.conditions, dtype=object)[arm.logits.argmax(axis=1)]
        if target.label is not None:
            frame["hit"] = arm.logits.argmax(axis=1) == target.label
            frame["log_odds"] = arm.logits[:, target.label] - arm.logits[:, target.control_label]
        if target.truth is not None and arm.paired:
            errors = np.full(len(rows), np.nan)
            errors[target.truth.known] = np.sqrt(target.truth.errors(arm.images.numpy()))
            frame["error"] = errors
        for part in scored.parts.values():
            for column, values in part.cells.get(arm.key, {}).items():
                frame[column] = values
        tables.append(frame)
    return pd.concat(tables, ignore_index=True)


def _output_ids(target: Target, key: str, n: int) -> np.ndarray:
    model = key.removeprefix("model:")
    rows = target.comparison.outputs.get(model) if key.startswith("model:") else None
    if rows is None:
        return np.full(n, "", dtype=object)
    return target.sights.store_of(model).obs.index.to_numpy()[rows]


def _places(reference: Store, comparison: Comparison) -> dict[str, Any]:
    """Return from which plates, and from how many wells and sites, the source cells come."""
    table = reference.obs.iloc[comparison.sources]
    place = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    wells, sites = (len(table.drop_duplicates(place[:depth])) for depth in (2, 3))
    return {"plates": sorted(set(table["Metadata_Plate"])), "n_wells": wells, "n_sites": sites}


def _uneven(comparison: Comparison) -> list[str]:
    """Say that models translated unequally many cells, of which those are compared that all of them did."""
    counts = comparison.translated
    if len(set(counts.values())) < 2:
        return []
    said = ", ".join(f"{model} {count}" for model, count in counts.items())
    return [f"Cells translated: {said}. Rows compare those that all of them translated."]


def _bias(distances: Mapping[str, Any]) -> list[str]:
    return [
        f"Fréchet distance ({name}): {found['n']} images for {found['features']} features: mostly bias; compare rows of this table only."
        for name, found in distances.items()
        if found["n"] <= found["features"]
    ]
