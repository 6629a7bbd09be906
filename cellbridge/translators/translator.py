"""The joint of everything that turns a cell under one condition into the same cell under another."""

from abc import ABC, abstractmethod

from cellbridge.conditions import Condition
from cellbridge.typing import CellBatch


class Translator(ABC):
    """Image, source and target condition → image.

    Models, pools of other cells and renderers are constructor arguments; `name` says in results which translator it was.
    """

    name: str

    @abstractmethod
    def translate(self, batch: CellBatch, *, target: Condition) -> CellBatch:
        """Return the batch with the images its cells would have under `target`.

        Cell ids, plates and seeds are kept, `conditions` become the target's name. Each image depends on its own source, plate and
        seed only, not on the batch it came in.
        """
