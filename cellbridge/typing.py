"""Named array shapes, and the batch of cells that translators take and give."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "batch channel height width"]
"""Float32 images in [-1, 1] by the plate's fixed intensity map."""

Times = Float[Tensor, " batch"]
"""Diffusion times in [-1, T - 1], one per image, fractions allowed; -1 is the clean image."""

Labels = Int[Tensor, " batch"]
"""Row of the condition embedding, one per image."""

Seeds = Int[Tensor, " batch"]
"""One random seed per image, so that a result does not depend on its batch."""


@dataclass(frozen=True)
class CellBatch:
    """Which cells, and what they look like.

    Parameters
    ----------
    images : (batch, channel, height, width), float32 in [-1, 1].
    cell_ids : the store's `Metadata_Cell` of each image.
    plates : the plate of each image, whose intensity map its values are in.
    conditions : the condition of each image, by name.
    seeds : (batch,), int64; the only source of randomness for each image.
    """

    images: Images
    cell_ids: tuple[str, ...]
    plates: tuple[str, ...]
    conditions: tuple[str, ...]
    seeds: Seeds
