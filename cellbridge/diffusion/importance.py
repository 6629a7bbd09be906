"""Times drawn in proportion to how large their losses have been, and the weights that keep the loss's mean.

References
----------
Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models", arXiv:2102.09672, eq. 18; their code's `resample.py`.
"""

from typing import final

import torch
from torch import Tensor

from cellbridge.typing import Times

HISTORY = 10
"""Losses of each time that count; times are uniform until every one has as many."""

UNIFORM = 1e-3
"""Share of the draws that stays uniform, so that no time is forgotten."""

_UNITS = 2**40
"""Probabilities are whole multiples of this fraction: integers add up to the same sum in any order, on any device."""


@final
class ImportanceTimes:
    """p_t ∝ sqrt(E[L_t^2]) over the last losses of each whole time t, mixed with a uniform share.

    A loss is noted as it comes, and counts from the next step's draw on: so a step is a function of what `state` held before it,
    however it is cut into micro-batches, and computing a loss twice (to count its operations) changes nothing. Everything stays on the
    device. T = 1000 needs about 23,000 images, drawn in strata by 32 or by 128, until every time has its ten losses.

    Parameters
    ----------
    steps : T.
    """

    def __init__(
        self, steps: int, *, device: torch.device | str = "cpu", history: int = HISTORY, uniform: float = UNIFORM
    ):
        self.steps = steps
        self._uniform = uniform
        self._losses = torch.zeros(steps, history, device=device)
        self._counts = torch.zeros(steps, dtype=torch.int64, device=device)
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}

    def state(self) -> dict[str, Tensor]:
        """Return the live tensors that later draws depend on: (T, history) losses and (T,) how many of each time were seen."""
        self._settle()
        return {"losses": self._losses, "counts": self._counts}

    def draw(self, u: Tensor) -> tuple[Times, Tensor]:
        """Return whole times and the weights 1 / (T p_t) of their losses, from numbers u in (0, 1] that may be stratified."""
        self._settle()
        mass = self._mass()
        cumulative = mass.cumsum(0)
        wanted = (u.to(torch.float32) * cumulative[-1]).long().clamp(1)
        index = torch.searchsorted(cumulative, wanted).clamp_max(self.steps - 1)
        weights = cumulative[-1] / (self.steps * mass[index])
        return index.to(u.dtype), weights.to(u.dtype)

    def probabilities(self) -> Tensor:
        """Return p_t: (T,), float32."""
        mass = self._mass()
        return mass / mass.sum()

    def note(self, t: Times, losses: Tensor, *, micro: int) -> None:
        """Take the losses of a micro-batch at whole times; one that was noted since the last draw is replaced."""
        self._pending[micro] = (t.detach().long(), losses.detach().float())

    def _mass(self) -> Tensor:
        size = self._losses.square().mean(1).sqrt()
        learned = (1 - self._uniform) * size / size.sum() + self._uniform / self.steps
        known = self._counts.min() >= self._losses.shape[1]
        return (torch.where(known, learned, 1 / self.steps) * _UNITS).round().long().clamp_min(1)

    def _settle(self) -> None:
        if not self._pending:
            return
        parts = [self._pending[micro] for micro in sorted(self._pending)]
        self._pending.clear()
        self._append(torch.cat([t for t, _ in parts]), torch.cat([losses for _, losses in parts]))

    def _append(self, t: Tensor, losses: Tensor) -> None:
        """Write each loss over the oldest of its time; of more than fit at once, the last ones stay."""
        length = self._losses.shape[1]
        t, order = t.sort(stable=True)
        first, behind = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True)
        rank = torch.arange(len(t), device=t.device) - first
        slot = (self._counts[t] + rank) % length
        row = torch.where(
            rank >= behind - first - length, t, self.steps
        )  # a row below the table takes what does not fit
        table = torch.cat([self._losses, self._losses.new_zeros(1, length)])
        self._losses.copy_(table.index_put_((row, slot), losses[order])[: self.steps])
        self._counts.index_add_(0, t, torch.ones_like(t))
