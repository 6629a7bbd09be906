"""Feature extractors behind one interface: a callable from images of any number of channels to vectors, its name and its hash."""

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cellbridge.errors import ModelError


@dataclass(frozen=True)
class Extractor:
    """What turns images into features.

    Parameters
    ----------
    name : stands beside every number that it made.
    sha256 : hash of its weights; stands there, too.
    features : (batch, channel, height, width) float32 in [-1, 1] → (batch, feature).
    """

    name: str
    sha256: str
    features: Callable[[Tensor], Tensor]


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """Return the features (n, feature) of images (n, channel, height, width), all channels scored.

    Raises
    ------
    ModelError : the extractor returns anything but one finite vector per image.
    """
    parts = [extractor.features(part) for part in images.split(batch_size)]
    features = torch.cat([part.detach().cpu().float() for part in parts])
    if features.ndim != 2 or len(features) != len(images):
        raise ModelError(
            f'extractor "{extractor.name}": returned shape {tuple(features.shape)} for {len(images)} images, expected one vector per image.'
        )
    if not bool(torch.isfinite(features).all()):
        raise ModelError(
            f'extractor "{extractor.name}": returned features that are not finite. Check its weights and the images\' range.'
        )
    return features


def standardised(extractor: Extractor, images: Tensor, *, name: str) -> Extractor:
    """Return the extractor with each feature centred and divided by its standard deviation over reference images.

    The kernel distance's cubic kernel is meant for features of order 1, and a Fréchet distance in raw features is ruled by those that
    happen to be large. Features that are constant on the reference images are only centred.

    Parameters
    ----------
    images : real images that no row is scored on.
    name : what these images are, in words that stand in the extractor's name.
    """
    features = extract(extractor, images)
    centre, deviation = features.mean(dim=0), features.std(dim=0)
    scale = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))

    def scaled(batch: Tensor) -> Tensor:
        return (extractor.features(batch).cpu() - centre) / scale

    return Extractor(f"{extractor.name}, standardised on {name}", extractor.sha256, scaled)


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
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{path}: is no plain state dict ({reason}). Only tensors are read; code in a pickle is never run."
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
    network = _build_inception(state)

    def features(images: Tensor) -> Tensor:
        grey = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        per_channel = [network(grey[:, [channel]].expand(-1, 3, -1, -1))[0] for channel in range(grey.shape[1])]
        return torch.cat(per_channel, dim=1)

    return Extractor("inception-v3-compat, per channel", sha256, features)


def _build_inception(state: Mapping[str, Tensor]) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # Its constructor insists on torch.load without weights_only, so it is given our own copy of tensors that were read safely.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=buffer
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the weights do not fit torch-fidelity's Inception ({reason}). Give pt_inception-2015-12-05 as converted by torch-fidelity."
        ) from None
    return network.eval()
