"""What extractors and classifier see in images: each cell of a store is looked at once, whichever rows and sections ask for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellbridge.data.comparison import Rows
from cellbridge.data.store import Store
from cellbridge.metrics.features import Extractor, extract

_AT_ONCE = 1024
"""Cells whose images are in memory together while they are looked at."""


@dataclass(frozen=True)
class Judges:
    """What looks at images.

    Parameters
    ----------
    extractors : the first gives the columns of the main table.
    logits : images → (n, condition).
    conditions : of the logits' columns, by name.
    missing : what was asked for and cannot be had → why.
    """

    extractors: tuple[Extractor, ...]
    logits: Callable[[Tensor], NDArray[np.floating]]
    conditions: tuple[str, ...]
    missing: Mapping[str, str]

    def look(self, images: Tensor) -> "Seen":
        """Return what all of them see in images (n, channel, height, width)."""
        return Seen({part.name: extract(part, images) for part in self.extractors}, self.logits(images))


@dataclass(frozen=True)
class Seen:
    """Features by extractor, (n, feature) each, and the classifier's logits, (n, condition)."""

    features: Mapping[str, Tensor]
    logits: NDArray[np.floating]

    def take(self, rows: NDArray[np.int64]) -> "Seen":
        """Return what was seen in some of the images."""
        some = torch.as_tensor(rows)
        return Seen({name: found[some] for name, found in self.features.items()}, self.logits[rows])


class Sight:
    """A store, seen through judges; what was seen of a cell is kept.

    Parameters
    ----------
    store : whose cells are looked at.
    judges : what looks at them.
    """

    def __init__(self, store: Store, judges: Judges):
        self.store = store
        self._judges = judges
        self._place = np.full(store.info.n_cells, -1, dtype=np.int64)
        self._kept: Seen | None = None

    def images(self, rows: Rows) -> Tensor:
        """Return images (n, channel, height, width) in [-1, 1]."""
        return torch.from_numpy(self.store.images(rows))

    def seen(self, rows: Rows) -> Seen:
        """Return features and logits of rows, which may repeat, looking only at cells that were not seen before."""
        unseen = np.unique(rows[self._place[rows] < 0])
        for start in range(0, len(unseen), _AT_ONCE):
            self._keep(unseen[start : start + _AT_ONCE])
        if self._kept is None:
            return self._judges.look(self.images(rows))
        return self._kept.take(self._place[rows])

    def _keep(self, rows: Rows) -> None:
        found = self._judges.look(self.images(rows))
        known = 0 if self._kept is None else len(self._kept.logits)
        self._place[rows] = known + np.arange(len(rows))
        self._kept = found if self._kept is None else _joined([self._kept, found])


def _joined(parts: Sequence[Seen]) -> Seen:
    features: dict[str, Any] = {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features}
    return Seen(features, np.concatenate([part.logits for part in parts]))
