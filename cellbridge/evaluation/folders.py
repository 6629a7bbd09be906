"""Judge images that cellbridge did not make, out of folders, array files or stores, by the same rules as its own translations.

Pools are independent samples; nothing is paired but, by name, with given sources.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cellbridge.evaluation.drawing import Drawn, Sets, draw
from cellbridge.evaluation.learning import Logits, learn, look
from cellbridge.evaluation.null_pools import null_rows
from cellbridge.evaluation.pools import Pool, images_of, intensity_map, pool_of, require_alike
from cellbridge.evaluation.same_images import require_distinct
from cellbridge.evaluation.scenes import Scene, cell_table, shown_images
from cellbridge.evaluation.sections import Column, Section, table
from cellbridge.evaluation.unpaired import Row, bias_notes, score_rows
from cellbridge.evaluation.unpaired_sections import copies, neighbourhoods, own_sources, stains
from cellbridge.metrics.classification import log_odds, target_hits
from cellbridge.metrics.contrasts import share_difference, student_difference
from cellbridge.metrics.features import Extractor, extract, standardised
from cellbridge.metrics.variety import classifier_score
from cellbridge.metrics.verdict import judge
from cellbridge.progress import bar

_STANDARD_IMAGES = 1000


@dataclass(frozen=True)
class Judged:
    """What was found.

    Parameters
    ----------
    metrics : the computed parts of metrics.json: targets, classifier, extractors, notes and sections.
    cells : one row per (target, row, image).
    shown : target → name → some images, (n, channel, height, width), for pictures; "nearest …" are the real images nearest to a model's.
    """

    metrics: dict[str, Any]
    cells: pd.DataFrame
    shown: dict[str, dict[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class Looking:
    """What looks at images.

    Parameters
    ----------
    extractors : standardised; the first gives the main table's columns.
    logits : of the conditions; None where nothing tells them apart.
    draws : `resamples` and `seed`.
    """

    extractors: Sequence[Extractor]
    logits: Logits | None
    draws: Mapping[str, int]

    def at(self, images: NDArray[np.float32], like: Pool) -> Pool:
        """Return images that were made from a pool's, with what is seen in them."""
        shown = torch.from_numpy(images)
        features = {part.name: extract(part, shown).numpy().astype(np.float64) for part in self.extractors}
        empty = np.zeros((len(images), 0))
        pool = Pool(images, features, empty, like.blocks, like.ids, like.plates, like.wells, like.sites)
        return pool if self.logits is None else pool.with_logits(self.logits(pool))


def judge_sets(
    sets: Sets,
    extractors: Sequence[Extractor],
    *,
    classifier: tuple[Sequence[str], Callable[[torch.Tensor], NDArray[np.floating]]] | None = None,
    intensity: str,
    n: int | None,
    resamples: int,
    seed: int,
) -> Judged:
    """Judge every condition of the generated sets beside real images of it.

    Parameters
    ----------
    extractors : not standardised; the first gives the main table's columns.
    classifier : its conditions and its logits of images; by default one is learnt.
    intensity : "linear", or "asinh" fitted once on the control, or else on the real images.
    n : images per row of distances, at most.

    Raises
    ------
    ImageError : sets that differ in size or channels, or conditions that no real image shows.
    LeakError : generated images that are real ones, or real ones that are training images.
    """
    require_alike(sets.named())
    require_distinct(sets)
    maps = intensity_map(sets.control or sets.real, intensity)
    images = {name: images_of(found, maps) for name, found in sets.named().items()}
    standard, words = _standard(images, seed=seed)
    scaled = [standardised(part, torch.from_numpy(standard), name=words) for part in extractors]
    seen = {name: pool_of(found, images[name], scaled) for name, found in sets.named().items()}
    pools = draw(sets, seen, n=n, seed=seed)
    draws = {"resamples": resamples, "seed": seed}
    logits, held_out = _given(classifier, pools), "images that nothing is known to have learnt from"
    if logits is None:
        logits, held_out = learn(pools, scaled[0].name), "images that it was not learnt from"
    found: dict[str, Any] = {"conditions": [], "balanced_accuracy": {"not_computed": "one condition, and no control"}}
    if logits is not None:
        found = look(pools, logits, draws=draws, held_out=held_out)
    looking = Looking(scaled, logits, draws)
    targets = list(dict.fromkeys(name for made in pools.models.values() for name in made))
    scenes = [_scene(target, pools, looking, sets.real.channels) for target in targets]
    judged = []
    with bar("evaluate", total=len(scenes), unit="targets") as progress:
        for scene in scenes:
            progress.show(f"{scene.target}, {len(scene.rows)} rows")
            judged.append(_judge_target(scene, looking, found))
            progress.advance()
    metrics = {
        "extractors": [_described(part, seen["real"]) for part in scaled],
        "classifier": found,
        "targets": [part for part, _ in judged],
        "sections": [_variety(pools, draws)] if logits is not None and len(pools.conditions) > 2 else [],
        "notes": _notes(sets, pools, learnt=logits is not None and _given(classifier, pools) is None),
    }
    tables = pd.concat([part for _, part in judged], ignore_index=True)
    return Judged(metrics, tables, {scene.target: shown_images(scene) for scene in scenes})


