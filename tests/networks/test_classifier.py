import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cellbridge.errors import CheckpointError, ModelError
from cellbridge.networks import classifier as module
from cellbridge.networks.classifier import build_classifier, load_classifier_directory, logits_of, save_classifier

CARD = {"kind": "classifier", "conditions": ["DMSO", "taxol@1"]}


def small(seed: int = 0, widths: tuple[int, ...] = (4, 8)) -> module.Classifier:
    return build_classifier(channels=5, conditions=2, widths=widths, seed=seed)


def images(n: int, size_px: int = 32) -> torch.Tensor:
    return torch.rand((n, 5, size_px, size_px), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_default_has_about_a_fifth_of_a_million_weights():
    network = module.Classifier(channels=5, conditions=7)
    assert 150_000 < sum(p.numel() for p in network.parameters()) < 300_000


def test_logits_are_linear_in_the_features():
    network = small()
    logits = network(images(3))
    assert torch.allclose(logits, network.features(images(3)) @ network.head.weight.T + network.head.bias, atol=1e-6)


def test_a_brighter_channel_changes_the_features():
    network, darker = small(), images(4)
    brighter = darker.clone()
    brighter[:, 1] += 0.5
    assert (network.features(brighter) - network.features(darker)).abs().max() > 1e-2


@pytest.mark.parametrize("size_px", [32, 64])
def test_an_image_has_the_same_logits_in_any_batch(size_px):
    network, cells = small(), images(7, size_px)
    apart = torch.cat([logits_of(network, cell[None]) for cell in cells])
    assert torch.allclose(logits_of(network, cells), apart, atol=1e-5)
    assert apart.shape == (7, 2)


def test_every_weight_gets_a_gradient():
    network = small()
    for p in network.parameters():  # the last convolutions start at 0, and stop the gradient of those before them
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    network(images(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_weights_are_a_function_of_the_seed_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    assert torch.equal(small(3).stem.weight, small(3).stem.weight)
    assert not torch.equal(small(3).stem.weight, small(4).stem.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_directory_gives_the_same_network_and_card(tmp_path):
    network = small(5)
    save_classifier(network, tmp_path, card=CARD)
    loaded, card = load_classifier_directory(tmp_path)
    assert card == CARD
    assert torch.equal(logits_of(loaded, images(2)), logits_of(network, images(2)))


def test_extractor_is_named_by_its_weights(tmp_path):
    names = []
    for seed in (0, 0, 1):
        save_classifier(small(seed), tmp_path, card=CARD)
        names.append(module.extractor_name(tmp_path))
    assert names[0] == names[1] != names[2]
    assert names[2] == f"cellbridge-classifier@{module.weights_sha256(tmp_path)[:12]}"


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change):
    save_classifier(small(), tmp_path, card=CARD)
    tensors = load_file(tmp_path / module.WEIGHTS)
    if change == "missing":
        del tensors["head.bias"]
    elif change == "extra":
        tensors["head.spare"] = torch.zeros(1)
    else:
        tensors["head.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / module.WEIGHTS)
    with pytest.raises(ModelError, match=r"head\.spare" if change == "extra" else r"head\.bias"):
        load_classifier_directory(tmp_path)


def test_damaged_or_foreign_directories_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no readable classifier"):
        load_classifier_directory(tmp_path)
    save_classifier(small(), tmp_path, card=CARD)
    weights = tmp_path / module.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="no readable classifier"):
        load_classifier_directory(tmp_path)
    (tmp_path / module.CARD).write_text(json.dumps({"kind": "base"}))
    with pytest.raises(ModelError, match="kind 'base', expected 'classifier'"):
        load_classifier_directory(tmp_path)


def test_widths_must_divide_into_groups():
    with pytest.raises(ModelError, match="multiples of 4"):
        small(widths=(6, 8))
