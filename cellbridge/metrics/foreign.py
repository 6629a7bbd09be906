"""Feature extractors that others trained, from a weights file: torch-fidelity's Inception and VGG, and any network of timm or torchvision.

Each channel is shown to the network as a grey image, and the features of all channels are put side by side, so that no stain goes unseen.
Nothing is ever downloaded, and no code in a file is run: a file holds tensors, and the network's name says where they belong.
"""

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellbridge.errors import ModelError, did_you_mean, in_one_line
from cellbridge.metrics.features import Extractor

_SHAPE = "LIBRARY:NETWORK@FILE, or LIBRARY:NETWORK@FILE#sha256:HEX"
_HEADS = ("fc", "classifier", "heads", "head")
"""What torchvision calls the last layers, which turn features into classes."""

Network = Callable[[Tensor], Tensor]
"""Grey images in [-1, 1], (batch, 1, height, width) → (batch, feature)."""


@dataclass(frozen=True)
class Foreign:
    """A network by name, and the file that its weights are in.

    Parameters
    ----------
    library : one of `LIBRARIES`.
    sha256 : what the file's hash has to be; None takes any, and says which it was.
    """

    library: str
    network: str
    file: Path
    sha256: str | None = None


def parse(wanted: str) -> Foreign:
    """Read `timm:resnet18@weights.pth` or `torchvision:resnet18@weights.pth#sha256:…`.

    Raises
    ------
    ModelError : no such library, or no weights file is named.
    """
    library, colon, rest = wanted.partition(":")
    if library not in LIBRARIES:
        raise ModelError(f'extractor "{wanted}": expected {_SHAPE}.{did_you_mean(library, LIBRARIES)}')
    found = re.fullmatch(r"(?P<network>[^@]+)@(?P<file>.+?)(#sha256:(?P<sha256>[0-9a-fA-F]{64}))?", rest)
    if not colon or found is None:
        raise ModelError(
            f'extractor "{wanted}": no weights were given, and none are ever downloaded. Give {_SHAPE} (64 hexadecimal digits).'
        )
    sha256 = found["sha256"]
    return Foreign(library, found["network"], Path(found["file"]), None if sha256 is None else sha256.lower())


def foreign_extractor(wanted: str, *, device: torch.device | str = "cpu") -> Extractor:
    """Return the extractor that a name and a weights file describe, as `parse` reads them.

    f(x) = [network(x_c)] over all channels c. Images are resized to what the network was made for, and normalised as it expects.

    Raises
    ------
    ModelError : the library is not installed, it has no such network, the file is absent, is not the one that was named by its hash, holds
        anything but tensors, or does not fit the network.
    """
    asked = parse(wanted)
    state, sha256 = read_foreign_weights(asked.file)
    if asked.sha256 not in (None, sha256):
        raise ModelError(
            f"{asked.file}: has sha256 {sha256}, expected {asked.sha256}. Get the file again, or correct the hash."
        )
    with torch.random.fork_rng(
        devices=[]
    ):  # a new network draws its weights from the global state before it is given these
        network, words = LIBRARIES[asked.library](asked.network, state, torch.device(device))
    return Extractor(f"{asked.library} {words}, per channel", sha256, per_channel(network, device=torch.device(device)))