def _described(extractor: Extractor, pool: Pool) -> dict[str, Any]:
    features = int(pool.features[extractor.name].shape[1])
    return {"name": extractor.name, "sha256": extractor.sha256, "features": features}


def _standard(images: Mapping[str, NDArray[np.float32]], *, seed: int) -> tuple[NDArray[np.float32], str]:
    """Choose the images that features are standardised on: training images where there are some."""
    role = "train" if "train" in images else "real"
    found = images[role]
    some = np.sort(np.random.default_rng([seed, 4]).permutation(len(found))[:_STANDARD_IMAGES])
    return found[some], f"{len(some)} {'training' if role == 'train' else 'real'} images"


def _given(
    classifier: tuple[Sequence[str], Callable[[torch.Tensor], NDArray[np.floating]]] | None, pools: Drawn
) -> Logits | None:
    """Return a given classifier's logits of the conditions at hand; None where it does not know all of them."""
    if classifier is None or not set(pools.conditions) <= set(classifier[0]) or len(pools.conditions) < 2:
        return None
    known, of_images = classifier
    columns = [list(known).index(name) for name in pools.conditions]
    return lambda pool: np.asarray(of_images(torch.from_numpy(pool.images)), dtype=np.float64)[:, columns]


def _scene(target: str, pools: Drawn, looking: Looking, channels: Sequence[str]) -> Scene:
    rows = _rows(target, pools, looking)
    bounds = pools.bounds[target]
    column = None if looking.logits is None or bounds is None else pools.conditions.index(target)
    return Scene(target, rows, bounds, pools, looking.extractors[0].name, channels, column, looking.draws)


