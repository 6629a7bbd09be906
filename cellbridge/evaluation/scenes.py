"""One target among pools of images: what its sections are made from, the values of its single images, and those that are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellbridge.evaluation.drawing import Drawn
from cellbridge.evaluation.pools import Pool
from cellbridge.evaluation.unpaired import Bounds, Row
from cellbridge.metrics.classification import log_odds, target_hits
from cellbridge.metrics.mmd import squared_distances

_SHOWN = 12


@dataclass(frozen=True)
class Scene:
    """One target with what it is judged by.

    Parameters
    ----------
    rows : of its table.
    bounds : None where there are too few real images.
    pools : of all conditions.
    extractor : the first, by name.
    channels : stain names.
    column : of the target among the logits; None where nothing tells conditions apart.
    draws : `resamples` and `seed`.
    """

    target: str
    rows: Sequence[Row]
    bounds: Bounds | None
    pools: Drawn
    extractor: str
    channels: Sequence[str]
    column: int | None
    draws: Mapping[str, int]

    @property
    def real(self) -> Pool:
        """All real images of the target."""
        return self.pools.real[self.target]

    @property
    def others(self) -> dict[str, Pool]:
        """Real images of the other conditions, and of the control."""
        found = {name: pool for name, pool in self.pools.real.items() if name != self.target}
        if self.pools.scored is not None and self.pools.control is not None:
            found[self.pools.control] = self.pools.scored
        return found

    @property
    def control(self) -> int | None:
        """Column of the control among the logits."""
        return None if self.column is None or self.pools.control is None else 0

    @property
    def beside(self) -> int:
        """Column that log odds of the target are against: the control's, or another condition's."""
        return 0 if self.control == 0 or self.column != 0 else 1

    @property
    def models(self) -> list[Row]:
        return [row for row in self.rows if row.kind == "model"]


def cell_table(scene: Scene, more: Mapping[str, Mapping[str, NDArray[Any]]]) -> pd.DataFrame:
    """Return the values of single images, one row per (row of the table, image).

    Parameters
    ----------
    more : key of a row → column → value per image.
    """
    tables = []
    for row in scene.rows:
        pool = row.pool
        frame = pd.DataFrame(
            {"Metadata_Target": scene.target, "Metadata_Arm": row.key, "Metadata_ArmName": row.name},
            index=range(len(pool)),
        )
        frame["Metadata_Kind"], frame["Metadata_Cell"] = row.kind, list(pool.ids)
        frame["Metadata_Plate"], frame["Metadata_Well"] = list(pool.plates), list(pool.wells)
        frame["Metadata_Site"] = list(pool.sites)
        if scene.column is not None:
            names = np.array(scene.pools.conditions, dtype=object)
            frame["predicted"] = names[pool.logits.argmax(axis=1)]
            frame["hit"] = target_hits(pool.logits, scene.column)
            frame["log_odds"] = log_odds(pool.logits, scene.column, scene.beside)
        for column, values in more.get(row.key, {}).items():
            frame[column] = values
        tables.append(frame)
    return pd.concat(tables, ignore_index=True)


def shown_images(scene: Scene) -> dict[str, NDArray[np.float32]]:
    """Return the first images of the control, of each model, the real ones nearest to the model's, and real ones (each set is in an order drawn by lot)."""
    shown = {}
    control = next((row for row in scene.rows if row.key == "copy"), None)
    if control is not None:
        shown[control.name] = control.pool.images[:_SHOWN]
    for row in scene.models:
        shown[row.name] = row.pool.images[:_SHOWN]
        found = squared_distances(row.pool.features[scene.extractor][:_SHOWN], scene.real.features[scene.extractor])
        shown[f"nearest real to {row.name}"] = scene.real.images[found.argmin(axis=1)]
    shown[f"real {scene.target}"] = scene.real.images[:_SHOWN]
    return shown