def per_channel(network: Network, *, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return images (batch, channel, height, width) → features of all channels side by side."""

    def features(images: Tensor) -> Tensor:
        on_device = images.to(device)
        return torch.cat([network(on_device[:, [channel]]) for channel in range(images.shape[1])], dim=1)

    return features


def read_foreign_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read weights that others made, without running any code in them, and return them with the file's sha256.

    Parameters
    ----------
    path : `.safetensors`, or a PyTorch state dict (read with `weights_only=True`).

    Raises
    ------
    ModelError : no such file, or it holds anything but tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file. Give the path of a state dict, or leave it out.")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            state = load(content)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of how the pickle was written; what is wrong with it is said below
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        # torch's own words of a pickle that holds code recommend to run it.
        reason = (
            "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else str(error).splitlines()[0]
        )
        raise ModelError(
            f"{path}: is no plain state dict ({reason}). Only tensors are read; code in a pickle is never run. Save "
            "`module.state_dict()`, best as safetensors."
        ) from None
    except Exception as error:  # safetensors raises its own class, which derives from Exception alone
        raise ModelError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: is no plain state dict (name → tensor). Save `module.state_dict()`.")
    return state, sha256


def inception(state: Mapping[str, Tensor], *, sha256: str) -> Extractor:
    """Return torch-fidelity's Inception (pool features), applied to each channel as a grey image and concatenated.

    f(x) = [Inception(x_c, x_c, x_c)] over all channels c; 2,048 numbers a channel. Images become uint8 as the network expects.

    Parameters
    ----------
    state : the state dict of torch-fidelity's `FeatureExtractorInceptionV3`.
    sha256 : hash of the file that it came from.

    Raises
    ------
    ModelError : the weights do not fit the network.
    """
    with torch.random.fork_rng(devices=[]):
        network, words = _of_torch_fidelity("inception-v3-compat", state, torch.device("cpu"))
    return Extractor(f"{words}, per channel", sha256, per_channel(network, device=torch.device("cpu")))


Built = tuple[Network, str]
_Builder = Callable[[str, Mapping[str, Tensor], torch.device], Built]


def _of_torch_fidelity(name: str, state: Mapping[str, Tensor], device: torch.device) -> Built:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    networks = {
        "inception-v3-compat": (FeatureExtractorInceptionV3, "2048"),
        "vgg16": (FeatureExtractorVGG16, "fc2_relu"),
    }
    if name not in networks:
        raise ModelError(
            f'torch-fidelity reads no weights file for "{name}".{did_you_mean(name, networks)} DINOv2 and CLIP are in timm, too.'
        )
    kind, layer = networks[name]
    # Its constructor insists on torch.load without weights_only, so it is given our own copy of tensors that were read safely.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    try:
        network: nn.Module = kind(name, [layer], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        reason = in_one_line(error)
        raise ModelError(
            f"the weights do not fit torch-fidelity's {name} ({reason}). Give the state dict that torch-fidelity itself would load."
        ) from None
    network = network.eval().to(device)

    def features(grey: Tensor) -> Tensor:
        levels = ((grey.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return network(levels.expand(-1, 3, -1, -1))[0].flatten(1)

    return features, name


def _of_timm(name: str, state: Mapping[str, Tensor], device: torch.device) -> Built:
    try:
        import timm
        from timm.data import resolve_model_data_config
    except ImportError:
        raise ModelError('timm is not installed. Install it: pip install "cellbridge[extractors]".') from None
    if not timm.is_model(name):
        raise ModelError(f'timm has no network "{name}".{did_you_mean(name, timm.list_models())}')
    network: Any = timm.create_model(name, pretrained=False, num_classes=0)
    head = network.pretrained_cfg.get("classifier") or ()
    _load(network, state, name=f"timm's {name}", heads=(head,) if isinstance(head, str) else tuple(head))
    expected: dict[str, Any] = resolve_model_data_config(network)
    size_px = (int(expected["input_size"][1]), int(expected["input_size"][2]))
    return _on_grey(network, size_px=size_px, mean=expected["mean"], deviation=expected["std"], device=device), (
        f"{name} at {size_px[0]} px"
    )


def _of_torchvision(name: str, state: Mapping[str, Tensor], device: torch.device) -> Built:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f'torchvision has no network "{name}".{did_you_mean(name, known)}')
    expected = models.get_model_weights(name).DEFAULT.transforms()
    network = models.get_model(name, weights=None)
    head = next((head for head in _HEADS if hasattr(network, head)), None)
    if head is None:
        raise ModelError(
            f'torchvision\'s "{name}" ends in no layer called {" or ".join(_HEADS)}; its features are not known.'
        )
    setattr(network, head, nn.Identity())
    _load(network, state, name=f"torchvision's {name}", heads=(head, "AuxLogits"))
    size_px = (int(expected.crop_size[0]),) * 2
    return _on_grey(network, size_px=size_px, mean=expected.mean, deviation=expected.std, device=device), (
        f"{name} at {size_px[0]} px"
    )


LIBRARIES: Mapping[str, _Builder] = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "torch-fidelity": _of_torch_fidelity,
}


def _load(network: nn.Module, state: Mapping[str, Tensor], *, name: str, heads: tuple[str, ...]) -> None:
    """Load weights, leaving out only those of the last layers, which make no features.

    Raises
    ------
    ModelError : weights are missing, left over, or of another shape.
    """
    body = {key: value for key, value in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    try:
        found = network.load_state_dict(body, strict=False)
    except RuntimeError as error:
        reason = in_one_line(error)
        raise ModelError(
            f"the weights do not fit {name} ({reason}). Name the network that they were saved from."
        ) from None
    missing = [key for key in found.missing_keys if not key.startswith(tuple(f"{head}." for head in heads))]
    if missing or found.unexpected_keys:
        raise ModelError(
            f"the weights do not fit {name}: {len(missing)} missing ({', '.join(missing[:3]) or 'none'}), {len(found.unexpected_keys)} "
            f"left over ({', '.join(found.unexpected_keys[:3]) or 'none'}). Name the network that they were saved from."
        )


def _on_grey(
    network: nn.Module,
    *,
    size_px: tuple[int, int],
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    device: torch.device,
) -> Network:
    """Return grey images in [-1, 1] → features of a network that was made for colour images of one size."""
    network = network.eval().requires_grad_(False).to(device)
    centre, scale = (torch.tensor(values, device=device).reshape(1, -1, 1, 1) for values in (mean, deviation))

    def features(grey: Tensor) -> Tensor:
        resized = nn.functional.interpolate(
            (grey + 1) / 2, size=size_px, mode="bilinear", align_corners=False, antialias=True
        )
        found = network((resized.expand(-1, 3, -1, -1) - centre) / scale)
        return found.flatten(1)

    return features
