"""How every suite measures: contenders take short turns in one process, and what is told is the ratio of neighbours.

Machines slow down and speed up within minutes, by far more than the differences of interest. Two blocks of a second that lie side by
side share that; two runs of ten minutes do not.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.intervals import LEVEL

Times = NDArray[np.float64]
"""(block, 2): wall and processor seconds of one step of each block."""

Step = Callable[[], object]

_DRAWS = 4000


def now() -> Times:
    """Return wall and processor seconds, as one array; the latter over all threads of the process."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(step: Step, *, steps: int, synchronize: Step | None = None) -> Times:
    """Return wall and processor seconds of one of `steps` calls in a row; `synchronize` waits for the device at their end."""
    began = now()
    for _ in range(steps):
        step()
    if synchronize is not None:
        synchronize()
    return (now() - began) / steps


def interleave(
    contenders: Mapping[str, Step], *, blocks: int, steps: int = 1, warm_up: int = 1, synchronize: Step | None = None
) -> dict[str, Times]:
    """Let contenders take turns, A B B A A B B A …, and return each one's seconds per step in every block.

    Parameters
    ----------
    contenders : name → one step.
    blocks : how many blocks of each are counted.
    steps : steps of a block.
    warm_up : rounds before that which are not.
    """
    times: dict[str, list[Times]] = {name: [] for name in contenders}
    for turn in range(warm_up + blocks):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(timed(contenders[name], steps=steps, synchronize=synchronize))
    return {name: np.array(rows[warm_up:]) for name, rows in times.items()}


@dataclass(frozen=True)
class Ratio:
    """A median over pairs of neighbouring blocks, with its bootstrap interval."""

    value: float
    low: float
    high: float
    pairs: int

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high


def paired_ratio(numerator: Times, denominator: Times, *, clock: int = 0, seed: int = 0) -> Ratio:
    """Return the median over pairs of numerator_i / denominator_i, and its interval by resampling the pairs.

    Where both are seconds, this is how many times as fast the denominator is.

    Parameters
    ----------
    numerator, denominator : (block, 2); block i of one ran beside block i of the other.
    clock : 0 for wall, 1 for processor seconds.
    seed : of the resampling.

    References
    ----------
    Efron & Tibshirani 1993, "An introduction to the bootstrap", sec. 13.3 (percentile interval).
    """
    ratios = numerator[:, clock] / denominator[:, clock]
    low, high = bootstrap(ratios, np.median, seed=seed)
    return Ratio(float(np.median(ratios)), low, high, len(ratios))


def bootstrap(
    values: NDArray[np.float64], statistic: Callable[..., NDArray[np.float64]], *, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of the percentile interval of a statistic (called with `axis=1`) over (value,)."""
    drawn = np.random.default_rng(seed).choice(values, (_DRAWS, len(values)))
    low, high = np.quantile(statistic(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
