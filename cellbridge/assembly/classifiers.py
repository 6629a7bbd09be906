"""Published classifiers, opened: of clean images, to judge and to describe cells, and of noisy ones, to guide their sampling."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cellbridge.assembly.bases import Base, build_schedule
from cellbridge.config import NoiseConfig
from cellbridge.errors import ConditionError, ModelError, did_you_mean
from cellbridge.networks.classifier import (
    Classifier,
    built_with_weights,
    load_classifier_directory,
    read_classifier_card,
)
from cellbridge.networks.noisy_classifier import NoisyClassifier
from cellbridge.runs import RunDir


@dataclass(frozen=True)
class Guide:
    """A classifier of noisy images, the conditions that its classes are, and the plates that it was trained on."""

    path: Path
    network: NoisyClassifier
    conditions: tuple[str, ...]
    plates: tuple[str, ...]

    def of(self, condition: str) -> tuple[NoisyClassifier, int]:
        """Return the network and the class of a condition; raise ConditionError where it tells no such condition apart."""
        if condition not in self.conditions:
            raise ConditionError(
                f'{self.path}: the classifier tells {list(self.conditions)} apart, not "{condition}". Train one that knows it: '
                f"`cellbridge train-classifier --set noise={{}}`.{did_you_mean(condition, self.conditions)}"
            )
        return self.network, self.conditions.index(condition)


def load_classifier(path: Path, *, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """Open a `train-classifier` run's model and its card.

    Raises
    ------
    ModelError : it is a classifier of noisy images.
    """
    directory = RunDir(path).require_model()
    classifier, card = load_classifier_directory(directory)
    return classifier.to(device).eval(), card


def load_guide(path: Path, base: Base) -> Guide:
    """Open a classifier of noisy images that is to guide a base.

    Raises
    ------
    ModelError : it was trained on clean images, on other channels or another size, or on another noise schedule.
    """
    directory = RunDir(path).require_model()
    card = read_classifier_card(directory)
    if card.get("noise") is None:
        raise ModelError(
            f"{path}: was trained on clean images, and its gradient at noisy ones means nothing. Train a classifier of noisy ones: "
            "`cellbridge train-classifier --set noise={}`, with the base's schedule."
        )
    if tuple(card["channels"]) != base.card.channels or card["size_px"] != base.card.size_px:
        raise ModelError(
            f"{path}: the classifier was trained on {card['size_px']} px of {card['channels']}, but the base makes "
            f"{base.card.size_px} px of {list(base.card.channels)}. Train one on the base's store."
        )
    schedule = build_schedule(NoiseConfig.model_validate(card["noise"]))
    if not torch.equal(schedule.alpha_bar, base.schedule.alpha_bar.cpu()):
        raise ModelError(
            f"{path}: the classifier knows the noise of {card['noise']}, which is not the base's. Train one with "
            f"noise: {base.card.schedule.model_dump(include=set(NoiseConfig.model_fields))}."
        )
    network = built_with_weights(NoisyClassifier, directory).eval().requires_grad_(False)
    network = network.to(base.schedule.alpha_bar.device)
    return Guide(path, network, tuple(card["conditions"]), tuple(card["plates"]))
