"""Published classifiers, opened."""

from pathlib import Path
from typing import Any

import torch

from cellbridge.networks.classifier import Classifier, load_classifier_directory
from cellbridge.runs import RunDir


def load_classifier(path: Path, *, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """Open a `train-classifier` run's model and its card."""
    directory = RunDir(path).require_model()
    classifier, card = load_classifier_directory(directory)
    return classifier.to(device).eval(), card
