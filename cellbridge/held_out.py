"""How well a classifier tells the conditions of cells that were held out, of clean images and of images at several levels of noise."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellbridge.data.store import Store
from cellbridge.diffusion.schedule import Schedule
from cellbridge.metrics import classification
from cellbridge.metrics.intervals import blocks_of
from cellbridge.networks.classifier import Classifier, logits_of
from cellbridge.networks.noisy_classifier import NoisyClassifier, noisy_logits_of
from cellbridge.runtime import derive_seed, noise_per_image

RESAMPLES = 1000
CELLS_AT_ONCE = 1024
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of T at which a classifier of noisy images is judged."""


def judged(
    classifier: Classifier, store: Store, rows: np.ndarray, *, names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return what `metrics.classification.accuracy` says of the cells, with how many, of which plates."""
    found = _accuracy(lambda images, _: logits_of(classifier, images), store, rows, names=names, seed=seed)
    return _described(store, rows, names) | found


def judged_under_noise(
    classifier: NoisyClassifier,
    store: Store,
    rows: np.ndarray,
    *,
    names: Sequence[str],
    seed: int,
    schedule: Schedule,
) -> dict[str, Any]:
    """Return the same at each of `TIMES`, as a list under `times`; a cell has the same noise at all of them.

    Parameters
    ----------
    schedule : on the CPU.
    """
    by_time = []
    for share in TIMES:
        t = share * schedule.steps - 1

        def logits(images: Tensor, cells: Sequence[str], t: float = t) -> Tensor:
            seeds = torch.tensor([derive_seed("held out", seed, cell) for cell in cells])
            epsilon = noise_per_image(seeds, tuple(images.shape[1:]), purpose="held out")
            alpha, sigma = schedule.coefficients(torch.full((len(images),), t), images)
            return noisy_logits_of(classifier, alpha * images + sigma * epsilon, t)

        found = _accuracy(logits, store, rows, names=names, seed=seed)
        by_time.append({"t": t, "alpha": schedule.alpha(torch.tensor(t)).item(), **found})
    return _described(store, rows, names) | {"times": by_time}


def _described(store: Store, rows: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    return {"n": len(rows), "plates": sorted(set(store.plates[rows])), "chance": 1 / len(names)}


def _accuracy(
    logits: Callable[[Tensor, Sequence[str]], Tensor],
    store: Store,
    rows: np.ndarray,
    *,
    names: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Return the accuracy of logits that are a function of (images, cell ids)."""
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([index[name] for name in store.condition_names[rows]])
    columns = (store.obs[f"Metadata_{key}"].to_numpy(dtype=object)[rows] for key in ("Plate", "Well", "Site"))
    parts = [rows[i : i + CELLS_AT_ONCE] for i in range(0, len(rows), CELLS_AT_ONCE)]
    cells = store.obs["Metadata_Cell"]
    found = torch.cat([logits(torch.from_numpy(store.images(part)), list(cells.iloc[part])) for part in parts])
    return classification.accuracy(
        found.numpy(), labels, list(names), blocks_of(*columns), resamples=RESAMPLES, seed=seed
    )
