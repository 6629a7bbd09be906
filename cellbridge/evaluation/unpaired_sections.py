"""What one distance cannot see of images that are no translations: neighbourhoods, rank, repeats, copies of training images, stains, own sources."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.evaluation.pools import Pool
from cellbridge.evaluation.scenes import Scene
from cellbridge.evaluation.sections import Column, Section, absent, share, table
from cellbridge.metrics.channels import Stained, channel_evidence
from cellbridge.metrics.identity import identity_retrieval, pixel_signature, transport_cost
from cellbridge.metrics.intervals import Blocks, Estimate, corrected_level, wilson
from cellbridge.metrics.memorisation import Memorisation, memorisation
from cellbridge.metrics.mmd import permutation_p, rank_of_condition
from cellbridge.metrics.neighbours import precision_recall_density_coverage
from cellbridge.metrics.variety import repeats

_CHARGES = ("training images", "channels")
_CHARGE_LEVEL = corrected_level(len(_CHARGES))
"""Of each charge that looks for a failure in places of its own, at which both hold together at the usual one."""
_NEIGHBOURS = 5
_PERMUTATIONS = 199
_GROUPS = 20


def neighbourhoods(scene: Scene) -> Section:
    """Compare every row with the reference draw of real images: do they overlap, and which condition lies nearest?"""
    title = "Overlap with real images"
    if scene.bounds is None or len(scene.bounds) <= _NEIGHBOURS:
        return absent("neighbourhood", title, f"more than {_NEIGHBOURS} real images in each of three draws are needed")
    size, reference = len(scene.bounds), scene.bounds.reference
    rows = []
    for row in scene.rows:
        pool = scene.bounds.floor[0] if row.kind == "real" else row.pool
        if len(pool) < size:
            continue
        some = pool.take(np.arange(size))
        rows.append({"name": row.name, "key": row.key, "kind": row.kind} | _overlap(scene, reference, some))
    about = (
        f"Precision: share of the row's images within the neighbourhoods (k = {_NEIGHBOURS}) of real ones; recall: of real ones within the row's. "
        "MMD² with a Gaussian kernel, p by relabelling. Rank: of the target among real conditions, the nearest first."
    )
    columns = [share("precision", "precision"), share("recall", "recall"), Column("density", "density")]
    columns += [share("coverage", "coverage"), Column("mmd2", "MMD² × 10³", digits=2, factor=1e3)]
    columns += [Column("p", "p", digits=3), Column("rank", "rank"), Column("nearest", "nearest condition")]
    notes = [f"{size} images in every row; in the features of {scene.extractor}."]
    return table("neighbourhood", title, about, columns=columns, rows=rows, notes=notes)


def _overlap(scene: Scene, reference: Pool, some: Pool) -> dict[str, Any]:
    real, made = reference.features[scene.extractor], some.features[scene.extractor]
    around = precision_recall_density_coverage(
        real, made, k=_NEIGHBOURS, blocks=(reference.blocks, some.blocks), **scene.draws
    )
    test = permutation_p(
        made,
        real,
        blocks=(some.blocks, reference.blocks),
        permutations=_PERMUTATIONS,
        seed=scene.draws["seed"],
    )
    found = {name: getattr(around, name) for name in ("precision", "recall", "density", "coverage")}
    found |= {"mmd2": {"value": test.mmd2}, "p": {"value": test.p}}
    others = {name: pool.features[scene.extractor] for name, pool in scene.others.items()}
    if not others:
        return found
    rank, distances = rank_of_condition(made, others | {scene.target: real}, scene.target)
    nearest = min(distances, key=lambda name: distances[name])
    return found | {"rank": {"text": f"{rank} of {len(distances)}"}, "nearest": {"text": nearest}}


def copies(scene: Scene) -> tuple[Section, dict[str, dict[str, Any]], dict[str, dict[str, NDArray[Any]]]]:
    """Look for images that repeat one another, and for copies of training images.

    Returns
    -------
    the section; the evidence for each model's verdict; and of each model, column → value per image.
    """
    real = scene.real
    usual = _repeated(real)
    rows: list[dict[str, Any]] = []
    evidence: dict[str, dict[str, Any]] = {}
    cells: dict[str, dict[str, NDArray[Any]]] = {}
    for row in scene.models:
        own = _repeated(row.pool)
        found = _memorised(scene, row.pool, real)
        entry: dict[str, Any] = {"name": row.name, "key": row.key, "kind": row.kind, "repeats": own["share"]}
        entry["distinct"] = {"value": own["distinct"]}
        evidence[row.key] = {"repeats": own | {"sources": usual["share"]}}
        if isinstance(found, str):
            entry |= {name: {"not_computed": found} for name in ("copied", "held_out", "excess")}
        else:
            entry |= {name: getattr(found, name) for name in ("copied", "held_out", "excess")}
            evidence[row.key]["memorisation"] = found.to_dict()
            cells[row.key] = {
                "nearest_training_cell": np.array(scene.pools.train[scene.target].ids, dtype=object)[found.nearest.row],
                "nearest_training_distance": found.nearest.distance,
                "nearest_training_ratio": found.nearest.ratio,
            }
        rows.append(entry)
    rows.append(
        {"name": "real images", "kind": "real", "repeats": usual["share"], "distinct": {"value": usual["distinct"]}}
    )
    about = (
        "Repeats: share of images that are another one's copy, flips and turns included. Copies of training images: share that lies nearer to one "
        "training image, against the next, than any of one half of the real ones; the other half is the column beside it."
    )
    columns = [share("repeats", "repeats"), Column("distinct", "distinct", digits=0)]
    columns += [
        share("copied", "copies of training images"),
        share("held_out", "real images"),
        share("excess", "difference"),
    ]
    return table("memorisation", "Are they copies?", about, columns=columns, rows=rows), evidence, cells


def _repeated(pool: Pool) -> dict[str, Any]:
    found = repeats(pool.images)
    low, high = wilson(round(found.share * found.n), found.n, level=_CHARGE_LEVEL)
    estimate = Estimate(found.share, low, high, found.n, "images")
    return {"share": estimate.to_dict(), "distinct": found.distinct, "most": found.most}


def _memorised(scene: Scene, pool: Pool, real: Pool) -> Memorisation | str:
    """Return the test for copies of training images, or why there is none."""
    training = scene.pools.train.get(scene.target)
    if training is None or len(training) < 2:
        return "no training images of this condition were given (train)"
    if pool.images.shape[-1] != pool.images.shape[-2]:
        return "images are not square, so they cannot be turned"
    found = memorisation(
        pool.images, training.images, real.images, (pool.blocks, real.blocks), level=_CHARGE_LEVEL, **scene.draws
    )
    return "fewer than four real images" if found is None else found


def stains(scene: Scene) -> tuple[Section, dict[str, list[dict[str, Any]]]]:
    """Look at each channel by itself, beside real images and the control; with the evidence for each model's verdict."""
    title = "Channel by channel"
    control = scene.pools.apart
    if control is None:
        return absent("channels", title, "no control was given (control)"), {}
    found = {}
    for row in scene.models:
        # Nothing is paired: as many controls stand for the sources, which the effect's average does not mind.
        sources = control.take(np.arange(len(row.pool)) % len(control))
        found[row.key] = [
            part.to_dict()
            for part in channel_evidence(
                _stained(row.pool),
                _stained(sources),
                _stained(scene.real),
                _stained(control),
                channels=scene.channels,
                level=_CHARGE_LEVEL,
                **scene.draws,
            )
        ]
    columns = [share("empty", "without structure"), share("repeated", "all alike"), Column("findings", "found")]
    rows = [
        {"name": f"{row.name}: {part['channel']}", "key": row.key, "kind": "model"}
        | {
            "empty": part["empty"],
            "repeated": part["repeated"],
            "findings": {"text": "; ".join(part["findings"]) or "–"},
        }
        for row in scene.models
        for part in found[row.key]
    ]
    about = "Share of images with less structure in a channel, or more alike in it, than all but 5 % of real images or pairs of them."
    return table("channels", title, about, columns=columns, rows=rows), found


