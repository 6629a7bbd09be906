"""One target of an evaluation: its table, its sections and the verdict on every model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellbridge.data.comparison import Comparison
from cellbridge.data.store import Store
from cellbridge.evaluation.arms import Sights, arms_of, draws_of, truth_of
from cellbridge.evaluation.noise import judge_noises, noises_of
from cellbridge.metrics.scorecard import Arm, Judge, Truth, score_target
from cellbridge.metrics.verdict import judge


@dataclass(frozen=True)
class Draws:
    """How intervals and draws are made: bootstrap draws of each interval, and the seed of all."""

    resamples: int
    seed: int

    @property
    def settings(self) -> dict[str, int]:
        return {"resamples": self.resamples, "seed": self.seed}


@dataclass(frozen=True)
class Target:
    """What is judged together: the cells, the arms over them, and what is known of their truth."""

    sights: Sights
    comparison: Comparison
    arms: tuple[Arm, ...]
    truth: Truth | None
    draws: Draws
    notes: tuple[str, ...]

    @property
    def reference(self) -> Store:
        return self.sights.reference.store

    @property
    def models(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.kind == "model"]

    def arm(self, key: str) -> Arm | None:
        """Return the arm of that key, if there is one."""
        return next((arm for arm in self.arms if arm.key == key), None)


def make_target(sights: Sights, comparison: Comparison, draws: Draws) -> Target:
    """Make the arms of one target, looking at every image once."""
    truth_store = None if sights.truth is None else sights.truth.store
    truth, of_truth = truth_of(sights.reference.store, truth_store, comparison)
    arms, notes = arms_of(sights, comparison, truth, seed=draws.seed)
    return Target(sights, comparison, tuple(arms), truth, draws, (*notes, *of_truth))


def score(target: Target, classifier: Mapping[str, Any]) -> dict[str, Any]:
    """Score one target.

    Parameters
    ----------
    classifier : its accuracy on real cells, which says what it can tell apart.

    Returns
    -------
    the target's part of `metrics.json`, but for its figures.
    """
    comparison, judges = target.comparison, target.sights.judges
    names = judges.conditions
    scoring = Judge(
        extractors=[extractor.name for extractor in judges.extractors],
        target=names.index(comparison.target) if comparison.target in names else None,
        control=names.index(comparison.source) if comparison.source in names else 0,
        **target.draws.settings,
    )
    scores = score_target(target.arms, draws_of(target.sights.reference, comparison), truth=target.truth, judge=scoring)
    separable = classifier.get("per_condition", {}).get(comparison.target, {}).get("auc")
    words = {"target": comparison.target, "control": comparison.source, "separable": separable}
    noises = noises_of(target.sights.translated.store, comparison)
    truth = target.truth
    return {
        "target": comparison.target,
        "source": comparison.source,
        "n": len(comparison.sources),
        **_places(target.reference, comparison),
        "n_lost": comparison.lost,
        "n_unmatched": comparison.unmatched,
        "n_truth": 0 if truth is None else int(truth.known.sum()),
        "n_responders": 0 if truth is None else int((truth.responds & truth.known).sum()),
        "resampled": target.arms[0].blocks.unit,
        **scores,
        "verdicts": [
            {"model": arm.name, "key": arm.key} | judge(scores["rows"], arm.key, **words).to_dict()
            for arm in target.models
        ],
        "noise": judge_noises(noises, target.reference, comparison, **target.draws.settings),
        "nuclei": {},
        "sections": [],
        "notes": [*target.notes, *_bias(scores["distances"])],
    }


def _places(reference: Store, comparison: Comparison) -> dict[str, Any]:
    """Return from which plates, and from how many wells and sites, the source cells come."""
    table = reference.obs.iloc[comparison.sources]
    place = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    wells, sites = (len(table.drop_duplicates(place[:depth])) for depth in (2, 3))
    return {"plates": sorted(set(table["Metadata_Plate"])), "n_wells": wells, "n_sites": sites}


def _bias(distances: Mapping[str, Any]) -> list[str]:
    return [
        f"Fréchet distance ({name}): {found['n']} images for {found['features']} features: mostly bias; compare rows of this table only."
        for name, found in distances.items()
        if found["n"] <= found["features"]
    ]
