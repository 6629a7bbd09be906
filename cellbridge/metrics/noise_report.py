"""What is said of x_T: of each model's, of what it is held against, and what of its deviation is the solver's and what the model's.

References: fresh noise (what the tests say of perfect noise); `diffused`, the source images noised to the schedule's last step, which differ
from noise as far as the schedule leaves something of the image; `generated`, images made of N(0, I) and inverted again (what solver and
model alone do, and the only one that has the correlation with x_0 which comes with inversion itself); `double steps`, the same cells in twice the steps (less of the solver's part); `train`, cells that the model was trained on
(without the misfit to new cells).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cellbridge.metrics.gaussianity import battery
from cellbridge.metrics.noise_blocks import frechet_blocks
from cellbridge.metrics.noise_changes import Noise, changes
from cellbridge.metrics.noise_classifier import FEWEST, told_from_noise

ABOUT = {
    "fresh": "N(0, I)",
    "diffused": "the source images, noised to the last step of the schedule",
    "generated": "images that the source's model made of N(0, I), inverted again",
    "double steps": "the same cells, inverted in twice as many solver steps",
    "train": "cells that the source's model was trained on, inverted",
}
_FEW = {"not_computed": "fewer than two cells"}


def noise_report(
    models: Mapping[str, Noise],
    *,
    references: Mapping[str, Noise],
    same_cells: Noise | None = None,
    alpha_T: float | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge the noise of models of the same source cells.

    Parameters
    ----------
    models : model → its noise, two cells or more.
    references : any of "generated", "double steps" and "train".
    same_cells : noise in N steps of the very cells of "double steps", in their order.
    alpha_T : share of x_0 that the schedule leaves at its last step, sqrt(alpha_bar_T).

    Returns
    -------
    models, fresh (tests of each), classifier, frechet (of the models and fresh noise), references, discretisation (twice the steps - N),
    misfit (the first model's cells - training cells), beyond_generated (the first model's cells - generated images), alpha_T: plain JSON
    values, `{"not_computed": why}` where something is.
    """
    settings = {"resamples": resamples, "seed": seed}
    first = next(iter(models.values()))
    rng = np.random.default_rng([seed, 3])
    fresh = replace(first, x_T=rng.standard_normal(first.x_T.shape))
    judged = {name: judge_noise(noise, **settings) for name, noise in {**models, "fresh": fresh}.items()}
    held = dict(references)
    if alpha_T is not None and first.x_0 is not None:
        noise = np.sqrt(1 - alpha_T**2) * rng.standard_normal(first.x_T.shape)
        held["diffused"] = replace(first, x_T=alpha_T * np.asarray(first.x_0, dtype=np.float64) + noise)
    missing = "the translation was made without them (x_T_references)"
    return {
        "models": {name: judged[name]["tests"] for name in models},
        "fresh": judged["fresh"]["tests"],
        "classifier": {name: found["classifier"] for name, found in judged.items()},
        "frechet": {name: found["frechet"] for name, found in judged.items()},
        "references": {
            name: {"about": about, "n": len(held[name]), **judge_noise(held[name], **settings)}
            if name in held and len(held[name]) > 1
            else {
                "not_computed": missing if name != "diffused" else "what the schedule leaves of an image is not known"
            }
            for name, about in ABOUT.items()
            if name != "fresh"
        },
        "discretisation": _compared(same_cells, references.get("double steps"), paired=True, **settings),
        "misfit": _compared(references.get("train"), first, paired=False, **settings),
        "beyond_generated": _compared(references.get("generated"), first, paired=False, **settings),
        "alpha_T": alpha_T,
    }


def judge_noise(noise: Noise, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return what battery, classifier and low-dimensional Fréchet distances say of noise, two images or more."""
    settings: dict[str, Any] = {"blocks": noise.blocks, "resamples": resamples, "seed": seed}
    told = told_from_noise(noise.x_T, foreground=noise.foreground, **settings)
    few = {"not_computed": f"{len(noise)} images; {FEWEST} or more are needed"}
    return {
        "tests": [test.to_dict() for test in battery(noise.x_T, **noise.known, **settings)],
        "classifier": few if told is None else told.to_dict(),
        "frechet": [part.to_dict() for part in frechet_blocks(noise.x_T, seed=seed)],
    }


def _compared(before: Noise | None, after: Noise | None, *, paired: bool, resamples: int, seed: int) -> Any:
    if before is None or after is None:
        return {"not_computed": "the translation was made without references (x_T_references)"}
    if min(len(before), len(after)) < 2:
        return dict(_FEW)
    return [change.to_dict() for change in changes(before, after, paired=paired, resamples=resamples, seed=seed)]
