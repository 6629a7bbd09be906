"""Claims about what a classifier says of images."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from cellbridge.metrics import classification
from cellbridge.metrics.intervals import Blocks


def _wells(n, size=5):
    return Blocks(np.arange(n) // size, "wells")


def test_auc_agrees_with_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    scores, control = rng.integers(0, 8, 60).astype(float) + 1, rng.integers(0, 8, 45).astype(float)
    expected = roc_auc_score([1] * 60 + [0] * 45, np.concatenate([scores, control]))
    assert classification.auc(scores, control) == pytest.approx(expected, abs=1e-12)


def test_auc_interval_holds_the_value_and_is_half_for_one_population():
    rng = np.random.default_rng(1)
    estimate = classification.auc_estimate(
        rng.standard_normal(200), rng.standard_normal(200), (_wells(200), _wells(200)), resamples=200, seed=0
    )
    assert estimate.low < estimate.value < estimate.high
    assert estimate.low < 0.5 < estimate.high


def test_balanced_accuracy_agrees_with_scikit_learn():
    rng = np.random.default_rng(2)
    labels, predicted = rng.choice(3, 90, p=[0.7, 0.2, 0.1]), rng.integers(0, 3, 90)
    estimate = classification.balanced_accuracy(predicted, labels, _wells(90), resamples=100, seed=0)
    assert estimate.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert estimate.low < estimate.value < estimate.high


def test_a_hit_beats_every_other_condition():
    logits = np.array([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
    assert classification.target_hits(logits, 1).tolist() == [True, False, False]
    assert classification.log_odds(logits, 1, 0).tolist() == [2.0, 1.0, -1.0]


def test_confusion_counts_every_cell_once():
    table = classification.confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), conditions=2)
    assert table.tolist() == [[1, 1], [0, 1]]
