"""x_T behind the outputs of every model, which must be finite."""

from collections.abc import Mapping

import numpy as np

from cellbridge.data.comparison import Comparison
from cellbridge.data.store import Store
from cellbridge.errors import NumericalError


def require_finite(translated: Mapping[str, Store], comparisons: list[Comparison]) -> None:
    """Refuse noise that is not finite, before anything is computed.

    Parameters
    ----------
    translated : model → the store of its outputs.

    Raises
    ------
    NumericalError : naming the model and the target.
    """
    for comparison in comparisons:
        for model, rows in comparison.outputs.items():
            x_T = translated[model].x_T(rows)
            broken = 0 if x_T is None else int((~np.isfinite(x_T)).any(axis=(1, 2, 3)).sum())
            if broken:
                raise NumericalError(
                    f"{translated[model].info.path}: x_T of {broken} of {len(rows)} cells is not finite ({model}, {comparison.target}). "
                    "Translate them again, with more solver steps or in fp32."
                )


def noises_of(translated: Mapping[str, Store], comparison: Comparison) -> dict[str, np.ndarray]:
    """Return x_T behind each model's outputs, where its store keeps it."""
    found = {model: translated[model].x_T(rows) for model, rows in comparison.outputs.items()}
    return {model: x_T for model, x_T in found.items() if x_T is not None}
