"""Precision, recall, density and coverage: whether generated cells lie among real ones, and real ones among generated ones.

References
----------
Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", arXiv:1904.06991; Naeem et al. 2020,
"Reliable Fidelity and Diversity Metrics for Generative Models", arXiv:2002.09797.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.intervals import Blocks, Estimate, bootstrap, share
from cellbridge.metrics.mmd import squared_distances
from cellbridge.metrics.moments import Matrix, Rows, float_rows

_CHUNK = 2048


@dataclass(frozen=True)
class Neighbourhoods:
    """How two sets of cells overlap.

    Parameters
    ----------
    precision : share of generated cells that lie in the neighbourhood of some real cell.
    recall : share of real cells that lie in the neighbourhood of some generated cell.
    density : in how many real neighbourhoods a generated cell lies, over k; 1 is expected of real cells, and it can be above.
    coverage : share of real cells whose neighbourhood holds a generated cell.
    expected_coverage : of as many further real cells; below 1.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    k: int
    expected_coverage: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        estimates = {name: getattr(self, name).to_dict() for name in ("precision", "recall", "density", "coverage")}
        return estimates | {"k": self.k, "expected_coverage": self.expected_coverage}


def precision_recall_density_coverage(
    real: Rows,
    generated: Rows,
    *,
    k: int = 5,
    blocks: tuple[Blocks, Blocks] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Neighbourhoods:
    """Estimate how real and generated cells overlap in feature space.

    A cell's neighbourhood is the ball that reaches to its k-th nearest other cell of its own set. Intervals draw the cells that are counted
    (generated ones for precision and density, real ones for recall and coverage), the balls staying as they are.

    Parameters
    ----------
    real, generated : (n, feature) and (m, feature).
    k : neighbours within a ball.
    blocks : of the real and of the generated cells; without them there is no interval.
    resamples, seed : of the bootstrap.

    Raises
    ------
    ValueError : a set has no more than k cells.
    """
    rows = float_rows(real), float_rows(generated)
    centre = rows[0].mean(axis=0)
    real_rows, generated_rows = rows[0] - centre, rows[1] - centre
    if min(len(real_rows), len(generated_rows)) <= k:
        raise ValueError(
            f"{len(real_rows)} real and {len(generated_rows)} generated cells: more than k = {k} are needed"
        )
    of_real, of_generated = radii(real_rows, k=k), radii(generated_rows, k=k)
    in_balls, covered = _counts(real_rows, generated_rows, of_real)
    recalled = _counts(generated_rows, real_rows, of_generated)[0] > 0
    real_blocks, generated_blocks = blocks or (_alone(len(real_rows)), _alone(len(generated_rows)))
    draws = {"resamples": resamples, "seed": seed}
    return Neighbourhoods(
        precision=share(in_balls > 0, generated_blocks, **draws),
        recall=share(recalled, real_blocks, **draws),
        density=bootstrap(in_balls / k, lambda means: means[:, 0], generated_blocks, **draws),
        coverage=share(covered, real_blocks, **draws),
        k=k,
        expected_coverage=expected_coverage(len(real_rows), len(generated_rows), k=k),
    )


def radii(rows: Matrix, *, k: int) -> NDArray[np.float64]:
    """Return the squared distance of each row (n, feature) to its k-th nearest other row: (n,)."""
    parts = [
        np.partition(block, k, axis=1)[:, k] for _, block in _blocks_of_distances(rows, rows)
    ]  # the nearest is itself
    return np.concatenate(parts)


def expected_coverage(real: int, generated: int, *, k: int) -> float:
    """Return the coverage to expect where both sets come from one distribution.

    1 - Π_{i<k} (n - 1 - i)/(n + m - 1 - i): the first k neighbours of a real cell among all others are not all real.

    References
    ----------
    Naeem et al. 2020, arXiv:2002.09797, eq. 9.
    """
    i = np.arange(k)
    return float(1 - np.prod((real - 1 - i) / (real + generated - 1 - i)))


def _counts(centres: Matrix, points: Matrix, squared_radii: NDArray[np.float64]) -> tuple[Matrix, NDArray[np.bool_]]:
    """Return in how many balls each point lies, (point,), and which balls hold a point, (centre,)."""
    in_balls, held = np.zeros(len(points)), np.zeros(len(centres), dtype=bool)
    for rows, block in _blocks_of_distances(centres, points):
        inside = block <= squared_radii[rows, None]
        in_balls += inside.sum(axis=0)
        held[rows] = inside.any(axis=1)
    return in_balls, held


def _blocks_of_distances(x: Matrix, y: Matrix) -> Iterator[tuple[slice, Matrix]]:
    for start in range(0, len(x), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield rows, squared_distances(x[rows], y)


def _alone(n: int) -> Blocks:
    return Blocks(np.zeros(n, dtype=np.int64), "none (no blocks given)")
