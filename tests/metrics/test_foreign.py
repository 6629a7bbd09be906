"""Claims about extractors from a weights file."""

import hashlib
import pickle
import sys

import numpy as np
import pytest
import torch

from cellbridge.errors import ModelError
from cellbridge.metrics.features import extract
from cellbridge.metrics.foreign import foreign_extractor, inception, parse, read_foreign_weights


class _Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


def _images(channels=3, n=2, size_px=24):
    return torch.rand(n, channels, size_px, size_px, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def timm_network():
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=10).eval()


@pytest.fixture(scope="module")
def timm_file(timm_network, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "test_resnet.pth"
    torch.save(timm_network.state_dict(), file)
    return file


def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path):
    canary, file = tmp_path / "canary", tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps({"a": _Payload(canary)}))
    with pytest.raises(ModelError, match="never run") as refused:
        foreign_extractor(f"timm:test_resnet@{file}")
    assert not canary.exists()
    assert "weights_only" not in str(refused.value)  # torch recommends to run the code


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"absent\.pth: no such weights file"):
        foreign_extractor(f"timm:test_resnet@{tmp_path / 'absent.pth'}")


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
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_timm_network_gives_its_own_features_of_every_channel(timm_network, timm_file):
    """Resized, normalised and shown as grey by hand, then timm's features before its classifier."""
    from timm.data import resolve_model_data_config

    extractor, images = foreign_extractor(f"timm:test_resnet@{timm_file}"), _images()
    expected = resolve_model_data_config(timm_network)
    mean, deviation = (torch.tensor(expected[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    parts = []
    with torch.no_grad():
        for channel in range(3):
            grey = torch.nn.functional.interpolate(
                (images[:, [channel]] + 1) / 2, size=expected["input_size"][1:], mode="bilinear", antialias=True
            )
            shown = (grey.repeat(1, 3, 1, 1) - mean) / deviation
            parts.append(timm_network.forward_head(timm_network.forward_features(shown), pre_logits=True))
    found = extract(extractor, images)
    assert found.shape == (2, 3 * timm_network.num_features)
    torch.testing.assert_close(found, torch.cat(parts, dim=1))
    assert extractor.sha256 == hashlib.sha256(timm_file.read_bytes()).hexdigest()
    assert extractor.name == "timm test_resnet at 160 px, per channel"


def test_each_channel_moves_its_own_features_alone(timm_file):
    extractor, images = foreign_extractor(f"timm:test_resnet@{timm_file}"), _images(channels=5)
    changed = images.clone()
    changed[:, 4] *= -1
    before, after = (extract(extractor, part).reshape(2, 5, -1) for part in (images, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_features_do_not_depend_on_the_batch_and_the_global_random_state_is_left_alone(timm_file):
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    extractor, images = foreign_extractor(f"timm:test_resnet@{timm_file}"), _images(n=5)
    torch.testing.assert_close(
        extract(extractor, images, batch_size=2), extract(extractor, images), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(torch_before, torch.random.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002


def test_a_torchvision_network_gives_its_features_before_the_classifier(tmp_path):
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.get_model("squeezenet1_1", weights=None).eval()
        other = models.get_model("mobilenet_v3_small", weights=None).eval()
    file = tmp_path / "mobilenet.pth"
    torch.save(other.state_dict(), file)
    extractor, images = foreign_extractor(f"torchvision:mobilenet_v3_small@{file}"), _images(channels=1)
    assert extract(extractor, images).shape == (2, 576)
    assert "mobilenet_v3_small at 224 px" in extractor.name
    torch.save(network.state_dict(), file)
    with pytest.raises(ModelError, match="left over"):
        foreign_extractor(f"torchvision:mobilenet_v3_small@{file}")


def test_a_hash_that_was_given_is_verified(timm_file):
    right = hashlib.sha256(timm_file.read_bytes()).hexdigest()
    assert foreign_extractor(f"timm:test_resnet@{timm_file}#sha256:{right.upper()}").sha256 == right
    with pytest.raises(ModelError, match=f"has sha256 {right}, expected {'0' * 64}"):
        foreign_extractor(f"timm:test_resnet@{timm_file}#sha256:{'0' * 64}")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("tim:resnet18@x.pth", 'Did you mean "timm"'),
        ("timm:resnet18", "no weights were given, and none are ever downloaded"),
        ("timm", "no weights were given"),
        ("timm:@x.pth", "no weights were given"),
        ("torchvision:resnet18@", "no weights were given"),
    ],
)
def test_what_names_no_library_or_file_is_refused(wanted, words):
    with pytest.raises(ModelError, match=words):
        parse(wanted)


def test_a_path_with_any_sign_is_read():
    found = parse("timm:vit@/data/my@home/a#b:c.pth")
    assert (found.network, str(found.file), found.sha256) == ("vit", "/data/my@home/a#b:c.pth", None)


@pytest.mark.parametrize(
    ("library", "network", "words"),
    [
        ("timm", "resnet81t", "timm has no network"),
        ("torchvision", "resnet19", 'Did you mean "resnet18"'),
        ("torch-fidelity", "dinov2-vit-s-14", "reads no weights file"),
        ("timm", "test_vit", "do not fit timm's test_vit"),
    ],
)
def test_networks_that_are_not_there_or_are_others_are_named(timm_file, library, network, words):
    with pytest.raises(ModelError, match=words):
        foreign_extractor(f"{library}:{network}@{timm_file}")


def test_a_library_that_is_not_installed_is_named(timm_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"timm is not installed.*cellbridge\[extractors\]"):
        foreign_extractor(f"timm:test_resnet@{timm_file}")


def test_weights_of_another_network_are_refused():
    with pytest.raises(ModelError, match="do not fit"):
        inception({"a": torch.zeros(1)}, sha256="0")


def _blank_inception():
    """torch-fidelity's Inception without a download, with drawn weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    original = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    try:
        with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "load", lambda *_, **__: {})
            blank = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path="-")
    finally:
        FeatureExtractorInceptionV3.load_state_dict = original
    for module in blank.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(0))
    return blank


@pytest.mark.slow
def test_inception_sees_every_channel(tmp_path):
    """Built from weights of a file, without a download: one block of 2,048 features a channel, each from that channel alone."""
    file = tmp_path / "inception.pth"
    torch.save(_blank_inception().state_dict(), file)
    images = _images(channels=5, n=1, size_px=16)
    extractor = foreign_extractor(f"torch-fidelity:inception-v3-compat@{file}")
    features = extract(extractor, images)
    assert features.shape == (1, 5 * 2048)
    assert torch.equal(features, extract(inception(read_foreign_weights(file)[0], sha256="0"), images))
    images[:, 4] *= -1
    changed = extract(extractor, images)
    assert torch.equal(features[:, : 4 * 2048], changed[:, : 4 * 2048])
    assert not torch.equal(features[:, 4 * 2048 :], changed[:, 4 * 2048 :])
