"""The extractors and the classifier of an evaluation, opened; what cannot be had is said, and nothing stands in for it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cellbridge.assembly import load_classifier
from cellbridge.data.comparison import by_name
from cellbridge.data.store import Store
from cellbridge.errors import ModelError
from cellbridge.evaluation.sight import Judges
from cellbridge.metrics.features import Extractor, standardised
from cellbridge.metrics.foreign import foreign_extractor, inception, read_foreign_weights
from cellbridge.networks.classifier import Classifier, extractor_name, logits_of, weights_sha256
from cellbridge.runs import RunDir
from cellbridge.runtime import pick_device

_STANDARD_CELLS = 1000
"""Training cells that features are standardised on, at most."""


def open_judges(
    classifier: Path, reference: Store, *, extractors: Sequence[str], inception_weights: Path | None, device: str
) -> Judges:
    """Open the classifier, its features as the first extractor, and the extractors that were asked for.

    Parameters
    ----------
    extractors : names of further ones, as `metrics.foreign` reads them; "morphology" measures what CellProfiler would.

    Raises
    ------
    ModelError, CheckpointError : the classifier, or the Inception's weights, cannot be read.
    """
    where = pick_device(device)
    network, card = load_classifier(classifier, device=where)
    directory = RunDir(classifier).model
    own = Extractor(
        extractor_name(directory), weights_sha256(directory), lambda images: network.features(images.to(where))
    )
    some, name = _standard_cells(reference)
    images = torch.from_numpy(reference.images(some))
    opened, missing = [standardised(own, images, name=name)], {}
    for wanted in extractors:
        try:
            opened.append(
                standardised(named_extractor(wanted, reference.info.channels, device=where), images, name=name)
            )
        except ModelError as error:
            missing[wanted] = str(error)
    if inception_weights is None:
        missing["inception"] = "no weights were given (inception_weights)"
    else:
        state, sha256 = read_foreign_weights(inception_weights)
        opened.append(inception(state, sha256=sha256))
    return Judges(tuple(opened), _logits(network), tuple(card["conditions"]), missing)


def _standard_cells(reference: Store) -> tuple[np.ndarray, str]:
    """Choose real cells that features are standardised on, of the training split where there is one, and say what they are."""
    training = np.flatnonzero((reference.obs["Metadata_Split"] == "train").to_numpy())
    rows = by_name(reference, training if len(training) else np.arange(len(reference.obs)))
    some = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:_STANDARD_CELLS])]
    return some, f"{len(some)} {'training' if len(training) else 'real'} cells"


def _logits(network: Classifier) -> Callable[[Tensor], np.ndarray]:
    def logits(images: Tensor) -> np.ndarray:
        return np.asarray(torch.cat([logits_of(network, part) for part in images.split(256)]).numpy())

    return logits


def named_extractor(wanted: str, channels: Sequence[str], *, device: torch.device) -> Extractor:
    """Return the extractor of a name: what is measured without a network, or a network by its weights file."""
    if wanted in ("morphology", "cp_measure"):
        from cellbridge.metrics.morphology import morphology_extractor

        return morphology_extractor(channels, by="cp_measure" if wanted == "cp_measure" else "cellbridge")
    return foreign_extractor(wanted, device=device)
