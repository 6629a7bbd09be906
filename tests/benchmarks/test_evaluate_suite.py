"""The suite `evaluate` at its smallest size: its structure and arithmetic are judged, its speeds are not."""

import numpy as np
import pytest
import torch
import torch_fidelity_calls as rival
from evaluate import PARTS, SMALLEST, _features, _images, _network, measure

from cellbridge.errors import ConfigError
from cellbridge.metrics.features import Extractor, extract
from cellbridge.metrics.fid import frechet_and_kernel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured():
    return measure(["features", "images", "intervals"], size=SMALLEST, device=CPU)


def _row(part, words):
    return next(line for line in part["rows"] if words in line["claim"])


def test_every_part_gives_rows_seconds_and_peaks(measured):
    for part in measured["parts"].values():
        assert part["seconds"] > 0
        assert part["peak_memory_gib"]["host"] > 0
        for line in part["rows"]:
            assert set(line) == {"claim", "value", "interval", "unit", "goal", "met"}
    assert "torch-fidelity" in measured["machine"]["summary"]


@pytest.mark.parametrize(("part", "name"), [("features", "Fréchet"), ("features", "kernel"), ("images", "Fréchet")])
def test_both_sides_find_the_same_numbers(measured, part, name):
    found = _row(measured["parts"][part], f"difference, {name}")
    assert found["met"], found
    assert 0 <= found["value"] <= 1e-5
    assert len(measured["parts"][part]["seconds_per_condition"]["cellbridge"]) == SMALLEST.conditions


def test_the_rival_called_on_images_is_the_rival_called_on_their_features():
    network = _network(SMALLEST, CPU)
    first, second = _images(SMALLEST, 0), _images(SMALLEST, 1)
    extractor = Extractor("drawn", "-", network)
    features = extract(extractor, first), extract(extractor, second)
    called = rival.frechet_and_kernel(first, second, extractor=network)
    assert called[0] == pytest.approx(rival.frechet_and_kernel(*features)[0], rel=1e-4)
    assert called[0] == pytest.approx(frechet_and_kernel(*features)[0], rel=1e-4)


def test_drawn_features_are_like_an_inceptions_and_the_same_each_time():
    features = _features(SMALLEST, 3)
    assert float(features.min()) == 0.0
    assert features.dtype == torch.float32
    assert torch.equal(features, _features(SMALLEST, 3))
    variances = np.linalg.eigvalsh(np.cov(features.numpy(), rowvar=False))[::-1]
    assert variances[0] > 5 * variances[10]


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    _network(SMALLEST, CPU)
    rival.frechet_and_kernel(_features(SMALLEST, 0), _features(SMALLEST, 1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_part_is_named_before_anything_is_measured():
    with pytest.raises(ConfigError, match='the suite evaluate has no part "image"'):
        measure(["features", "image"], size=SMALLEST, device=CPU)
    assert list(PARTS) == ["features", "images", "intervals", "memory"]


@pytest.mark.slow
def test_peaks_of_memory_come_from_child_processes_and_both_ways_agree():
    found = measure(["memory"], size=SMALLEST, device=CPU)["parts"]["memory"]
    assert _row(found, "traces")["met"]
    assert found["whole"]["peak_mib"] >= 0
    assert set(found["streamed"]) == {SMALLEST.cells // 4, SMALLEST.cells}
