"""Claims about the inception-style score and about copies."""

import numpy as np
import pytest
import torch

from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.variety import classifier_score, duplicates, repeats


def _images(seed, n=12):
    return np.random.default_rng(seed).standard_normal((n, 3, 8, 8)).astype(np.float32)


def test_the_score_is_one_without_variety_and_the_number_of_conditions_with_all_of_it():
    assert classifier_score(np.tile([2.0, 0.0, -1.0], (30, 1))).value == pytest.approx(1.0, abs=1e-12)
    assert classifier_score(1e3 * np.eye(5)[np.arange(50) % 5]).value == pytest.approx(5.0)
    assert classifier_score(1e3 * np.eye(5)[np.arange(40) % 4]).value == pytest.approx(4.0)


def test_the_score_is_torch_fidelitys():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.default_rng(0).standard_normal((200, 7)) * 3
    expected = isc_features_to_metric(torch.from_numpy(logits), splits=1, shuffle=False, rng_seed=0)
    assert classifier_score(logits).value == pytest.approx(expected["inception_score_mean"], rel=1e-9)


def test_the_scores_interval_is_over_wells():
    logits, wells = np.random.default_rng(0).standard_normal((60, 4)) * 2, Blocks(np.arange(60) // 6, "wells")
    found = classifier_score(logits, blocks=wells, resamples=300)
    assert found.low < found.value < found.high
    assert (found.n, found.resampled) == (60, "wells")
    assert classifier_score(logits).low is None
    assert classifier_score(logits[::-1]).value == pytest.approx(found.value, rel=1e-12)


def test_copies_are_found_among_images_also_flipped_and_turned():
    images = _images(0)
    assert duplicates(images) == 0
    turned = np.concatenate([images, np.rot90(images[:2], axes=(2, 3)), images[:1, :, ::-1], images[:1, :, :, ::-1]])
    found = repeats(turned)
    assert (found.distinct, found.most, found.n) == (12, 4, 16)
    assert found.share == pytest.approx((4 + 2) / 16)


def test_a_folder_padded_with_copies_is_all_copies():
    assert duplicates(np.tile(_images(0, 5), (4, 1, 1, 1))) == 1.0


def test_one_changed_pixel_makes_another_image_and_the_sign_of_zero_does_not():
    images = np.repeat(_images(0, 1), 2, axis=0)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 0.0, -0.0
    assert duplicates(images) == 1.0
    images[1, 0, 0, 0] = 1e-6
    assert duplicates(images) == 0


def test_copies_are_found_among_features_that_differ_by_rounding():
    features = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    rounding = 1e-6 * np.random.default_rng(1).standard_normal((10, 16)).astype(np.float32)
    found = repeats(np.concatenate([features, features[:10] + rounding]))
    assert found.share == pytest.approx(20 / 50)
    assert (found.distinct, found.most) == (40, 2)
    assert duplicates(features) == 0
    assert duplicates(features + 1e3) == 0


def test_what_is_neither_images_nor_features_is_refused():
    with pytest.raises(ValueError, match="expected images"):
        duplicates(np.zeros((3, 4, 5)))
