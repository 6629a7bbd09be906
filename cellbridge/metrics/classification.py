"""Is it X? What a condition classifier, trained on other plates, says of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.intervals import Blocks, Estimate, percentile_interval, resampled_means, share
from cellbridge.metrics.intervals import bootstrap as bootstrap_means

Floats = NDArray[np.floating]


def target_hits(logits: Floats, target: int) -> NDArray[np.bool_]:
    """Return for each image (n, condition) → (n,) whether the target is the most likely of all the classifier's conditions."""
    return np.asarray(logits.argmax(axis=1) == target)


def log_odds(logits: Floats, target: int, control: int) -> NDArray[np.float64]:
    """Return log p(target) - log p(control) for each image, (n, condition) → (n,)."""
    return (logits[:, target] - logits[:, control]).astype(np.float64)


def moa_probabilities(logits: Floats, groups: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the probability of each mechanism of action, the sum over its conditions: (n, condition) → (n, mechanism).

    Parameters
    ----------
    groups : (condition,), number of each condition's mechanism, 0 to M - 1.
    """
    from scipy.special import softmax

    probabilities = softmax(logits.astype(np.float64), axis=1)
    members = np.arange(groups.max() + 1)[None, :] == groups[:, None]
    return np.asarray(probabilities @ members)


def moa_hits(logits: Floats, groups: NDArray[np.integer], moa: int) -> NDArray[np.bool_]:
    """Return for each image whether a mechanism of action is the most likely one, (n, condition) → (n,).

    Not the "MoA accuracy" of profiling (nearest neighbours among other compounds): what a classifier says of single cells.
    """
    return np.asarray(moa_probabilities(logits, groups).argmax(axis=1) == moa)


def logits_from_count(
    counts: Floats, *, training: tuple[Floats, NDArray[np.integer]], conditions: int
) -> NDArray[np.float64]:
    """Return what a classifier would say that sees nothing but how many cells a well holds, (well,) → (well, condition).

    log p(k | count) of linear discriminants on log count: one mean per condition, one variance within conditions, equal priors. The null row
    "cell count only"; its hits on real target wells are what counting alone achieves.

    Parameters
    ----------
    counts : cells in each well.
    training : counts and conditions of real training wells. A condition without a well there is never predicted (-inf).

    References
    ----------
    Cell count alone does unexpectedly well: Nat. Commun. 2026, s41467-026-68725-5.
    """
    values, labels = np.log1p(np.asarray(training[0], dtype=np.float64)), training[1]
    present = np.unique(labels)
    means = np.full(conditions, np.nan)
    means[present] = [values[labels == label].mean() for label in present]
    freedom = max(len(values) - len(present), 1)
    variance = max(float(((values - means[labels]) ** 2).sum()) / freedom, 1e-6)
    asked = np.log1p(np.asarray(counts, dtype=np.float64))
    found = -((asked[:, None] - means[None, :]) ** 2) / (2 * variance)
    return np.asarray(np.where(np.isfinite(found), found, -np.inf))


def balanced_accuracy(
    predicted: NDArray[np.integer], labels: NDArray[np.integer], blocks: Blocks, *, resamples: int, seed: int
) -> Estimate:
    """Estimate the mean over conditions of the share of cells that are recognised.

    1/K Σ_k P(predicted = k | label = k), over the K conditions that occur among `labels`.
    """
    present = np.unique(labels)
    of_condition = labels[:, None] == present[None, :]
    right = of_condition & (predicted == labels)[:, None]
    table = np.concatenate([right, of_condition], axis=1).astype(float)
    count = len(present)

    def mean_recall(means: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = means[:, :count] / means[:, count:]
        seen = np.isfinite(recall)
        return np.where(seen, recall, 0).sum(axis=1) / seen.sum(axis=1)  # a draw may hold no well of some condition

    return bootstrap_means(table, mean_recall, blocks, resamples=resamples, seed=seed)


def auc(scores: Floats, control_scores: Floats) -> float:
    """Return the probability that an image scores above a control image, ties counting half.

    Mann-Whitney U / (n m); 0.5 where the two cannot be told apart.
    """
    return float(_weighted_auc(scores, control_scores, np.ones((1, len(scores))), np.ones((1, len(control_scores))))[0])


def auc_estimate(
    scores: Floats, control_scores: Floats, blocks: tuple[Blocks, Blocks], *, resamples: int, seed: int
) -> Estimate:
    """Estimate the AUC of images against control images, with the bootstrap over the blocks of both."""
    value, n = auc(scores, control_scores), min(len(scores), len(control_scores))
    weights = [_copies(part, resamples=resamples, seed=seed + side) for side, part in enumerate(blocks)]
    if weights[0] is None or weights[1] is None:
        return Estimate(value, None, None, n, blocks[0].unit)
    low, high = percentile_interval(_weighted_auc(scores, control_scores, weights[0], weights[1]))
    return Estimate(value, low, high, n, blocks[0].unit)


def confusion(predicted: NDArray[np.integer], labels: NDArray[np.integer], *, conditions: int) -> NDArray[np.int64]:
    """Return counts (condition, predicted condition)."""
    table = np.zeros((conditions, conditions), dtype=np.int64)
    np.add.at(table, (labels, predicted), 1)
    return table


def accuracy(
    logits: Floats, labels: NDArray[np.integer], names: Sequence[str], blocks: Blocks, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return how well real cells are recognised: balanced accuracy, confusion, and recall and AUC against the control of each condition.

    Parameters
    ----------
    logits : (n, condition); the control is condition 0.
    labels : (n,), the true condition of each cell.
    names : of the conditions.
    """
    draws = {"resamples": resamples, "seed": seed}
    predicted, control = logits.argmax(axis=1), np.flatnonzero(labels == 0)
    per_condition: dict[str, Any] = {}
    for label, name in enumerate(names):
        own = np.flatnonzero(labels == label)
        if len(own) == 0:
            continue
        recall = share(predicted[own] == label, blocks.take(own), **draws)
        per_condition[name] = {"n": len(own), "recall": recall.to_dict()}
        if label and len(control):
            odds, sides = log_odds(logits, label, 0), (blocks.take(own), blocks.take(control))
            per_condition[name]["auc"] = auc_estimate(odds[own], odds[control], sides, **draws).to_dict()
    return {
        "balanced_accuracy": balanced_accuracy(predicted, labels, blocks, **draws).to_dict(),
        "per_condition": per_condition,
        "confusion": confusion(predicted, labels, conditions=len(names)).tolist(),
    }


def _copies(blocks: Blocks, *, resamples: int, seed: int) -> NDArray[np.float64] | None:
    """Return how often each cell is drawn, up to a factor per draw: (resamples, cell)."""
    return resampled_means(np.eye(len(blocks.codes)), blocks, resamples=resamples, seed=seed)


def _weighted_auc(
    scores: Floats, control_scores: Floats, weights: NDArray[np.float64], control_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    order = np.argsort(control_scores, kind="stable")
    cumulative = np.concatenate([np.zeros((len(control_weights), 1)), control_weights[:, order].cumsum(axis=1)], axis=1)
    below = cumulative[:, np.searchsorted(control_scores[order], scores, side="left")]
    up_to = cumulative[:, np.searchsorted(control_scores[order], scores, side="right")]
    wins = (weights * (below + up_to) / 2).sum(axis=1)
    return np.asarray(wins / (weights.sum(axis=1) * control_weights.sum(axis=1)))