def _judge_target(scene: Scene, looking: Looking, accuracies: Mapping[str, Any]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return one target's part of metrics.json, but for its figures, and the values of its single images."""
    target, rows, pools = scene.target, scene.rows, scene.pools
    names = [part.name for part in looking.extractors]
    scores = score_rows(
        rows, scene.bounds, extractors=names, target=scene.column, control=scene.control, draws=looking.draws
    )
    of_copies, copied, cells = copies(scene)
    (of_stains, stained), (of_sources, identity) = stains(scene), own_sources(scene)
    by_section: dict[str, Mapping[str, Any]] = {"channels": stained, "identity": identity}
    separable = accuracies.get("per_condition", {}).get(target, {}).get("auc")
    settings = {"target": target, "control": pools.control or "control", "separable": separable}
    verdicts = [
        {"model": row.name, "key": row.key}
        | judge(scores["rows"], row.key, evidence=_evidence(row, scene, copied, by_section), **settings).to_dict()
        for row in scene.models
    ]
    return {
        "target": target,
        "source": pools.control or "no control",
        "n": min(len(row.pool) for row in scene.models),
        "plates": sorted({plate for row in scene.models for plate in row.pool.plates if plate}),
        **dict.fromkeys(("n_wells", "n_sites", "n_lost", "n_unmatched", "n_truth", "n_responders"), 0),
        "resampled": rows[0].pool.blocks.unit,
        **scores,
        "verdicts": verdicts,
        "noise": {"not_computed": "images alone do not tell x_T"},
        "nuclei": {},
        "sections": [neighbourhoods(scene), of_sources, of_stains, of_copies],
        "notes": bias_notes(scores),
    }, cell_table(scene, cells)


def _evidence(
    row: Row, scene: Scene, copied: Mapping[str, Mapping[str, Any]], by_section: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what the sections found of one model, as its verdict takes it."""
    found = {name: of[row.key] for name, of in by_section.items() if row.key in of}
    return {**copied[row.key], **found, **_shuffled(row, scene)}


def _rows(target: str, pools: Drawn, looking: Looking) -> list[Row]:
    """Return the rows of a target's table: models, what they must beat, and real images."""
    models = [
        Row(f"model:{name}", name, "model", made[target]) for name, made in pools.models.items() if target in made
    ]
    rows = [*models, *null_rows(target, models, pools, looking.at)]
    for name, made in pools.models.items():
        others = [pool.renamed(condition) for condition, pool in made.items() if condition != target]
        if others and target in made:
            rows.append(Row(f"shuffled:model:{name}", f"other conditions ({name})", "null", _joined(others)))
    bounds = pools.bounds[target]
    real = pools.real[target] if bounds is None else bounds.reference
    return [*rows, Row("real", f"real {target} (floor)", "real", real)]


def _joined(pools: Sequence[Pool]) -> Pool:
    """Put pools together in turn, so that the first images of the whole are of all of them."""
    shares = np.concatenate([(np.arange(len(pool)) + 0.5) / len(pool) for pool in pools])
    order = np.argsort(shares, kind="stable")
    joined = pools[0]
    for pool in pools[1:]:
        joined = joined.joined(pool)
    return joined.take(order)


def _shuffled(row: Row, scene: Scene) -> dict[str, Any]:
    """Return what images of the right condition gain over the same model's images of others."""
    other = next((part for part in scene.rows if part.key == f"shuffled:{row.key}"), None)
    if other is None or scene.column is None:
        return {}
    column, blocks = scene.column, (row.pool.blocks, other.pool.blocks)
    hits, others = (target_hits(part.pool.logits, column) for part in (row, other))
    odds, beside = (log_odds(part.pool.logits, column, scene.beside) for part in (row, other))
    gain = {
        "hits": share_difference(hits, others, blocks),
        "log_odds": student_difference(odds, beside, blocks),
    }
    return {"shuffled": {name: found.to_dict() for name, found in gain.items()}}


def _variety(pools: Drawn, draws: Mapping[str, int]) -> Section:
    """Score how far the conditions' images differ to the classifier, each model's beside real images of the same conditions."""
    rows = []
    for name, made in pools.models.items():
        real = {key: bounds.reference for key, bounds in pools.bounds.items() if bounds is not None and key in made}
        size = min((len(pool) for pool in (*real.values(), *(made[key] for key in real))), default=0)
        if len(real) < 2 or size < 2:
            continue
        for words, of in ((name, made), (f"real images, conditions of {name}", real)):
            some = _joined([of[key].take(np.arange(size)) for key in real])
            found = classifier_score(some.logits, blocks=some.blocks, **draws)
            rows.append({"name": words, "kind": "model" if of is made else "real", "score": found})
    about = "exp E KL(p(y|x) ‖ p(y)), as the Inception score, by the classifier of conditions: 1 where all images look alike to it."
    return table("variety", "Do conditions differ?", about, columns=[Column("score", "classifier score")], rows=rows)


def _notes(sets: Sets, pools: Drawn, *, learnt: bool) -> list[str]:
    notes = [
        f"{name} images: {len(found)} of {found.path.name}, sha256 {found.sha256[:12]}…"
        for name, found in sets.named().items()
    ]
    notes += _other_scales(sets)
    if pools.control is None:
        notes.append("No control was given: how much of the way from control to target is gone is not known.")
    if sets.train is None:
        notes.append("No training images were given: whether they are returned was not tested.")
    if learnt and len(pools.conditions) > 1:
        where = "training images" if set(pools.conditions) <= set(pools.train) else "real images that are in no row"
        notes.append(f"The classifier was learnt here: a logistic regression on the first features, from {where}.")
    if not all(pool.wells and all(pool.wells) for made in pools.models.values() for pool in made.values()):
        notes.append(
            "Wells are not known, so images are taken for independent: intervals are too narrow where cells share a well."
        )
    return notes


def _other_scales(sets: Sets) -> list[str]:
    """Say of each set that is stored on another scale than the real images how bright it is: 8-bit counts in a 16-bit file come out black."""
    real, notes = sets.real, []
    for name, found in sets.named().items():
        if found.span != real.span:
            scales = [f"{part.span[0]:g} to {part.span[1]:g}" for part in (found, real)]
            brightest = [f"{float(part.values.max()):g}" for part in (found, real)]
            notes.append(
                f"{name} images are read on a scale of {scales[0]} (brightest value {brightest[0]}), real images of {scales[1]} "
                f"({brightest[1]}). Where that is not meant, store both in one type, or set images.full_scale."
            )
    return notes
