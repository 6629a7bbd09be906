"""The joint of everything that turns a cell under one condition into the same cell under another."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from cellbridge.conditions import Condition
from cellbridge.typing import CellBatch, Images


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


@dataclass(frozen=True)
class Trajectory:
    """The way of each cell of a batch, as some frames.

    Parameters
    ----------
    times : rising strictly from 0 (the source) to 1 (the result); what lies at a time between, the translator says.
    frames : one batch of images per time; the first are the source cells, the last what `translate` returns.
    """

    times: tuple[float, ...]
    frames: tuple[Images, ...]


class TracedTranslator(Translator):
    """A translator that takes a cell to its target step by step, and can show the way."""

    @abstractmethod
    def trace(self, batch: CellBatch, *, target: Condition, frames: int) -> Trajectory:
        """Return at most `frames` (two or more) frames of each cell's way, as even in time as the steps allow.

        Raises
        ------
        ConfigError : these settings make the result in another way than from the cell, or leave the cell as it is.
        """


def nearest_times(times: Sequence[float], *, frames: int) -> list[int]:
    """Return the positions, ascending and without repeats, of those times that lie nearest to `frames` even ones from the first to the last.

    Raises
    ------
    ValueError : fewer than two frames.
    """
    if frames < 2:
        raise ValueError(f"{frames} frames: two at least, the first and the last")
    first, last = times[0], times[-1]
    even = (first + (last - first) * number / (frames - 1) for number in range(frames))
    return sorted({min(range(len(times)), key=lambda i: abs(times[i] - wanted)) for wanted in even})


def pick_frames(source: Images, seen: list[tuple[float, Images]], result: Images, *, frames: int) -> Trajectory:
    """Return source, some of what was seen in between, and result.

    Parameters
    ----------
    seen : (time, images); what does not lie later than all before it, and before the end, is left out (a solver's second look).
    """
    times, images = [0.0], [source]
    for time, looked in seen:
        if times[-1] < time < 1:
            times.append(time)
            images.append(looked)
    times.append(1.0)
    images.append(result)
    chosen = nearest_times(times, frames=frames)
    return Trajectory(tuple(times[i] for i in chosen), tuple(images[i] for i in chosen))
