"""Pools of cells that are not paired with one another: images of one kind, what is seen in them, and how they are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cellbridge.data.image_sets import ImageSet
from cellbridge.data.intensity import IntensityMaps, fit_intensity
from cellbridge.errors import ImageError
from cellbridge.metrics.features import Extractor, extract
from cellbridge.metrics.intervals import Blocks, blocks_of

Rows = NDArray[np.int64]
Features = NDArray[np.float64]

_ONE_MAP = "all"
_STEPS = 65535
"""Counts that a linear image is read in where an asinh is fitted, whatever its own depth was."""
_AT_ONCE = 1024


@dataclass(frozen=True)
class Pool:
    """Images of one kind; row i of every field is image i.

    Parameters
    ----------
    images : (n, channel, height, width) in [-1, 1].
    features : by extractor, (n, feature) each.
    logits : (n, condition); of no column until a classifier has looked.
    blocks : the images that are resampled together.
    ids : name of each.
    plates, wells, sites : "" where nothing says.
    """

    images: NDArray[np.float32]
    features: Mapping[str, Features]
    logits: NDArray[np.float64]
    blocks: Blocks
    ids: tuple[str, ...]
    plates: tuple[str, ...]
    wells: tuple[str, ...]
    sites: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Rows) -> "Pool":
        """Return some of the images, in the order given; blocks are of those that are left."""
        places = {name: tuple(getattr(self, name)[row] for row in rows) for name in ("plates", "wells", "sites")}
        return Pool(
            self.images[rows],
            {name: found[rows] for name, found in self.features.items()},
            self.logits[rows],
            blocks_of_places(**places),
            tuple(self.ids[row] for row in rows),
            **places,
        )

    def joined(self, other: "Pool") -> "Pool":
        """Return both pools' images, these first."""
        places = {name: getattr(self, name) + getattr(other, name) for name in ("plates", "wells", "sites")}
        return Pool(
            np.concatenate([self.images, other.images]),
            {name: np.concatenate([found, other.features[name]]) for name, found in self.features.items()},
            np.concatenate([self.logits, other.logits]),
            blocks_of_places(**places),
            self.ids + other.ids,
            **places,
        )

    def renamed(self, condition: str) -> "Pool":
        """Return the same images, named within their condition, so that names of several conditions do not meet."""
        return replace(self, ids=tuple(f"{condition}/{name}" for name in self.ids))

    def with_logits(self, logits: NDArray[np.float64]) -> "Pool":
        """Return the same images with a classifier's logits of them."""
        return replace(self, logits=logits)


def blocks_of_places(plates: Sequence[str], wells: Sequence[str], sites: Sequence[str]) -> Blocks:
    """Return which images are resampled together: wells or sites where they are known, else each image by itself, which says so."""
    if all(wells):
        return blocks_of(plates, wells, sites)
    return Blocks(np.arange(len(wells), dtype=np.int64), "images, taken for independent")


def require_alike(sets: Mapping[str, ImageSet]) -> None:
    """Refuse sets that do not show the same channels at the same size.

    Raises
    ------
    ImageError : naming both.
    """
    first_name, first = next(iter(sets.items()))
    for name, found in sets.items():
        if found.values.shape[2:] != first.values.shape[2:] or len(found.channels) != len(first.channels):
            shapes = [f"{len(part.channels)} channels at {part.values.shape[2:]} px" for part in (found, first)]
            raise ImageError(
                f"{found.path} ({name}): {shapes[0]}, but {first.path} ({first_name}): {shapes[1]}. Crop and resize all in one way."
            )


def intensity_map(reference: ImageSet, kind: str) -> IntensityMaps | None:
    """Return one map of intensities for all sets, fitted to the reference's images: None for a linear one.

    An asinh spreads what is dim, as `prepare` does for each plate; linear images of 16-bit microscopy lie close to -1.
    """
    if kind == "linear":
        return None
    return fit_intensity({_ONE_MAP: _counts(reference.images())}, channels=reference.channels, full_scale=_STEPS)


def images_of(found: ImageSet, maps: IntensityMaps | None) -> NDArray[np.float32]:
    """Return a set's images in [-1, 1] under the map that all sets share."""
    images = found.images()
    if maps is None:
        return images
    parts = [
        maps.forward(
            torch.from_numpy(_counts(images[start : start + _AT_ONCE])),
            [_ONE_MAP] * len(images[start : start + _AT_ONCE]),
        )
        for start in range(0, len(images), _AT_ONCE)
    ]
    return np.asarray(torch.cat(parts).numpy())


def pool_of(found: ImageSet, images: NDArray[np.float32], extractors: Sequence[Extractor]) -> Pool:
    """Look at all images of a set."""
    shown = torch.from_numpy(images)
    features = {part.name: extract(part, shown).numpy().astype(np.float64) for part in extractors}
    places = {"plates": found.plates, "wells": found.wells, "sites": found.sites}
    return Pool(images, features, np.zeros((len(images), 0)), blocks_of_places(**places), found.ids, **places)


def _counts(images: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.clip(np.rint((images.astype(np.float64) + 1) / 2 * _STEPS), 0, _STEPS).astype(np.int32)
