"""Profiles of wells: one row per plate, well and condition, `Metadata_*` beside features by names that pycytominer finds.

References
----------
Caicedo et al. 2017, "Data-analysis strategies for image-based cell profiling", Nature Methods 14, 849: aggregation by the median.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from cellbridge.errors import ManifestError

COUNT = "Metadata_Object_Count"
COMPARTMENTS = ("Cells_", "Nuclei_", "Cytoplasm_")
"""What the names of features begin with that pycytominer takes for features by itself."""
KEYS = (
    "Metadata_Plate",
    "Metadata_Well",
    "Metadata_Compound",
    "Metadata_Concentration",
    "Metadata_pert_type",
    "Metadata_Origin",
    "Metadata_Model",
    "Metadata_SourceCondition",
    "Metadata_TargetCondition",
    "Metadata_Sample",
    "Metadata_Frame",
    "Metadata_Target",
    "Metadata_Arm",
)
"""Cells that differ in one of these never share a profile."""


@dataclass(frozen=True)
class Profiles:
    """The table, and what its making left out."""

    table: pd.DataFrame
    features: tuple[str, ...]
    incomplete: tuple[str, ...]
    """Features that are missing in some profile."""
    varying: tuple[str, ...]
    """Metadata that differ between the cells of a profile, and so say nothing of it."""


def well_profiles(metadata: pd.DataFrame, values: pd.DataFrame, *, by: Literal["median", "mean"]) -> Profiles:
    """Return the median or mean of every feature over the cells of each profile, missing values left aside.

    Parameters
    ----------
    metadata, values : text and numbers of the same rows.

    Raises
    ------
    ManifestError : two features have one name once they begin with a compartment.
    """
    keys = [name for name in KEYS if name in metadata]
    metadata, values = metadata.reset_index(drop=True), values.reset_index(drop=True)
    values = values.set_axis(feature_names(values.columns), axis=1)
    by_profile = [metadata[name] for name in keys]
    groups = metadata.groupby(by_profile, sort=True)
    others = [name for name in metadata.columns if name not in keys and name != COUNT]
    constant = [name for name in others if (groups[name].nunique() == 1).all()]
    head = groups[[*keys, *constant]].first().reset_index(drop=True)
    numbers = values.groupby(by_profile, sort=True)
    table = pd.concat(
        [
            head,
            groups.size().rename(COUNT).reset_index(drop=True),
            (numbers.median() if by == "median" else numbers.mean()).reset_index(drop=True),
        ],
        axis=1,
    )
    features = tuple(values.columns)
    return Profiles(
        table=table,
        features=features,
        incomplete=tuple(name for name in features if table[name].isna().any()),
        varying=tuple(name for name in others if name not in constant),
    )


def feature_names(names: Sequence[str] | pd.Index) -> list[str]:
    """Return the names with `Cells_` before those that do not begin with a compartment."""
    named = [name if name.startswith(COMPARTMENTS) else f"Cells_{name}" for name in map(str, names)]
    twice = next((name for name in named if named.count(name) > 1), None) if len(set(named)) < len(named) else None
    if twice is not None:
        raise ManifestError(f'feature "{twice}" stands there with and without its compartment. Rename or remove one.')
    return named
