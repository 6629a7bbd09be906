"""What cellbridge's bridges stand beside: torchcfm's SF2M and SB-CFM, and LightSB, at equal processor seconds.

torchcfm's classes are used as they come, with the settings of its SF2M tutorial: two perceptrons of three hidden layers of 64 SELU units, Adam
at 0.01, batches of 256, exact couplings, 100 steps. LightSB is written here as published, with diagonal covariances.

References
----------
Tong et al. 2024, arXiv:2307.03672 (SF2M, SB-CFM). Korotin et al. 2024, arXiv:2310.01174, eq. 12 and proposition 3.3 (LightSB).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor, nn

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.integrate import Grid, times

Carry = Callable[[Tensor, Generator], Tensor]
"""Sources (n, d), randomness → one draw of X_1 for each."""

_BATCH, _RATE, _STEPS = 256, 0.01, 100
_POTENTIALS, _LIGHT_BATCH, _LIGHT_RATE, _LIGHT_SPREAD = 10, 128, 1e-3, 0.1


def fit_sf2m(source: Tensor, target: Tensor, *, reg: float, seed: int, budget: Budget) -> dict[Grid, Carry]:
    """Fit flow and score as the tutorial does; return samplers of the SDE on either grid."""
    flow, score = _fit_torchcfm(source, target, reg=reg, seed=seed, budget=budget, with_score=True)
    assert score is not None

    def carry(grid: Grid) -> Carry:
        @torch.no_grad()
        def run(x: Tensor, chance: Generator) -> Tensor:
            x = x.float()
            for now, later in pairwise(times(_STEPS, grid=grid).tolist()):
                seen = torch.cat([x, torch.full((len(x), 1), now)], dim=1)
                noise = torch.randn(x.shape, generator=chance)
                x = x + (later - now) * (flow(seen) + score(seen)) + (reg * (later - now)) ** 0.5 * noise
            return x

        return run

    return {"uniform": carry("uniform"), "quadratic": carry("quadratic")}


def fit_sb_cfm(source: Tensor, target: Tensor, *, reg: float, seed: int, budget: Budget) -> dict[Grid, Carry]:
    """Fit the flow alone; return samplers of the ODE on either grid."""
    flow, _ = _fit_torchcfm(source, target, reg=reg, seed=seed, budget=budget, with_score=False)

    def carry(grid: Grid) -> Carry:
        @torch.no_grad()
        def run(x: Tensor, chance: Generator) -> Tensor:
            x = x.float()
            for now, later in pairwise(times(_STEPS, grid=grid).tolist()):
                x = x + (later - now) * flow(torch.cat([x, torch.full((len(x), 1), now)], dim=1))
            return x

        return run

    return {"uniform": carry("uniform"), "quadratic": carry("quadratic")}


def _fit_torchcfm(
    source: Tensor, target: Tensor, *, reg: float, seed: int, budget: Budget, with_score: bool
) -> tuple[nn.Module, nn.Module | None]:
    from torchcfm.conditional_flow_matching import SchrodingerBridgeConditionalFlowMatcher
    from torchcfm.models import MLP

    source, target = source.float(), target.float()
    with _seeded(seed):
        flow, score = (MLP(dim=source.shape[1], time_varying=True, w=64) for _ in range(2))
        networks = [flow, score] if with_score else [flow]
        optimizer = torch.optim.Adam([p for network in networks for p in network.parameters()], _RATE)
        matcher = SchrodingerBridgeConditionalFlowMatcher(sigma=reg**0.5)
        while budget.used < 1:
            rows = [side[torch.randint(len(side), (_BATCH,))] for side in (source, target)]
            t, x, velocity, noise = matcher.sample_location_and_conditional_flow(*rows, return_noise=True)
            seen = torch.cat([x, t[:, None]], dim=1)
            loss = (flow(seen) - velocity).square().mean()
            if with_score:
                loss = loss + (matcher.compute_lambda(t)[:, None] * score(seen) + noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return flow, score if with_score else None


def fit_lightsb(source: Tensor, target: Tensor, *, reg: float, seed: int, budget: Budget) -> Carry:
    """Fit ten potentials of diagonal covariance by Adam; return a sampler of their plan."""
    chance = Generator().manual_seed(seed)
    source, target = source.float(), target.float()
    offsets = target[torch.randint(len(target), (_POTENTIALS,), generator=chance)].clone().requires_grad_()
    log_spread = torch.full_like(offsets, _LIGHT_SPREAD).log().requires_grad_()
    log_weights = torch.zeros(_POTENTIALS, requires_grad=True)
    optimizer = torch.optim.Adam([offsets, log_spread, log_weights], _LIGHT_RATE)

    def of_source(x: Tensor) -> Tensor:
        spread = log_spread.exp()
        return log_weights + (x.square() @ spread.T + 2 * x @ offsets.T) / (2 * reg)

    def of_target(y: Tensor) -> Tensor:
        variance = reg * log_spread.exp()
        apart = (y[:, None] - offsets).square() / variance
        return log_weights - (apart.sum(-1) + variance.log().sum(-1)) / 2

    while budget.used < 1:
        x, y = (side[torch.randint(len(side), (_LIGHT_BATCH,), generator=chance)] for side in (source, target))
        loss = of_source(x).logsumexp(1).mean() - of_target(y).logsumexp(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def carry(x: Tensor, chance: Generator) -> Tensor:
        x = x.float()
        chosen = torch.multinomial(of_source(x).softmax(1), 1, generator=chance)[:, 0]
        spread = log_spread.exp()[chosen]
        noise = torch.randn(x.shape, generator=chance)
        return offsets[chosen] + spread * x + (reg * spread).sqrt() * noise

    return carry


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give torchcfm, which knows global random states only, seeded ones; both are restored."""
    before = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
