"""Losses and monitors between two log steps, gathered on the device and read by the host only when asked."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over processes; the identity for one process."""


class Window:
    """What happened since the last log step.

    Parameters
    ----------
    capacity : the most steps that it will hold.
    device : where its tensors lie; adding to it never waits for the device.
    """

    def __init__(self, capacity: int, device: torch.device):
        self.steps = 0
        self._losses = torch.zeros(capacity, device=device)
        self._norms = torch.zeros(capacity, device=device)
        self._sums: dict[str, Tensor] = {}

    def add_monitors(self, monitors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add (sum, count) pairs, by name, of one micro-batch."""
        for name, (total, count) in monitors.items():
            pair = torch.stack((total.detach().float(), count.detach().float()))
            if name in self._sums:
                self._sums[name] += pair
            else:
                self._sums[name] = pair

    def close_step(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Record the loss and gradient norm (0-dimensional, on the device) of one optimiser step."""
        self._losses[self.steps] = loss
        self._norms[self.steps] = gradient_norm
        self.steps += 1

    def first_non_finite(self, reduce: Reduce) -> tuple[int, str] | None:
        """Return which step of the window (from 0) was first not finite, and "loss" or "gradient"; waits for the device."""
        losses = reduce(self._losses[: self.steps])
        for index, values in enumerate(torch.stack((losses, self._norms[: self.steps]), dim=1).tolist()):
            for kind, value in zip(("loss", "gradient"), values, strict=True):
                if not math.isfinite(value):
                    return index, kind
        return None

    def means(self, reduce: Reduce) -> dict[str, float]:
        """Return the mean loss and gradient norm over steps, and each monitor's sum over its count; waits for the device."""
        if not self.steps:
            return {}
        losses = reduce(self._losses[: self.steps]).mean()
        rows = [torch.stack((losses, self._norms[: self.steps].mean()))]
        rows += [reduce(pair) for pair in self._sums.values()]
        (loss, norm), *pairs = torch.stack(rows).tolist()
        named = zip(self._sums, pairs, strict=True)
        return {"loss": loss, "gradient_norm": norm} | {name: s / n for name, (s, n) in named if n > 0}

    def reset(self) -> None:
        """Begin a new window."""
        self.steps = 0
        self._sums = {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the window's content, so that a resumed run logs what the uninterrupted one does."""
        sums = {f"monitors/{name}": pair for name, pair in self._sums.items()}
        return {"losses": self._losses[: self.steps], "gradient_norms": self._norms[: self.steps], **sums}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        device = self._losses.device
        self.steps = len(tensors["losses"])
        spare = torch.zeros(len(self._losses), device=device)
        self._losses = torch.cat((tensors["losses"].to(device), spare))
        self._norms = torch.cat((tensors["gradient_norms"].to(device), spare))
        names = [name.removeprefix("monitors/") for name in tensors if name.startswith("monitors/")]
        self._sums = {name: tensors[f"monitors/{name}"].to(device) for name in names}


class Clock:
    """Seconds per step and the share of them spent waiting for data, without the time that the events' reader takes."""

    def __init__(self) -> None:
        self.steps = 0
        self._began = time.perf_counter()
        self._away = 0.0
        self._data = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._away += time.perf_counter() - began

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._data += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Return the figures since the last reading, and begin again."""
        elapsed = max(1e-9, time.perf_counter() - self._began - self._away)
        values = {"seconds_per_step": elapsed / max(1, self.steps), "data_wait": self._data / elapsed}
        self.steps, self._began, self._away, self._data = 0, time.perf_counter(), 0.0, 0.0
        return values
