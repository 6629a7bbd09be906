"""Claims about feature extractors."""

import pickle

import pytest
import torch

from cellbridge.errors import ModelError
from cellbridge.metrics.features import Extractor, extract, inception, read_foreign_weights


class _Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path):
    canary, file = tmp_path / "canary", tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps({"a": _Payload(canary)}))
    with pytest.raises(ModelError, match="never run"):
        read_foreign_weights(file)
    assert not canary.exists()


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"absent\.pth: no such weights file"):
        read_foreign_weights(tmp_path / "absent.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_plain_weights_come_back_with_their_hash(tmp_path, suffix):
    from safetensors.torch import save_file

    file, state = tmp_path / f"weights.{suffix}", {"a": torch.arange(4.0)}
    if suffix == "pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    read, sha256 = read_foreign_weights(file)
    assert torch.equal(read["a"], state["a"])
    assert len(sha256) == 64


def test_weights_of_another_network_are_refused():
    with pytest.raises(ModelError, match="do not fit"):
        inception({"a": torch.zeros(1)}, sha256="0")


@pytest.mark.slow
def test_inception_sees_every_channel(tmp_path):
    """Built from weights of a file, without a download: one block of 2,048 features a channel, each from that channel alone."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    blank = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    file = tmp_path / "inception.pth"
    original = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: original(self, state) if state else None
    try:
        empty = tmp_path / "empty.pth"
        torch.save({}, empty)
        blank = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty))
    finally:
        FeatureExtractorInceptionV3.load_state_dict = original
    for module in blank.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(0))
    torch.save(blank.state_dict(), file)
    extractor = inception(read_foreign_weights(file)[0], sha256="0")
    images = torch.rand(1, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = extract(extractor, images)
    assert features.shape == (1, 5 * 2048)
    images[:, 4] *= -1
    changed = extract(extractor, images)
    assert torch.equal(features[:, : 4 * 2048], changed[:, : 4 * 2048])
    assert not torch.equal(features[:, 4 * 2048 :], changed[:, 4 * 2048 :])


def test_features_that_are_not_finite_are_refused():
    broken = Extractor("broken", "0", lambda images: images.flatten(1) / 0)
    with pytest.raises(ModelError, match="not finite"):
        extract(broken, torch.ones(2, 1, 2, 2))


def test_features_do_not_depend_on_the_batch_size():
    extractor = Extractor("mean", "0", lambda images: images.mean(dim=(2, 3)))
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extract(extractor, images, batch_size=3), extract(extractor, images))
