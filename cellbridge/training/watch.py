"""Whether all is finite and whether to stop: gathered on the device, and learnt by the host without waiting for it."""

from dataclasses import dataclass

import torch
from torch import Tensor

EVERY = 10
"""Steps between two looks. What a look sees was posted at the one before, so that news are less than 2 EVERY steps old."""


@dataclass(frozen=True)
class Signs:
    """What a look saw."""

    finite: bool = True
    """Every loss and gradient norm so far was finite."""
    stop: bool = False
    """A process was asked to stop."""


class Watch:
    """Two numbers on the device that only ever turn bad, and their copy in host memory from an earlier step.

    Parameters
    ----------
    device : on an accelerator the copy lies in page-locked memory, and an event says that it has arrived.
    """

    def __init__(self, device: torch.device):
        self._accelerated = device.type == "cuda"
        self._signs = torch.zeros(2, device=device)
        self._copy = torch.zeros(2, pin_memory=self._accelerated)
        self._host = self._copy.numpy()
        self._arrived = torch.cuda.Event() if self._accelerated else None
        self._looked = 0

    def begin(self, step: int) -> None:
        """Count the steps to the next look from `step`."""
        self._looked = step

    def note(self, loss: Tensor, gradient_norm: Tensor, *, stops: Tensor | None = None) -> None:
        """Add one step's signs; every process has to note the same numbers.

        Parameters
        ----------
        loss, gradient_norm : 0-dimensional, on the device. 0 x is 0 where x is finite, and otherwise not a number for good.
        stops : 0-dimensional: how many processes were asked to stop by now.
        """
        self._signs[0].add_(0.0 * loss.detach()).add_(0.0 * gradient_norm)
        if stops is not None:
            self._signs[1].add_(stops)

    def look(self, step: int) -> Signs:
        """Return what the device had noted `EVERY` steps ago, and post what it notes now; between looks, return nothing new."""
        if step - self._looked < EVERY:
            return Signs()
        seen = self._read()
        self._post()
        self._looked = step
        return seen

    def look_now(self) -> Signs:
        """Return what the device has noted, waiting for it."""
        self._post()
        return self._read()

    def _post(self) -> None:
        self._copy.copy_(self._signs, non_blocking=self._accelerated)
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(self._signs.device))

    def _read(self) -> Signs:
        if self._arrived is not None:
            self._arrived.synchronize()  # recorded EVERY steps ago: it passed long since, unless the host is far ahead
        return Signs(finite=bool(self._host[0] == 0), stop=bool(self._host[1] > 0))
