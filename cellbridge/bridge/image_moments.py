"""Second moments of pairs of images: their leading modes, and whole covariances on these."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from cellbridge.bridge.linear_guess import Moments
from cellbridge.errors import NumericalError
from cellbridge.runtime import generator
from cellbridge.transport.cost import full_precision
from cellbridge.typing import Images

Views = Callable[[], Iterable[tuple[Images, Images]]]
"""The pairs of a condition, some at a time, in every orientation that counts as the same; asked for more than once."""

_SPARE = 16
"""Directions that the search for modes follows beyond those that are kept."""


def leading_modes(images: Images, count: int, *, seed: int) -> Tensor:
    """Return the leading principal modes of images, by a randomised search: (mode, channel, y, x), orthonormal, float32.

    Parameters
    ----------
    images : as many of each kind as are to weigh, each less the mean of its kind.
    count : how many; fewer where the images span fewer.

    References
    ----------
    Halko, Martinsson & Tropp 2011, "Finding structure with randomness", arXiv:0909.4061, algorithm 4.4.
    """
    rows = images.flatten(1).float()
    count = min(count, *rows.shape)
    if count < 1:
        return rows.new_zeros((0, *images.shape[1:]))
    width = min(count + _SPARE, *rows.shape)
    with full_precision(rows.device):
        drawn = torch.randn(rows.shape[1], width, generator=generator("cpu", "modes", seed)).to(rows.device)
        basis = torch.linalg.qr(rows @ drawn).Q
        basis = torch.linalg.qr(rows @ torch.linalg.qr(rows.T @ basis).Q).Q
        modes = torch.linalg.svd(basis.T @ rows, full_matrices=False).Vh[:count]
    return modes.view(-1, *images.shape[1:])


def mean_images(views: Views) -> tuple[Tensor, Tensor]:
    """Return the mean source and the mean target: (channel, y, x) each.

    Raises
    ------
    NumericalError : an image is not finite.
    """
    total: list[Tensor] = []
    count = 0
    for source, target in views():
        sums = [side.double().sum(0) for side in (source, target)]
        total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        count += len(source)
    means = [(side / count).float() for side in total]
    if not all(bool(torch.isfinite(mean).all()) for mean in means):
        raise NumericalError("a bridge's images are not all finite. Check the store with `cellbridge validate --deep`.")
    return means[0], means[1]


def pair_moments(views: Views, modes: Tensor, *, cells: int, coupled: bool) -> Moments:
    """Return the second moments of one condition's pairs, whose fields have one row.

    Covariances on m modes of n different targets are shrunk by m / (m + n): the target's towards the source's shape, which is known from
    more cells, and the source's towards its diagonal.

    Parameters
    ----------
    cells : how many different targets there are.
    coupled : whether sources tell something of their targets; independent pairs have a covariance of 0.
    """
    means = mean_images(views)
    basis = modes.flatten(1)
    channels, m = means[0].shape[0], len(modes)
    squares = torch.zeros(2 * m, 2 * m, dtype=torch.float64, device=modes.device)
    rest, rest_cross, count = torch.zeros(2, channels), torch.zeros(channels), 0
    with full_precision(modes.device):
        for pair in views():
            offs = [side.float() - mean for side, mean in zip(pair, means, strict=True)]
            projected = [off.flatten(1) @ basis.T for off in offs]
            beside = [off - (z @ basis).view_as(off) for off, z in zip(offs, projected, strict=True)]
            both = torch.cat(projected, 1).double()
            squares += both.T @ both
            rest += torch.stack([side.square().mean((2, 3)).sum(0).cpu() for side in beside])
            rest_cross += (beside[0] * beside[1]).mean((2, 3)).sum(0).cpu()
            count += len(offs[0])
    squares /= count
    a, b, cross = squares[:m, :m], squares[m:, m:], squares[:m, m:]
    share = m / (m + cells) if m else 0.0
    shrunk = torch.stack([_towards(a, a.diagonal().diag(), share), _towards(b, _like(a, b), share)])
    known = (1 - share) * cross if coupled else torch.zeros_like(cross)
    beside_cross = rest_cross / count if coupled else torch.zeros(channels)
    return Moments(
        torch.stack(means)[None],
        modes,
        shrunk.float()[None],
        known.float()[None],
        (rest / count)[None].to(modes.device),
        beside_cross[None].to(modes.device),
    )


def joined(parts: Sequence[Moments]) -> Moments:
    """Return the moments of several conditions, which share their modes."""
    rows = {
        name: torch.cat([part.tensors()[name] for part in parts])
        for name in ("means", "covariances", "cross", "rest", "rest_cross")
    }
    return Moments(modes=parts[0].modes, **rows)


def _like(shape: Tensor, size: Tensor) -> Tensor:
    """Return a covariance of one's shape and the other's total variance."""
    total = shape.trace()
    return shape * (size.trace() / total) if float(total) > 0 else size


def _towards(covariance: Tensor, other: Tensor, share: float) -> Tensor:
    return (1 - share) * covariance + share * other
