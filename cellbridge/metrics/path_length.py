"""How far, and how straight, a path of images runs in feature space: inversion and generation, or a bridge from source to target.

References
----------
Karras et al. 2019, "A Style-Based Generator Architecture", arXiv:1812.04948, sec. 4.1 (perceptual path length).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.intervals import Blocks, Estimate, bootstrap


@dataclass(frozen=True)
class PathLengths:
    """Lengths of paths in feature space, means over paths.

    Parameters
    ----------
    energy : ∫ |df/ds|² ds, the perceptual path length, in squared feature units.
    length : ∫ |df/ds| ds, in feature units.
    displacement : |f(end) - f(start)|, in feature units.
    detour : length / displacement, of the means; 1 is a straight way, None where nothing is displaced.
    """

    energy: Estimate
    length: Estimate
    displacement: Estimate
    detour: Estimate | None
    frames: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        names = ("energy", "length", "displacement")
        found: dict[str, Any] = {name: getattr(self, name).to_dict() for name in names}
        nothing = {"not_computed": "the paths end where they begin"}
        return found | {"detour": nothing if self.detour is None else self.detour.to_dict(), "frames": self.frames}


def path_length(
    frames: NDArray[np.floating[Any]],
    *,
    times: Sequence[float] | NDArray[np.floating[Any]] | None = None,
    blocks: Blocks | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> PathLengths:
    """Estimate the perceptual path length of paths given by frames, and how straight they are.

    energy = Σ_i |f_{i+1} - f_i|² / (s_{i+1} - s_i), with s scaled to [0, 1]; it is at least |f(end) - f(start)|², and exactly that where
    the path is straight and run through evenly. Only figures over equally many frames can be compared: a rough path grows with them.

    Parameters
    ----------
    frames : (path, frame, feature), features of the images along each path, in the order of the path.
    times : (frame,), strictly monotone, at which they lie (bridge time, or the solver's); the default is evenly spaced.
    blocks : the paths that are drawn together; without them there is no interval.

    Raises
    ------
    ValueError : fewer than two frames, or times that are not strictly monotone.

    References
    ----------
    Karras et al. 2019, arXiv:1812.04948, eq. 3: the expectation over one short step of d / ε², d being a squared distance.
    """
    found = np.asarray(frames, dtype=np.float64)
    if found.ndim != 3 or found.shape[1] < 2:
        raise ValueError(f"frames of shape {found.shape}: expected (path, frame, feature) with two frames or more")
    steps = _steps(times, found.shape[1])
    squared = (np.diff(found, axis=1) ** 2).sum(axis=2)
    table = np.stack(
        [
            (squared / steps).sum(axis=1),
            np.sqrt(squared).sum(axis=1),
            np.linalg.norm(found[:, -1] - found[:, 0], axis=1),
        ],
        axis=1,
    )
    own = blocks or Blocks(np.zeros(len(table), dtype=np.int64), "none (no blocks given)")
    draws = {"resamples": resamples, "seed": seed}
    means = [bootstrap(table[:, column], lambda m: m[:, 0], own, **draws) for column in range(3)]
    moved = bool(table[:, 2].mean() > 0)
    detour = bootstrap(table[:, 1:], lambda m: m[:, 0] / m[:, 1], own, **draws) if moved else None
    return PathLengths(means[0], means[1], means[2], detour, found.shape[1])


def _steps(times: Sequence[float] | NDArray[np.floating[Any]] | None, frames: int) -> NDArray[np.float64]:
    if times is None:
        return np.full(frames - 1, 1 / (frames - 1))
    found = np.asarray(times, dtype=np.float64)
    steps = np.diff(found)
    if found.shape != (frames,) or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(
            f"times {found.tolist()[:6]} …: expected {frames} strictly rising or falling numbers, one for each frame"
        )
    return np.asarray(steps / steps.sum())
