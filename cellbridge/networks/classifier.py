"""The condition classifier: a small residual network over all channels, whose pooled features also serve as offline extractor.

Its directory holds `config.json` (what to build), `classifier.safetensors` and, written by its stage, `cellbridge.json` (what the
classes are and what it was trained on).
"""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cellbridge.errors import CheckpointError, ModelError
from cellbridge.typing import Images

WEIGHTS = "classifier.safetensors"
SETTINGS = "config.json"
CARD = "cellbridge.json"
_CHANNELS_PER_GROUP = 4

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class Classifier(nn.Module):
    """Which condition a cell was under.

    A pre-activation residual network: per level one block (group norm, SiLU, 3x3 convolution, twice) on a stream that is halved
    in size between levels and averaged over space at its end. The stream itself is never normalised, so that how bright a
    channel is as a whole, which is what some compounds change, reaches the features.

    Parameters
    ----------
    channels : stains of an image.
    conditions : classes.
    widths : features at each level, multiples of 4; the last is the length of a feature vector.

    References
    ----------
    He et al. 2016, "Identity Mappings in Deep Residual Networks", arXiv:1603.05027; Wu & He 2018, "Group Normalization",
    arXiv:1803.08494 (unlike batch norm, a cell's features do not depend on its batch).
    """

    _repeated_blocks = ("_Block",)
    """Classes that regional compilation compiles, declared as diffusers' networks do."""

    def __init__(self, *, channels: int, conditions: int, widths: tuple[int, ...] = (16, 32, 64, 64)):
        super().__init__()
        if not widths or any(width % _CHANNELS_PER_GROUP for width in widths):
            raise ModelError(f"classifier widths {widths}: expected multiples of {_CHANNELS_PER_GROUP}.")
        self.settings: dict[str, Any] = {"channels": channels, "conditions": conditions, "widths": list(widths)}
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for width in widths)
        self.halvings = nn.ModuleList(nn.Conv2d(n, m, 3, stride=2, padding=1) for n, m in pairwise(widths))
        self.head = nn.Linear(widths[-1], conditions)
        self._recomputes = False

    def enable_gradient_checkpointing(self) -> None:
        """Keep only what goes into each block, and recompute its inside in the backward pass."""
        self._recomputes = True

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation again."""
        self._recomputes = False

    def features(self, images: Images) -> Tensor:
        """Return the penultimate features of images in [-1, 1]: (batch, widths[-1])."""
        stream = self._through(self.blocks[0], self.stem(images))
        for halve, block in zip(self.halvings, self.blocks[1:], strict=True):
            stream = self._through(block, halve(stream))
        return functional.silu(stream).mean(dim=(2, 3))

    def forward(self, images: Images) -> Tensor:
        """Return logits: (batch, condition)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def _through(self, block: nn.Module, stream: Tensor) -> Tensor:
        if self._recomputes and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(block, stream, use_reentrant=False)
            return recomputed
        result: Tensor = block(stream)
        return result


class _Block(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), the identity at first."""

    def __init__(self, width: int):
        super().__init__()
        groups = width // _CHANNELS_PER_GROUP
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convolutions[1].weight)  # type: ignore[arg-type]

    def forward(self, stream: Tensor) -> Tensor:
        change = stream
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            change = convolution(functional.silu(norm(change)))
        return stream + change


def build_classifier(*, channels: int, conditions: int, widths: tuple[int, ...], seed: int) -> Classifier:
    """Build a classifier with weights drawn from `seed`, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Classifier(channels=channels, conditions=conditions, widths=widths)


@torch.no_grad()
def logits_of(classifier: Classifier, images: Images) -> Tensor:
    """Return the logits of images on any device, in float32 on the CPU; the classifier is put in evaluation mode."""
    device = next(classifier.parameters()).device
    return classifier.eval()(images.to(device)).float().cpu()


class Published(Protocol):
    """What a classifier's directory is written of: weights, and the arguments that rebuild the network."""

    settings: dict[str, Any]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights by name."""


def save_classifier(classifier: Published, directory: Path, *, card: dict[str, Any]) -> None:
    """Write weights, settings and card into a directory that is there."""
    save_file({k: v.detach().cpu().contiguous() for k, v in classifier.state_dict().items()}, directory / WEIGHTS)
    for name, values in ((SETTINGS, classifier.settings), (CARD, card)):
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        (directory / name).write_text(f"{text}\n", encoding="utf-8")


def load_classifier_directory(directory: Path) -> tuple[Classifier, dict[str, Any]]:
    """Return the classifier in evaluation mode, and its card.

    Raises
    ------
    CheckpointError : a file is missing or damaged, or the directory holds another kind of model.
    ModelError : the weights lack a tensor of the network, have one too many, or one of another shape; or it is a classifier of
        noisy images.
    """
    card = read_classifier_card(directory)
    if card.get("noise") is not None:
        raise ModelError(
            f"{directory}: was trained on noisy images, to guide sampling; its figures of clean ones mean little. "
            "Give a run of `train-classifier` without the section noise."
        )
    network = built_with_weights(Classifier, directory)
    return network.eval(), card


def read_classifier_card(directory: Path) -> dict[str, Any]:
    """Return what a classifier's directory says of itself."""
    try:
        card: dict[str, Any] = json.loads((directory / CARD).read_text(encoding="utf-8"))
        kind = card.get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise _unreadable(directory, error) from None
    if kind != "classifier":
        raise ModelError(f"{directory}: holds a model of kind {kind!r}, expected 'classifier'.")
    return card


def built_with_weights(kind: type[NetworkT], directory: Path) -> NetworkT:
    """Return a network of this class with a directory's settings and weights, every name and shape checked."""
    try:
        settings = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
        network = kind(**settings | {"widths": tuple(settings["widths"])})
        tensors = load_file(directory / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _unreadable(directory, error) from None
    load_strictly(network, tensors, where=directory / WEIGHTS)
    return network


def _unreadable(directory: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{directory}: is no readable classifier ({SETTINGS}, {CARD}, {WEIGHTS}): {error}. Run `cellbridge train-classifier`."
    )


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], *, where: Path) -> None:
    """Copy weights of exactly the network's names and shapes; raise ModelError naming what differs."""
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise ModelError(f"{where}: does not fit the network (missing keys: {missing}, unknown keys: {unknown}).")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, the network has {tuple(tensor.shape)}"
            raise ModelError(f'{where}: "{name}" has shape {shapes}.')
    network.load_state_dict(tensors)


def extractor_name(directory: Path) -> str:
    """Return the name that stands beside numbers made with a classifier's features: kind and first 12 digits of its weights' sha256."""
    return f"cellbridge-classifier@{weights_sha256(directory)[:12]}"


def weights_sha256(directory: Path) -> str:
    """Return the sha256 of a classifier's weights file."""
    with (directory / WEIGHTS).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
