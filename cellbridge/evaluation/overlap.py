"""Do outputs lie where real cells of the target lie, and not elsewhere? Overlap, a permutation test, ranks of conditions, and variety."""

from typing import Any

import numpy as np

from cellbridge.data.comparison import Rows, by_name
from cellbridge.evaluation.sections import Column, absent, share, table
from cellbridge.evaluation.target import Part, Target, take
from cellbridge.metrics.effects import Sample
from cellbridge.metrics.mmd import permutation_p, rank_of_condition
from cellbridge.metrics.neighbours import precision_recall_density_coverage
from cellbridge.metrics.scorecard import Arm
from cellbridge.metrics.variety import classifier_score

_K = 5
_MOST = 500
"""Real cells of another condition that outputs are ranked against, at most."""
_ABOUT = (
    "Precision: share of cells inside the neighbourhood of a real target cell; recall: share of real cells inside a neighbourhood of theirs; coverage: "
    "share of real cells with one of theirs beside it. MMD²: with a Gaussian kernel; p by relabelling wells. Rank of the target among all "
    "conditions by MMD² from the outputs, 1 is nearest. Variety: the classifier's exp E KL, 1 where all look alike to it."
)
_COLUMNS = (
    share("precision", "precision"),
    share("recall", "recall"),
    Column("density", "density"),
    share("coverage", "coverage"),
    Column("mmd2", "MMD² × 10³", digits=1, factor=1e3),
    Column("p", "p", digits=3),
    Column("rank", "rank of target", digits=0),
    Column("nearest", "nearest condition"),
    Column("variety", "variety"),
)
_TITLE = "Among real cells"


def judge_overlap(target: Target) -> Part:
    """Judge every arm by how it lies among real cells, in the first extractor's features, at the n of the distances."""
    comparison, name = target.comparison, target.sights.judges.extractors[0].name
    if len(comparison.scored) <= _K + 1:
        why = f"{len(comparison.scored)} cells per draw; more than {_K + 1} are needed"
        return Part(absent("neighbourhood", _TITLE, why))
    real = target.real_sample(comparison.reference, name)
    others = _conditions(target)
    rows = []
    for arm in target.arms:
        if arm.key.startswith(("imitation:", "template:")) or (not arm.paired and arm.kind != "real") or arm.of_target:
            continue
        sample, logits = _scored(target, arm, name)
        row: dict[str, Any] = {"key": arm.key, "name": arm.name, "kind": arm.kind}
        found = precision_recall_density_coverage(
            real.features, sample.features, k=_K, blocks=(real.blocks, sample.blocks), **target.draws.settings
        )
        row |= {key: getattr(found, key) for key in ("precision", "recall", "density", "coverage")}
        test = permutation_p(
            sample.features,
            real.features,
            blocks=(sample.blocks, real.blocks),
            permutations=target.draws.resamples,
            seed=target.draws.seed,
        )
        rank, distances = rank_of_condition(sample.features, others, comparison.target)
        row |= {
            "mmd2": test.mmd2,
            "p": test.p,
            "rank": rank,
            "nearest": {"text": min(distances, key=distances.__getitem__)},
        }
        row["variety"] = classifier_score(logits, blocks=sample.blocks, **target.draws.settings)
        rows.append(row)
    notes = [f"{len(comparison.scored)} cells in every row; {len(others)} conditions: {', '.join(others)}."]
    notes.append(
        f"Neighbourhoods reach to the {_K}th neighbour; of as many real cells, {100 * found.expected_coverage:.0f} % are covered."
    )
    return Part(table("neighbourhood", _TITLE, _ABOUT, columns=_COLUMNS, rows=rows, notes=notes))


def _scored(target: Target, arm: Arm, name: str) -> tuple[Sample, np.ndarray]:
    """Return the cells of an arm that distances are computed on; of the real target, those of the floor."""
    if arm.kind == "real":
        rows = target.comparison.floor[0]
        return target.real_sample(rows, name), target.sights.reference.seen(rows).logits
    rows = target.comparison.scored
    features = take(arm.features[name], rows).numpy().astype(np.float64)
    return Sample(features, target.plates[rows], arm.blocks.take(rows)), arm.logits[rows]


def _conditions(target: Target) -> dict[str, np.ndarray]:
    """Return the features of real cells of every condition on the plates under judgement, none of them a source that is scored."""
    name, comparison = target.sights.judges.extractors[0].name, target.comparison
    names = sorted(set(target.reference.condition_names[_on_plates(target)]))
    found = {}
    for condition in names:
        rows = target.rows_on(condition, target.plates)
        if condition == comparison.target:
            rows = by_name(target.reference, np.concatenate([comparison.reference, *comparison.floor]))
        if condition == comparison.source:
            rows = comparison.ceiling
        rows = rows[np.sort(np.random.default_rng([target.draws.seed, 5]).permutation(len(rows))[:_MOST])]
        if len(rows) >= 2:
            found[condition] = target.sights.reference.seen(rows).features[name].numpy().astype(np.float64)
    return found


def _on_plates(target: Target) -> Rows:
    split = target.reference.obs["Metadata_Split"].to_numpy()
    usable = split == split[target.comparison.sources[0]]
    return np.flatnonzero(usable & np.isin(target.reference.plates.astype(str), np.unique(target.plates)))
