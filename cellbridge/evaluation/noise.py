"""x_T of every model under the battery of tests, fresh noise of the same shape beside it."""

from typing import Any

import numpy as np

from cellbridge.data.comparison import Comparison
from cellbridge.data.store import Store
from cellbridge.errors import NumericalError
from cellbridge.evaluation.arms import blocks_of_rows
from cellbridge.metrics.gaussianity import battery


def require_finite(translated: Store, comparisons: list[Comparison]) -> None:
    """Refuse noise that is not finite, before anything is computed.

    Raises
    ------
    NumericalError : naming the model and the target.
    """
    for comparison in comparisons:
        for model, rows in comparison.outputs.items():
            x_T = translated.x_T(rows)
            broken = 0 if x_T is None else int((~np.isfinite(x_T)).any(axis=(1, 2, 3)).sum())
            if broken:
                raise NumericalError(
                    f"{translated.info.path}: x_T of {broken} of {len(rows)} cells is not finite ({model}, {comparison.target}). "
                    "Translate them again, with more solver steps or in fp32."
                )


def noises_of(translated: Store, comparison: Comparison) -> dict[str, np.ndarray]:
    """Return x_T behind each model's outputs, where the store keeps it."""
    found = {model: translated.x_T(rows) for model, rows in comparison.outputs.items()}
    return {model: x_T for model, x_T in found.items() if x_T is not None}


def judge_noises(
    noises: dict[str, np.ndarray], reference: Store, comparison: Comparison, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Test x_T of every model, and fresh noise of the same shape.

    Returns
    -------
    models : model → its tests; fresh : the tests of fresh noise; or why nothing was tested.
    """
    if not noises:
        return {"not_computed": "the translated store holds no x_T"}
    if len(comparison.sources) < 2:
        return {"not_computed": "one cell; two or more are needed"}
    x_0, masks = reference.images(comparison.sources), reference.masks(comparison.sources)
    blocks = blocks_of_rows(reference, comparison.sources)
    foreground = None if masks is None else masks > 0

    def tested(x_T: np.ndarray) -> list[dict[str, Any]]:
        tests = battery(x_T, x_0=x_0, foreground=foreground, blocks=blocks, resamples=resamples, seed=seed)
        return [test.to_dict() for test in tests]

    fresh = np.random.default_rng([seed, 3]).standard_normal(x_0.shape)
    return {"models": {model: tested(x_T) for model, x_T in noises.items()}, "fresh": tested(fresh)}
