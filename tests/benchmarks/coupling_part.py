"""The coupling of image mini-batches beside torchcfm's `OTPlanSampler`: time, sources used, cost of the plan, and what Sinkhorn does at image size.

Ours couples in 256 dimensions, which are computed once for a data set (whitened embeddings, or a random projection as here); torchcfm's
couples pixels, as its `sample_plan` does. Both then hand back paired images. The other rows take away one advantage each.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from claims import Row, not_measured, row
from interleaved import interleave, paired_ratio
from torch import Tensor
from torch.nn.functional import interpolate

from cellbridge.errors import NumericalError
from cellbridge.transport.cost import project, random_projection, transport_cost
from cellbridge.transport.coupling import Coupling, couple, relative_entropy
from cellbridge.transport.pairing import draw_targets

FASTER = 5.0
"""How many times as fast as torchcfm's sample_plan a coupling is to be."""

_CELLS, _CHANNELS, _SIZE_PX, _WIDTH = 512, 5, 64, 256
_VOLATILITIES = (0.1, 1.0)


@dataclass(frozen=True)
class Batch:
    """Images of either side, and their projections."""

    source: Tensor
    target: Tensor
    source_features: Tensor
    target_features: Tensor
    projection: Tensor


def coupling(*, quick: bool, device: torch.device) -> dict[str, Any]:
    """Measure couplings of 512 smooth random images of 5 × 64 × 64 a side, beside torchcfm's on the same images."""
    names = ("time", "sources used", "cost of the plan", "entropy of Sinkhorn plans")
    try:
        from torchcfm.optimal_transport import OTPlanSampler
    except ImportError:
        why = "torchcfm is not installed; pip install 'cellbridge[bench]'"
        return {"rows": [not_measured(f"coupling, {name}", why) for name in names]}
    peer = OTPlanSampler("exact")
    batch = make_batch(_CELLS, device=device)
    rows = [*_times(batch, peer, quick=quick), *_uses(batch, peer), _equal_cost(batch, peer), *_entropies(batch)]
    return {"rows": rows}


def make_batch(cells: int, *, device: torch.device) -> Batch:
    """Return images that vary smoothly, of two conditions that differ in their mean."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, cells, _CHANNELS, 8, 8, generator=generator)
    coarse[1] += 0.3
    source, target = (interpolate(side, size=_SIZE_PX, mode="bicubic").clamp(-1, 1).to(device) for side in coarse)
    projection = random_projection(source[0].numel(), _WIDTH, generator=generator).to(device)
    return Batch(source, target, project(source, projection), project(target, projection), projection)


def paired(batch: Batch, **settings: Any) -> tuple[Tensor, Tensor]:
    """Return sources and their targets, coupled on the features that are there."""
    found = couple(transport_cost(batch.source_features, batch.target_features), **settings)
    chosen = draw_targets(found, generator=torch.Generator().manual_seed(0))
    return batch.source, batch.target[chosen]


def projected_and_paired(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the same with the features computed anew."""
    features = [project(side, batch.projection) for side in (batch.source, batch.target)]
    return paired(Batch(batch.source, batch.target, *features, batch.projection), method="exact")


def _times(batch: Batch, peer: Any, *, quick: bool) -> list[Row]:
    features = Batch(*[batch.source_features, batch.target_features] * 2, batch.projection)
    contenders = {
        "exact": lambda: paired(batch, method="exact"),
        "auto": lambda: paired(batch, reg=0.1, reg_unit="spread"),
        "anew": lambda: projected_and_paired(batch),
        "torchcfm": lambda: peer.sample_plan(batch.source, batch.target),
        "exact on features": lambda: paired(features, method="exact"),
        "torchcfm on features": lambda: peer.sample_plan(batch.source_features, batch.target_features),
    }
    synchronize = torch.cuda.synchronize if batch.source.is_cuda else None
    times = interleave(contenders, blocks=5 if quick else 20, synchronize=synchronize)
    claims = {
        "pairs of 512 images, cost in 256 dimensions that are at hand": ("torchcfm", "exact", FASTER),
        "the same, regularised (reg a tenth of the costs' spread)": ("torchcfm", "auto", None),
        "the same, projected to 256 dimensions anew": ("torchcfm", "anew", None),
        "pairs of the 512 projections themselves": ("torchcfm on features", "exact on features", None),
    }
    found = []
    for claim, (slow, fast, goal) in claims.items():
        ratio = paired_ratio(times[slow], times[fast])
        found.append(row(f"speed / {slow}: {claim}", ratio.value, interval=ratio.interval, at_least=goal, unit="×"))
    return found


def _uses(batch: Batch, peer: Any) -> list[Row]:
    """Return the share of the sources that are in some pair; a peer's pairs are told by their first pixels."""
    ours = _distinct(paired(batch, method="exact")[0])
    theirs = _distinct(peer.sample_plan(batch.source, batch.target)[0])
    return [
        row("sources used", ours / len(batch.source), at_least=1.0),
        row("sources used by torchcfm", theirs / len(batch.source)),
    ]


def _distinct(images: Tensor) -> int:
    return len(torch.unique(images.flatten(1)[:, :64], dim=0))


def _equal_cost(batch: Batch, peer: Any) -> Row:
    cost = transport_cost(batch.source_features, batch.target_features, dtype=torch.float64)
    plan = torch.as_tensor(peer.get_map(batch.source_features, batch.target_features), device=cost.device)
    ratio = couple(cost, method="exact").cost / float((plan * cost).sum())
    return row("|cost of the plan / torchcfm's - 1| on equal costs", abs(ratio - 1), at_most=1e-6)


def _entropies(batch: Batch) -> list[Row]:
    """Return relative entropies of entropic plans of pixels: 1 is random pairing, what an underflown kernel falls back to."""
    source, target = batch.source[:128], batch.target[:128]
    cost = transport_cost(source, target, dtype=torch.float64)
    rows = []
    for sigma in _VOLATILITIES:
        claim = f"relative entropy of the plan of 128 images at σ = {sigma:g}"
        rows.append(row(f"{claim}, torchcfm's sinkhorn", relative_entropy(_their_plan(source, target, 2 * sigma**2))))
        try:
            found: Coupling = couple(cost, reg=sigma**2, method="stabilised")
            rows.append(row(claim, found.relative_entropy))
        except NumericalError as error:
            rows.append(not_measured(claim, str(error)))
    return rows


def _their_plan(source: Tensor, target: Tensor, reg: float) -> Tensor:
    from torchcfm.optimal_transport import OTPlanSampler

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return torch.as_tensor(OTPlanSampler("sinkhorn", reg=reg).get_map(source, target)).double()
