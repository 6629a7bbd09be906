"""What images of a condition must beat: the control as it is, and the control with its intensities moved, to the target's or to the model's own."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cellbridge.evaluation.drawing import Drawn
from cellbridge.evaluation.pools import Pool
from cellbridge.evaluation.unpaired import Row

LookAt = Callable[[NDArray[np.float32], Pool], Pool]
"""Images that were made from a pool's → a pool with what is seen in them."""


def null_rows(target: str, models: Sequence[Row], pools: Drawn, look_at: LookAt) -> list[Row]:
    """Return the null rows of a target; none without a control.

    Shift and moments are fitted to real images of the target that are in no row; an imitation to a model's own outputs, so that a model
    which only moves intensities is equal to it.
    """
    if pools.scored is None or pools.apart is None:
        return []
    scored, apart, learnt = pools.scored, pools.apart.images, pools.train.get(target, pools.learnt[target]).images
    rows = [Row("copy", f"{pools.control} as it is", "null", scored)]
    for key, name, scaled in (
        ("shift", "mean shift per channel", False),
        ("moments", "moment matching per channel", True),
    ):
        moved = moved_intensities(scored.images, apart, learnt, scaled=scaled)
        rows.append(Row(key, f"{pools.control}, {name}", "null", look_at(moved, scored)))
    for model in models:
        moved = moved_intensities(scored.images, apart, model.pool.images, scaled=True)
        name = f"{pools.control} with the intensities of {model.name}"
        rows.append(Row(f"imitation:{model.key}", name, "null", look_at(moved, scored)))
    return rows


def moved_intensities(
    images: NDArray[np.float32], control: NDArray[np.float32], wanted: NDArray[np.float32], *, scaled: bool
) -> NDArray[np.float32]:
    """Return images under the affine map per channel that takes the control's mean (and standard deviation) to the wanted ones, in [-1, 1].

    Parameters
    ----------
    scaled : whether the standard deviation is matched, too.
    """
    axes = (0, 2, 3)
    means = [part.mean(axis=axes, dtype=np.float64)[:, None, None] for part in (control, wanted)]
    deviations = [part.std(axis=axes, dtype=np.float64)[:, None, None] for part in (control, wanted)]
    scale = deviations[1] / np.maximum(deviations[0], 1e-9) if scaled else 1.0
    return np.clip((images - means[0]) * scale + means[1], -1, 1).astype(np.float32)
