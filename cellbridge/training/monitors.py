"""Losses and monitors between two log steps, gathered on the device and read by the host only when asked."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Combines a tensor over processes, elementwise: its sum, or its largest; the identity for one process."""


class Tally:
    """Figures by name; those of a micro-batch are combined with those held in one step for all names.

    A name stands for one figure, or for a grid of them: then it has two places, `{}`, which the row's and the column's number take.

    Parameters
    ----------
    combine : (held, new) → held, elementwise.
    neutral : the figure that changes nothing; it stands for a name that a micro-batch does not give.
    width : tensors per name.
    """

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor], *, neutral: float, width: int):
        self._combine, self._neutral, self._width = combine, neutral, width
        self.clear()

    def clear(self) -> None:
        """Hold nothing."""
        self._names: list[str] = []
        self._held: Tensor | None = None
        self._grids: dict[str, Tensor] = {}

    def add(self, new: Mapping[str, Sequence[Tensor]]) -> None:
        """Combine with what is held; by name, `width` tensors of one device, 0-dimensional or (row, column)."""
        self._add_single({name: tensors for name, tensors in new.items() if tensors[0].ndim == 0})
        for name, tensors in new.items():
            if tensors[0].ndim:
                grid = torch.stack([tensor.detach().float() for tensor in tensors])
                self._grids[name] = self._combine(self._grids[name], grid) if name in self._grids else grid

    def _add_single(self, new: Mapping[str, Sequence[Tensor]]) -> None:
        if not new:
            return
        names = self._names + [name for name in new if name not in self._names]
        spare = [torch.full((), self._neutral, device=next(iter(new.values()))[0].device)] * self._width
        flat = [tensor.detach().float() for name in names for tensor in new.get(name, spare)]
        rows = torch.stack(flat).view(len(names), self._width)
        if self._held is not None:
            rows[: len(self._names)] = self._combine(self._held, rows[: len(self._names)])
        self._names, self._held = names, rows

    def read(self, reduce: Reduce) -> dict[str, list[float]]:
        """Return each figure's `width` numbers by its own name, combined over processes; waits for the device."""
        found = {} if self._held is None else dict(zip(self._names, reduce(self._held).tolist(), strict=True))
        for name, grid in self._grids.items():
            for row, figures in enumerate(reduce(grid).permute(1, 2, 0).tolist()):
                found |= {name.format(row, column): numbers for column, numbers in enumerate(figures)}
        return found

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return each name's figures, (width,) or (width, row, column), under the prefixed name."""
        rows = {} if self._held is None else dict(zip(self._names, self._held, strict=True))
        return {prefix + name: tensor for name, tensor in (rows | self._grids).items()}

    def load(self, tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> None:
        """Hold what `tensors` returned, in its order or any other."""
        found = {name.removeprefix(prefix): row.to(device) for name, row in tensors.items() if name.startswith(prefix)}
        rows = {name: row for name, row in found.items() if row.ndim == 1}
        self._names = list(rows)
        self._held = torch.stack(list(rows.values())) if rows else None
        self._grids = {name: grid for name, grid in found.items() if grid.ndim > 1}


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
        self._sums = Tally(torch.add, neutral=0.0, width=2)
        self._minima = Tally(torch.minimum, neutral=math.inf, width=1)
        self._maxima = Tally(torch.maximum, neutral=-math.inf, width=1)

    def add_monitors(
        self,
        means: Mapping[str, tuple[Tensor, Tensor]],
        *,
        minima: Mapping[str, Tensor] | None = None,
        maxima: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add one micro-batch's (sum, count) pairs, smallest and largest values, by name; a grid's extrema may be infinite where it is empty."""
        self._sums.add(means)
        self._minima.add({name: (value,) for name, value in (minima or {}).items()})
        self._maxima.add({name: (value,) for name, value in (maxima or {}).items()})

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

    def values(self, total: Reduce, largest: Reduce) -> dict[str, float]:
        """Return the mean loss and gradient norm over steps, each monitor's sum over its count, and the extrema; waits for the device.

        Parameters
        ----------
        total, largest : the sum and the largest over processes.
        """
        if not self.steps:
            return {}
        losses = total(self._losses[: self.steps]).mean()
        loss, norm = torch.stack((losses, self._norms[: self.steps].mean())).tolist()
        sums, maxima = self._sums.read(total), self._maxima.read(largest)
        minima = self._minima.read(lambda values: -largest(-values))
        means = {name: value / count for name, (value, count) in sums.items() if count > 0}
        lowest = {name: value for name, (value,) in minima.items() if value < math.inf}
        highest = {name: value for name, (value,) in maxima.items() if value > -math.inf}
        return {"loss": loss, "gradient_norm": norm} | means | lowest | highest

    def reset(self) -> None:
        """Begin a new window."""
        self.steps = 0
        for _, tally in self._tallies():
            tally.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Return the window's content, so that a resumed run logs what the uninterrupted one does."""
        held = {"losses": self._losses[: self.steps], "gradient_norms": self._norms[: self.steps]}
        for prefix, tally in self._tallies():
            held |= tally.tensors(prefix)
        return held

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        device = self._losses.device
        self.steps = len(tensors["losses"])
        spare = torch.zeros(len(self._losses), device=device)
        self._losses = torch.cat((tensors["losses"].to(device), spare))
        self._norms = torch.cat((tensors["gradient_norms"].to(device), spare))
        for prefix, tally in self._tallies():
            tally.load(tensors, prefix, device)

    def _tallies(self) -> tuple[tuple[str, Tally], ...]:
        return ("monitors/", self._sums), ("minima/", self._minima), ("maxima/", self._maxima)


class Clock:
    """Seconds per step and the shares of them spent waiting for data and for checkpoints, without the time that the events' reader takes."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was before now."""
        self.steps = 0
        self._began = time.perf_counter()
        self._away = self._data = self._checkpoint = 0.0

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

    @contextmanager
    def waiting_for_checkpoint(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._checkpoint += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Return the figures since the last reading, and begin again."""
        elapsed = max(1e-9, time.perf_counter() - self._began - self._away)
        values = {
            "seconds_per_step": elapsed / max(1, self.steps),
            "data_wait": self._data / elapsed,
            "checkpoint_stall": self._checkpoint / elapsed,
        }
        self.begin()
        return values
