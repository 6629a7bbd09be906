"""How often something was found, and where first: what a summary says of many without naming all of them."""

from dataclasses import dataclass, field
from typing import Any

SHOWN = 5


@dataclass
class Tally:
    """A count, and the names of the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(name)

    def values(self) -> dict[str, Any]:
        """Return both as JSON has them."""
        return {"count": self.count, "first": list(self.first)}

    @property
    def names(self) -> str:
        """`a; b; … 3 more`, for a line."""
        more = self.count - len(self.first)
        return "; ".join([*self.first, *([f"… {more} more"] if more else [])])
