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


def test_a_mechanisms_probability_is_the_sum_over_its_conditions():
    logits = np.log(np.array([[0.4, 0.35, 0.25], [0.6, 0.3, 0.1]]))
    groups = np.array([0, 1, 1])  # two conditions share a mechanism
    assert classification.moa_probabilities(logits, groups) == pytest.approx(np.array([[0.4, 0.6], [0.6, 0.4]]))
    assert classification.moa_hits(logits + 7.0, groups, 1).tolist() == [True, False]


def test_counting_cells_agrees_with_linear_discriminants_of_scikit_learn():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(3)
    labels = np.repeat([0, 2], 12)
    counts = rng.poisson(np.where(labels == 2, 60, 200)).astype(float)
    asked = np.array([50.0, 100.0, 250.0])
    found = classification.logits_from_count(asked, training=(counts, labels), conditions=3)
    assert np.isneginf(found[:, 1]).all()  # a condition that no training well had
    model = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5]).fit(np.log1p(counts)[:, None], labels)
    expected = model.decision_function(np.log1p(asked)[:, None])
    assert found[:, 2] - found[:, 0] == pytest.approx(expected * 22 / 24)  # its variance is divided by n, ours by n - K
    assert classification.target_hits(found, 2).tolist() == [True, True, False]
