"""A classifier of conditions, learnt from real images where none was given, so that anybody's images can be judged by what they look like."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.evaluation.drawing import Drawn
from cellbridge.evaluation.pools import Pool, blocks_of_places
from cellbridge.metrics.classification import accuracy

Logits = Callable[[Pool], NDArray[np.float64]]


def learn(pools: Drawn, extractor: str) -> Logits | None:
    """Return logits of the conditions, by a logistic regression on an extractor's features; None where there is one condition only.

    Learnt from the training images where they show all conditions, else from the real images and the half of the control that are in no
    row, conditions weighted alike.
    """
    names = pools.conditions
    if len(names) < 2:
        return None
    lessons = dict(pools.learnt) | (
        {} if pools.apart is None or pools.control is None else {pools.control: pools.apart}
    )
    if set(names) <= set(pools.train):
        lessons = pools.train
    logits = _regression({name: lessons[name].features[extractor] for name in names})
    return lambda pool: logits(pool.features[extractor])


def look(pools: Drawn, logits: Logits, *, draws: Mapping[str, int], held_out: str) -> dict[str, Any]:
    """Give every row's pool its logits, and return the accuracy on real images that the classifier has not seen.

    Parameters
    ----------
    held_out : what these images are, in words.
    """
    names = pools.conditions

    def looked_at(pool: Pool) -> Pool:
        return pool.with_logits(logits(pool))

    pools.models = {
        model: {name: looked_at(pool) for name, pool in made.items()} for model, made in pools.models.items()
    }
    pools.scored = None if pools.scored is None else looked_at(pools.scored)
    pools.bounds = {
        name: None if bounds is None else replace(bounds, reference=looked_at(bounds.reference))
        for name, bounds in pools.bounds.items()
    }
    unseen = {name: bounds.reference for name, bounds in pools.bounds.items() if bounds is not None}
    unseen |= {} if pools.scored is None or pools.control is None else {pools.control: pools.scored}
    return {"conditions": names} | _accuracy(unseen, names, pools, draws=draws, held_out=held_out)


def _regression(lessons: Mapping[str, NDArray[np.float64]]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Fit logits of conditions to features."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate(list(lessons.values()))
    labels = np.repeat(np.arange(len(lessons)), [len(part) for part in lessons.values()])
    fitted = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(features, labels)

    def logits(some: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.asarray(fitted.decision_function(some), dtype=np.float64)
        return np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found

    return logits


def _accuracy(
    unseen: Mapping[str, Pool], names: Sequence[str], pools: Drawn, *, draws: Mapping[str, int], held_out: str
) -> dict[str, Any]:
    if not unseen:
        return {"balanced_accuracy": {"not_computed": "too few real images of every condition"}}
    labels = np.concatenate([np.full(len(pool), names.index(name)) for name, pool in unseen.items()])
    logits = np.concatenate([pool.logits for pool in unseen.values()])
    keys = ("plates", "wells", "sites")
    places = [tuple(value for pool in unseen.values() for value in getattr(pool, key)) for key in keys]
    found = accuracy(logits, labels, names, blocks_of_places(*places), **draws)
    for entry in found["per_condition"].values():
        entry["held_out"] = held_out
        if pools.control is None:
            entry.pop("auc", None)  # it is against the first condition, which is no control
    return found
