"""What training images go through: noise inside the width of a count, flips and quarter turns."""

import torch
from torch import Generator, Tensor


def dequantise(counts: Tensor, *, full_scale: int, generator: Generator) -> Tensor:
    """Return counts spread evenly over their bins, so that a discrete image becomes one with a density.

    c' = c + u, u ~ U(-0.495, 0.495), folded back at 0 and at the full scale: c' lies in [0, full_scale] and rounds to c
    (at 65535, float32 resolves 1/256, so that noise up to 0.5 would leave the bin now and then).

    Parameters
    ----------
    counts : floating point, whole numbers in [0, full_scale]; used up (the result takes its memory).
    generator : on the device of `counts`.

    References
    ----------
    Theis et al. 2016, "A note on the evaluation of generative models", arXiv:1511.01844, sec. 3.1.
    """
    noise = torch.rand(counts.shape, generator=generator, device=counts.device, dtype=counts.dtype)
    spread = counts.add_(noise.sub_(0.5), alpha=0.99).abs_()
    return spread.sub_(full_scale).abs_().neg_().add_(full_scale)


def dihedral(images: Tensor, elements: Tensor) -> Tensor:
    """Flip and turn each image by its own element of the symmetry group of the square.

    Element e in 0..7: transpose where e has bit 4, then flip y where it has bit 2, then flip x where it has bit 1, for
    example 5 is a quarter turn. A cell has no preferred direction, so all eight are as likely as the image that was taken.

    Parameters
    ----------
    images : (batch, …, y, x) of any type, square.
    elements : (batch,), int64, in 0..7.
    """
    size, channels = images.shape[-1], (1,) * (images.ndim - 3)
    e = elements.to(images.device).view(-1, 1, 1)
    # The places are turned once for all channels, and each pixel is moved once.
    places = torch.arange(size * size, device=images.device).view(1, size, size)
    places = torch.where((e & 4) > 0, places.transpose(-1, -2), places)
    places = torch.where((e & 2) > 0, places.flip(-2), places)
    places = torch.where((e & 1) > 0, places.flip(-1), places)
    flat = images.flatten(-2)
    return flat.gather(-1, places.reshape(len(images), *channels, -1).expand(flat.shape)).view(images.shape)


def draw_dihedral(n: int, *, generator: Generator) -> Tensor:
    """Draw n elements for `dihedral`, each of the eight equally likely: (n,), int64, on the generator's device."""
    return torch.randint(8, (n,), generator=generator, device=generator.device)
