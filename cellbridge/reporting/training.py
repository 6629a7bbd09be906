"""A training run's log as curves and facts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cellbridge.plots.canvas import SERIES, new_column
from cellbridge.plots.curves import band_curves, loss_curve

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values."""

_FACTS = {
    "steps": "step",
    "images per second": "images_per_second",
    "peak memory, GiB": "memory_gib",
    "share of the device's peak (MFU)": "mfu",
}


def training_facts(logged: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what the last logged line says of the run."""
    last = logged[-1] if logged else {}
    found = {words: last.get(key) for words, key in _FACTS.items()}
    return {words: f"{value:.4g}" for words, value in found.items() if value is not None}


def judged_facts(judged: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what held-out pairs said at the end of a bridge's network: what it gains over saying nothing, which is its linear start."""
    last = judged[-1] if judged else {}
    if last.get("gain") is None or last.get("gain_error") is None:
        return {}
    value = f"{last['gain']:.3f} ± {last['gain_error']:.3f}"
    return {"held-out gain over the linear start": value}


def curves(logged: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return the steps and values of each name that was logged as a number; a value that was not finite is left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in logged:
        for key, value in event.items():
            if key != "step" and isinstance(value, int | float):
                found.setdefault(key, []).append((event["step"], value))
    arrays = {name: np.array(points, dtype=float) for name, points in found.items()}
    return {name: (points[:, 0], points[:, 1]) for name, points in arrays.items()}


def training_axes(logged: Mapping[str, Curve]) -> Axes | None:
    """Draw, one above another, what was logged of: losses, the logarithm of the loss per timestep decile, the gradient's norm."""
    losses = [name for name in logged if re.fullmatch(r"loss(/(?!t\d).+)?", name)]
    bands = sorted(name for name in logged if re.fullmatch(r"log_loss/t\d", name))
    norms = [name for name in ("gradient_norm",) if name in logged]
    if not losses:
        return None
    axes = new_column(5.2, [2.3, *([2.5] if bands else []), *([1.5] if norms else [])])
    for index, name in enumerate(losses):
        loss_curve(*logged[name], label=name, colour=SERIES[index % len(SERIES)], ax=axes[0])
    if bands:
        labels = [f"{int(name[-1]) / 10:.1f}–{(int(name[-1]) + 1) / 10:.1f}" for name in bands]
        band_curves([logged[name] for name in bands], labels=labels, title="t / T", ylabel="mean log loss", ax=axes[1])
    for name in norms:
        loss_curve(*logged[name], label="gradient norm", colour=SERIES[2], ylabel="norm", ax=axes[-1])
    for upper in axes[:-1]:
        upper.set_xlabel("")
    return axes[0]
