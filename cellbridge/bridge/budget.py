"""Processor seconds that a fit may take, so that its cost does not depend on what else the machine does."""

import time
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class Budget:
    """A number of processor seconds of this process, all threads together, from its creation on.

    Parameters
    ----------
    seconds : how many.
    """

    seconds: float
    began: float = field(default_factory=time.process_time)

    @property
    def used(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        return min(1.0, (time.process_time() - self.began) / self.seconds)

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.seconds - (time.process_time() - self.began))

    def part(self, share: float) -> "Budget":
        """Return a budget that begins now, of a share of what is left."""
        return Budget(max(self.left * share, 1e-9))
