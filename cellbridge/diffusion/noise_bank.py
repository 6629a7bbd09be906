"""A bank of inverted noises: x_T drawn between two of them.

x = mean + slerp(a - mean, b - mean; u), with a and b two items of the bank and u from the middle half of the way, all by the image's
seed. Nothing is assumed of the law. An item itself would decode to its own training image, which is why neither end is ever drawn; but
what is drawn still decodes to images that lie nearer to the bank's training cells than new real cells do. A bank is for interpolating
known cells, and for what any prior could gain at best; it is no source of new ones.

References
----------
Song et al. 2021, "Denoising diffusion implicit models", arXiv:2010.02502, eq. 67 (spherical interpolation of x_T).
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from cellbridge.diffusion.prior import XTPrior, require_noises, require_shape
from cellbridge.runtime import generator
from cellbridge.typing import Images, Seeds

_NEAREST = 0.25
"""How near to an item a draw may come, as a share of the way to the other."""


@final
class NoiseBank(XTPrior):
    """See above.

    Parameters
    ----------
    items : (item, channel, height, width), two or more.
    """

    kind = "bank"

    def __init__(self, items: Tensor):
        if items.ndim != 4 or len(items) < 2:
            raise ValueError(f"a bank of shape {tuple(items.shape)}: expected two or more images of noise")
        self.items = items.float()
        self._mean = items.double().mean(dim=0)

    def shape_noise(self, noise: Images, seeds: Seeds) -> Images:
        """Return a point between two items for each seed; of the noise, only the shape counts."""
        require_shape(tuple(noise.shape[1:]), tuple(self.items.shape[1:]))
        drawn = [self._between(int(seed)) for seed in seeds.tolist()]
        return torch.stack(drawn).float().to(noise.device) if drawn else noise

    def tensors(self) -> dict[str, Tensor]:
        """Return the items."""
        return {"items": self.items}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "NoiseBank":
        """Build the bank from its items."""
        return cls(tensors["items"])

    def _between(self, seed: int) -> Tensor:
        draw = generator("cpu", "x_T from the bank", seed)
        first, second = torch.randperm(len(self.items), generator=draw)[:2].tolist()
        share = _NEAREST + (1 - 2 * _NEAREST) * float(torch.rand((), generator=draw, dtype=torch.float64))
        a, b = (self.items[index].double() - self._mean for index in (first, second))
        return self._mean + slerp(a, b, share)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Interpolate along the great circle: (sin((1 - u) θ) a + sin(u θ) b) / sin θ, with θ the angle between a and b.

    Independent noises are nearly orthogonal, and then the variance stays theirs all the way. Where they are parallel (θ = 0, or one is
    0), the straight line is taken.
    """
    lengths = a.norm() * b.norm()
    angle = torch.arccos(((a * b).sum() / lengths).clamp(-1, 1)) if lengths > 0 else lengths
    if float(angle.sin()) < 1e-6:
        return (1 - share) * a + share * b
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def fit_bank(x_T: Tensor, *, items: int = 512) -> NoiseBank:
    """Keep the first `items` of x_T (n, channel, height, width), whose order is the caller's.

    Raises
    ------
    ValueError : fewer than two images, or x_T is not finite.
    """
    return NoiseBank(require_noises(x_T, fewest=2)[:items])
