"""What it costs to turn a source into a target: ½|x - y|² of images, of their random projections, or of embeddings.

With this cost the regularisation of an entropic coupling is the squared volatility of the Brownian reference process, reg = ε = σ².
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from cellbridge.errors import CouplingError

Cost = Float[Tensor, "source target"]
"""½|x - y|² of every source and target."""

_DIGITS_KEPT = 1e-3
"""Relative error above which an entry is computed anew: three digits are left of the seven of float32."""

_CHUNK = 1024
"""Rows that are widened to float64, or pairs that are subtracted, at a time."""


def transport_cost(source: Tensor, target: Tensor, *, dtype: torch.dtype = torch.float32) -> Cost:
    """Return ½|x - y|² of every source and target, on their device.

    ½|x|² + ½|y|² - xᵀy by one matrix product, after the mean of all rows was taken off, which changes no difference. Norms are summed in
    float64, and entries of which cancellation left fewer than three digits (near duplicates) are computed from the difference.

    Parameters
    ----------
    source, target : (n, …) and (m, …), one shape per row: images, projections or embeddings.
    dtype : of the product and the result. float32 is half the work; a `reg` below some 1e-6 of the cost needs float64.

    Raises
    ------
    CouplingError : a side is empty or not finite, or rows differ in size.
    """
    x, y = _rows(source, "source"), _rows(target, "target")
    if x.shape[1] != y.shape[1] or x.device != y.device:
        raise CouplingError(
            f"rows of the source have {x.shape[1]} numbers ({x.device}) and of the target {y.shape[1]} ({y.device}), expected as many on one "
            "device. Give both the same crop, channels or extractor."
        )
    # Autocast would round the product to 8 bits; on CUDA float32 may mean TF32, 10 bits, and float64 of this size costs little.
    work = wide(x.device) if x.device.type == "cuda" else dtype
    with full_precision(x.device):
        cost, norms = _by_product(x, y, work)
        return _mend(cost, x, y, norms=norms).clamp_min_(0).to(dtype)


def spread(cost: Cost) -> float:
    """Return the standard deviation of the entries, which a relative `reg` is a share of."""
    return float(cost.to(wide(cost.device)).std(correction=0))


def random_projection(dimension: int, width: int = 256, *, generator: Generator) -> Float[Tensor, "dimension width"]:
    """Draw a Gaussian matrix R with E|xᵀR|² = |x|² for every x, so that costs keep their expectation and `reg` its meaning.

    R_ij ~ N(0, 1 / width); a cost has the relative standard deviation (2 / width)^½, 9 % at 256.

    Parameters
    ----------
    dimension : numbers in one row.
    width : numbers that are left of it.

    References
    ----------
    Johnson & Lindenstrauss 1984, "Extensions of Lipschitz mappings into a Hilbert space".
    """
    if dimension < 1 or width < 1:
        raise CouplingError(f"a projection of {dimension} to {width} numbers: both must be positive.")
    drawn = torch.randn(dimension, width, generator=generator, device=generator.device)
    return drawn / width**0.5


def project(rows: Tensor, projection: Float[Tensor, "dimension width"]) -> Float[Tensor, "n width"]:
    """Return flattened rows times the projection, float32; compute it once for a data set and keep it."""
    flat = _rows(rows, "rows")
    if flat.shape[1] != len(projection):
        raise CouplingError(f"rows have {flat.shape[1]} numbers, the projection was drawn for {len(projection)}.")
    with full_precision(flat.device):
        return flat.float() @ projection.to(flat.device)


def wide(device: torch.device) -> torch.dtype:
    """Return the type of sums on a device: float64 where it is known."""
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _rows(images: Tensor, side: str) -> Tensor:
    if images.ndim < 2 or images.numel() == 0:
        raise CouplingError(f"{side}: found shape {tuple(images.shape)}, expected one or more rows of numbers.")
    flat = images.detach().flatten(1)
    flat = flat if flat.is_floating_point() else flat.float()
    if not flat.is_meta and not bool(torch.isfinite(flat.sum())):
        bad = ~torch.isfinite(flat).all(dim=1)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise CouplingError(
                f"{side}: {int(bad.sum())} of {len(flat)} rows are not finite (first: row {first}). Leave them out."
            )
    return flat


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a region that a surrounding autocast does not reach."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _half_squares(rows: Tensor) -> Tensor:
    dtype = wide(rows.device)
    return torch.cat([part.to(dtype).square().sum(1) for part in rows.split(_CHUNK)]) / 2


def _by_product(x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Cost, Tensor]:
    """Return the cost by a matrix product, and ½|x|² + ½|y|² around the mean of all rows, of which cancellation leaves it."""
    fine = wide(x.device)
    centre = ((x.sum(0, dtype=fine) + y.sum(0, dtype=fine)) / (len(x) + len(y))).to(dtype)
    x, y = x.to(dtype) - centre, y.to(dtype) - centre
    norms = _half_squares(x)[:, None] + _half_squares(y)
    return torch.addmm(norms.to(dtype), x, y.T, alpha=-1), norms


def _mend(cost: Cost, x: Tensor, y: Tensor, *, norms: Tensor) -> Cost:
    """Compute anew what cancellation has spoilt: few entries from the differences of rows, many by a product in float64."""
    if cost.is_meta:
        return cost
    lost = cost < norms.to(cost.dtype) * (torch.finfo(cost.dtype).eps / _DIGITS_KEPT)
    if int(lost.sum()) > 4 * (len(x) + len(y)) and cost.dtype != wide(cost.device):
        finer, norms = _by_product(x, y, wide(cost.device))
        return _mend(finer, x, y, norms=norms)
    rows, columns = lost.nonzero(as_tuple=True)
    for of_x, of_y in zip(rows.split(_CHUNK), columns.split(_CHUNK), strict=True):
        cost[of_x, of_y] = _half_squares(x[of_x].to(cost.dtype) - y[of_y].to(cost.dtype)).to(cost.dtype)
    return cost
