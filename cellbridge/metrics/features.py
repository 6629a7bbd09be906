"""Feature extractors behind one interface: a callable from images of any number of channels to vectors, its name and its hash."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
