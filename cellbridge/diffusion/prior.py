"""x_T of a condition, drawn from a law that was fitted to inverted images instead of from N(0, I).

Where inversion does not end in N(0, I), noise drawn from N(0, I) starts where no real image would have ended. Every prior here shapes the
standard normal noise of an image's seed, so that it is N(0, I) again where what it was fitted to was, and an image depends on its own
seed alone.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cellbridge.errors import ModelError, in_one_line
from cellbridge.runtime import noise_per_image
from cellbridge.typing import Images, Seeds

_PURPOSE = "x_T"


class XTPrior(ABC):
    """A law of x_T: one draw per seed."""

    kind: str

    @abstractmethod
    def shape_noise(self, noise: Images, seeds: Seeds) -> Images:
        """Turn standard normal noise, drawn by the seeds, into draws of this law; row i depends on row i alone."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all that the prior consists of, for `from_tensors`."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "XTPrior":
        """Build the prior from what `tensors` gave; raise KeyError or ValueError where that is not it."""

    def sample(self, seeds: Seeds, shape: tuple[int, ...]) -> Images:
        """Return x_T (batch, channel, height, width), float32, one draw per seed, whatever else is in the batch.

        Parameters
        ----------
        shape : (channel, height, width).

        Raises
        ------
        ModelError : the prior was fitted to noise of another shape.
        """
        return self.shape_noise(noise_per_image(seeds, shape, purpose=_PURPOSE), seeds)


def require_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ModelError where noise is not of the shape that a prior was fitted to."""
    if tuple(found) != tuple(expected):
        raise ModelError(
            f"the prior is of x_T of shape {tuple(expected)} (channel, height, width), asked for {tuple(found)}. Fit it on the store of "
            "this model."
        )


def require_noises(x_T: Tensor, *, fewest: int) -> Tensor:
    """Return x_T in float64 on the CPU.

    Raises
    ------
    ValueError : too few images, or values that are not finite.
    """
    x = x_T.detach().double().cpu()
    if x.ndim != 4 or len(x) < fewest or not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"x_T of shape {tuple(x.shape)}, finite: {bool(torch.isfinite(x).all())}; expected {fewest} or more finite images"
        )
    return x


def save_prior(prior: XTPrior, file: Path) -> None:
    """Write a prior as safetensors, its kind in the metadata."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in prior.tensors().items()}
    save_file(tensors, file, metadata={"prior": json.dumps({"kind": prior.kind})})


def load_prior(file: Path, kinds: Mapping[str, type[XTPrior]]) -> XTPrior:
    """Read a prior of one of the kinds.

    Raises
    ------
    ModelError : the file is missing or damaged, or holds no prior of a kind that is known.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            kind = json.loads((opened.metadata() or {})["prior"])["kind"]
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return kinds[kind].from_tensors(tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = in_one_line(error)
        raise ModelError(
            f"{file}: holds no prior of x_T ({type(error).__name__}: {reason}). Fit it again with `cellbridge fit-prior`."
        ) from None