def _stained(pool: Pool) -> Stained:
    """Return images with blocks that can be halved: groups of images where each was a block of its own."""
    blocks = pool.blocks
    if blocks.count == len(pool):
        blocks = Blocks(np.arange(len(pool), dtype=np.int64) % min(_GROUPS, max(2, len(pool) // 4)), blocks.unit)
    return Stained(pool.images, np.array(pool.plates, dtype=object), blocks)


def own_sources(scene: Scene) -> tuple[Section, dict[str, dict[str, Any]]]:
    """Ask whether an output finds its source, the image of the same name, among all sources; with the evidence for each model's verdict."""
    title = "Is it still this cell?"
    given = scene.pools.source
    if given is None:
        return absent("identity", title, "no source images were given (source)"), {}
    place = {name: index for index, name in enumerate(given.ids)}
    rows, evidence, notes = [], {}, []
    for row in scene.models:
        paired = [index for index, name in enumerate(row.pool.ids) if name in place]
        notes.append(f"{row.name}: {len(paired)} of {len(row.pool)} images have a source of their name.")
        if len(paired) < 2:
            continue
        made = row.pool.take(np.array(paired, dtype=np.int64))
        sources = given.images[[place[row.pool.ids[index]] for index in paired]]
        outputs, originals = pixel_signature(made.images), pixel_signature(sources)
        found = identity_retrieval(outputs, originals, plates=None, blocks=made.blocks, **scene.draws)
        cost = transport_cost(outputs, originals, made.blocks, **scene.draws).relative
        evidence[row.key] = found.to_dict()
        rows.append(
            {"name": row.name, "key": row.key, "kind": "model", "top_1": found.top_1, "chance": {"value": found.chance}}
            | {"auc": found.auc, "rank": found.median_rank, "cost": cost or {"not_computed": "all pairings cost alike"}}
        )
    if not rows:
        return absent("identity", title, "no image has the name of a source"), {}
    columns = [share("top_1", "own source nearest"), share("chance", "by chance"), share("auc", "others farther")]
    columns += [Column("rank", "median rank", digits=1), Column("cost", "cost of the pairs")]
    about = "Outputs and sources are paired by name. Cost: 0 as cheap as the best one-to-one pairing, 1 as if exchanged at random."
    return table("identity", title, about, columns=columns, rows=rows, notes=notes), evidence
