"""What is judged together: the cells of one target, the arms over them, and what is known of their truth."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellbridge.data.comparison import Comparison, Rows
from cellbridge.data.store import Store
from cellbridge.evaluation.arms import Sights, arms_of, blocks_of_rows, truth_of
from cellbridge.evaluation.sections import Section
from cellbridge.metrics.effects import Sample
from cellbridge.metrics.intervals import Blocks, corrected_level
from cellbridge.metrics.scorecard import Arm, Truth

CHARGES = ("training cells", "plates", "stains")
"""Charges that each look for a failure in places of their own; their levels are corrected for that."""


@dataclass(frozen=True)
class Draws:
    """How intervals and draws are made: bootstrap draws of each interval, and the seed of all."""

    resamples: int
    seed: int

    @property
    def settings(self) -> dict[str, int]:
        return {"resamples": self.resamples, "seed": self.seed}

    @property
    def charge_level(self) -> float:
        """The level of each charge, at which all of them hold together at the usual one."""
        return corrected_level(len(CHARGES))


@dataclass
class Part:
    """What one section says.

    Parameters
    ----------
    section : for `metrics.json`.
    evidence : of each model, by its arm's key, for the verdict.
    cells : of each arm, by its key: column → value per cell.
    """

    section: Section
    evidence: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """The arms of one target, and what they are judged by."""

    sights: Sights
    comparison: Comparison
    arms: tuple[Arm, ...]
    truth: Truth | None
    draws: Draws
    notes: tuple[str, ...]

    @property
    def reference(self) -> Store:
        return self.sights.reference.store

    @property
    def models(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.kind == "model"]

    @property
    def blocks(self) -> Blocks:
        """Of the source cells."""
        return self.arms[0].blocks

    @property
    def plates(self) -> NDArray[Any]:
        """Of the source cells."""
        return self.reference.plates[self.comparison.sources].astype(str)

    @property
    def label(self) -> int | None:
        """The target's place among the classifier's conditions; None where it does not know it."""
        names = self.sights.judges.conditions
        return names.index(self.comparison.target) if self.comparison.target in names else None

    @property
    def control_label(self) -> int:
        """The source condition's place among the classifier's conditions; the control's where it does not know it."""
        names = self.sights.judges.conditions
        return names.index(self.comparison.source) if self.comparison.source in names else 0

    def without_images(self) -> "Target":
        """Return what was seen in the images alone, so that memory holds the images of one target at a time."""
        arms = tuple(replace(arm, images=arm.images[:0]) for arm in self.arms)
        return replace(self, arms=arms, truth=None)

    def arm(self, key: str) -> Arm | None:
        """Return the arm of that key, if there is one."""
        return next((arm for arm in self.arms if arm.key == key), None)

    def require(self, key: str) -> Arm:
        """Return the arm of that key, which there is."""
        return next(arm for arm in self.arms if arm.key == key)

    def rows_on(self, condition: str, plates: NDArray[Any]) -> Rows:
        """Return all real cells of a condition on the plates given, in the split under judgement, in the order of their names."""
        from cellbridge.data.comparison import by_name

        split = self.reference.obs["Metadata_Split"].to_numpy()
        usable = (split == split[self.comparison.sources[0]]) & (self.reference.condition_names == condition)
        usable &= np.isin(self.reference.plates.astype(str), np.unique(plates))
        return by_name(self.reference, np.flatnonzero(usable))

    def real_sample(self, rows: Rows, extractor: str) -> Sample:
        """Return real cells by their features."""
        seen = self.sights.reference.seen(rows).features[extractor].numpy().astype(np.float64)
        return Sample(seen, self.reference.plates[rows].astype(str), blocks_of_rows(self.reference, rows))

    def sample(self, arm: Arm, extractor: str) -> Sample:
        """Return the cells of a paired arm by their features."""
        return Sample(arm.features[extractor].numpy().astype(np.float64), self.plates, arm.blocks)

    def inside(self) -> NDArray[np.bool_]:
        """Return what belongs to each source cell, (n, height, width); everything where the store has no masks."""
        masks = self.reference.masks(self.comparison.sources)
        if masks is None:
            size = self.reference.info.size_px
            return np.ones((len(self.comparison.sources), size, size), dtype=bool)
        return np.asarray(masks > 0)


def images_of(arm: Arm) -> NDArray[np.float32]:
    """Return an arm's images as an array."""
    return np.asarray(arm.images.numpy())


def take(features: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
    """Return some rows of features."""
    return features[torch.as_tensor(rows)]


def make_target(sights: Sights, comparison: Comparison, draws: Draws) -> Target:
    """Make the arms of one target, looking at every image once."""
    truth_store = None if sights.truth is None else sights.truth.store
    truth, of_truth = truth_of(sights.reference.store, truth_store, comparison)
    arms, notes = arms_of(sights, comparison, truth, seed=draws.seed)
    return Target(sights, comparison, tuple(arms), truth, draws, (*notes, *of_truth))
