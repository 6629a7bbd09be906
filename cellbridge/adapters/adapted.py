"""One network and several adapters: the weights of the base, of one adapter, or of a blend of some, by name.

Weights are merged, so that every choice costs what the base costs. They are made from the base's own each time and never by adding
and taking away, so that they cannot drift.

References
----------
Hu et al. 2021, "LoRA", arXiv:2106.09685, eq. 3. Liu et al. 2024, "DoRA", arXiv:2402.09353, eq. 5.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellbridge.adapters.library import load_adapter
from cellbridge.adapters.lora import CONDITION_EMBEDDING, condition_rows
from cellbridge.errors import ModelError, did_you_mean

_PEFT = "base_model.model."
_ONLY = "default"
"""peft's name of an adapter that is alone."""


@dataclass(frozen=True)
class Update:
    """What an adapter makes of one weight W of any shape, its outputs first.

    W + scale B A or, where lengths are trained apart, the rows of that with the lengths m (DoRA).

    Parameters
    ----------
    A, B : (rank, inputs) and (outputs, rank).
    lengths : (outputs,), or None.
    """

    A: Tensor
    B: Tensor
    scale: float
    lengths: Tensor | None

    def adapted(self, weight: Tensor) -> Tensor:
        """Return the adapter's weight in place of the base's."""
        flat = weight.flatten(1) + self.scale * (self.B @ self.A)
        if self.lengths is not None:
            flat = flat * (self.lengths / flat.norm(dim=1))[:, None]
        return flat.view_as(weight)


class AdaptedNetwork:
    """A copy of a base whose weights are chosen among its adapters; no adapter is in force at the start.

    Memory holds the base twice and each adapter as its file does.

    Parameters
    ----------
    base : is left as it is, and read whenever weights are chosen.
    sha256 : the base's hash, which adapters have to be bound to.
    """

    def __init__(self, base: nn.Module, *, sha256: str):
        self.network = copy.deepcopy(base).eval().requires_grad_(False)
        self._base, self._sha256 = base, sha256
        self._adapters: dict[str, dict[str, Update | Tensor]] = {}
        self._shares: dict[str, float] = {}

    @property
    def attached(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they came."""
        return tuple(self._adapters)

    @property
    def shares(self) -> dict[str, float]:
        """What is in force: the share of each adapter, those of none left out."""
        return dict(self._shares)

    def attach(self, name: str, directory: Path) -> None:
        """Read an adapter from its directory; the weights in force stay what they are.

        Raises
        ------
        ModelError : the name is taken; or, as `load_adapter`, it belongs to another base or is damaged.
        """
        if name in self._adapters:
            raise ModelError(f'{directory}: an adapter called "{name}" is attached already. Detach it first.')
        with torch.random.fork_rng(devices=[]):  # peft draws weights before it reads them
            model = load_adapter(copy.deepcopy(self._base), directory, base_sha256=self._sha256)
        self._adapters[name] = dict(_changes(model))

    def use(self, shares: Mapping[str, float]) -> None:
        """Put weights in force: (1 - sum of shares) W + sum of share_i W_i for each weight W of the base.

        Nothing is the base, one adapter with share 1 that adapter, with another share the same at another strength, and two with
        shares w and 1 - w lie between them: updates, lengths and condition embedding alike.

        Raises
        ------
        ModelError : there is no adapter of that name.
        """
        for name in shares:
            self._require(name)
        chosen = {name: float(share) for name, share in shares.items() if share != 0}
        changed = {weight for name in (*self._shares, *chosen) for weight in self._adapters[name]}
        own, live = dict(self._base.named_parameters()), dict(self.network.named_parameters())
        with torch.no_grad():
            for weight in sorted(changed):
                live[weight].copy_(self._weight(weight, own[weight], chosen))
        self._shares = chosen

    def detach(self, name: str) -> None:
        """Forget an adapter; where it is in force, the base comes back.

        Raises
        ------
        ModelError : there is no adapter of that name.
        """
        self._require(name)
        if name in self._shares:
            self.use({})
        del self._adapters[name]

    def _weight(self, name: str, base: Tensor, shares: Mapping[str, float]) -> Tensor:
        adapted = {
            adapter: change.adapted(base) if isinstance(change, Update) else change
            for adapter in shares
            if (change := self._adapters[adapter].get(name)) is not None
        }
        rest = 1 - sum(shares[adapter] for adapter in adapted)
        if not adapted:
            return base
        total = sum((shares[adapter] * weight for adapter, weight in adapted.items()), torch.zeros_like(base))
        return total if rest == 0 else total + rest * base

    def _require(self, name: str) -> None:
        if name not in self._adapters:
            raise ModelError(
                f'no adapter called "{name}" is attached; there are {list(self._adapters)}.'
                f"{did_you_mean(name, self._adapters)}"
            )


def _changes(model: nn.Module) -> Iterator[tuple[str, Update | Tensor]]:
    """Yield what an adapter that peft has loaded makes of each of the base's weights, by name."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield f"{name.removeprefix(_PEFT)}.weight", _update(module)
    row_name = next(name for name, _ in model.named_parameters() if CONDITION_EMBEDDING in name.split("."))
    prefix = row_name.removeprefix(_PEFT).split(f"{CONDITION_EMBEDDING}.")[0]
    yield f"{prefix}{CONDITION_EMBEDDING}.weight", condition_rows(model).detach().clone()


def _update(layer: Any) -> Update:
    magnitude = layer.lora_magnitude_vector[_ONLY].weight if _ONLY in layer.lora_magnitude_vector else None
    return Update(
        layer.lora_A[_ONLY].weight.detach().flatten(1).clone(),
        layer.lora_B[_ONLY].weight.detach().flatten(1).clone(),
        layer.scaling[_ONLY],
        None if magnitude is None else magnitude.detach().flatten().clone(),
    )
