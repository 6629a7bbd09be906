"""Images that stand on two sides: what is judged, what it is judged by, and what was learnt from have to be different images."""

import numpy as np

from cellbridge.data.image_sets import ImageSet
from cellbridge.data.images import digest
from cellbridge.errors import LeakError
from cellbridge.evaluation.drawing import Sets


def require_distinct(sets: Sets) -> None:
    """Refuse generated images that are the real ones, and real images that are training images, pixel by pixel.

    Real images of the control may be among the generated ones: a model that returns its sources is judged, and called a copier. Images of
    one value everywhere are nobody's copy.

    Raises
    ------
    LeakError : how many, and of which sets.
    """
    targets = _pixels(sets.real, without=sets.control_condition)
    for name, made in sets.generated.items():
        shared = sorted(targets.keys() & _pixels(made).keys())
        if shared:
            raise LeakError(
                f"{made.path}: {len(shared)} images of {name} are real images of {sets.real.path} ({targets[shared[0]]}), pixel by pixel. "
                "What is judged cannot be what it is judged by: give real images that are not among the generated ones."
            )
    learnt = {} if sets.train is None else _pixels(sets.train)
    for judge in (sets.real, sets.control):
        shared = [] if judge is None else sorted(learnt.keys() & _pixels(judge).keys())
        if judge is not None and shared:
            raise LeakError(
                f"{judge.path}: {len(shared)} images are among the training images ({learnt[shared[0]]}), pixel by pixel. "
                "Give real images, and a control, that no model was trained on."
            )


def _pixels(found: ImageSet, *, without: str | None = None) -> dict[bytes, str]:
    """Return hash of the pixels → name, of images that are not flat."""
    rows = [row for row, name in enumerate(found.conditions) if name != without and np.ptp(found.values[row]) > 0]
    return {digest(found.values[row]): found.ids[row] for row in rows}
