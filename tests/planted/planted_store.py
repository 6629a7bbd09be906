"""Stores of planted models' outputs, as `translate` would have written them, and all the planted models of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from planted_translators import (
    Copier,
    Deaf,
    Destroyer,
    Honest,
    IntensityShifter,
    Memoriser,
    OnOnePlate,
    SameForAll,
    WithoutChannel,
)

from cellbridge.baselines.one_change import OneChange, own_change
from cellbridge.baselines.trivial import ChannelAffine, fit_mean_shift
from cellbridge.conditions import Condition
from cellbridge.data.store import Store, open_store, write_store
from cellbridge.runs import fingerprint
from cellbridge.runtime import derive_seed
from cellbridge.translators.translator import Translator
from cellbridge.typing import CellBatch


def planted_models(study: Mapping[str, Path], targets: Sequence[str], *, works_on: str) -> dict[str, Translator]:
    """Make every planted model of a study.

    Parameters
    ----------
    study : the paths "reference" and "truth".
    works_on : the test plate that "one plate" works on.
    """
    reference, truth = open_store(study["reference"]), open_store(study["truth"])
    plates = dict(zip(reference.obs.index, reference.plates, strict=True))
    known = {target: counterfactuals(truth, target) for target in targets}
    training = {target: _training(reference, target) for target in targets}
    honest = Honest(known)
    shift = {Condition.parse(target): _shift(reference, target) for target in targets}
    names = [name.casefold() for name in reference.info.channels]
    return {
        "honest": honest,
        "copier": Copier(),
        "shifter": IntensityShifter(ChannelAffine(shift, name="mean shift")),
        "memoriser": Memoriser({target: images for target, (images, _) in training.items()}),
        "deaf": Deaf(honest, Condition.parse(targets[0])),
        "destroyer": Destroyer(known, plates),
        "one plate": OnOnePlate(honest, works_on),
        "without DNA": WithoutChannel(honest, names.index("dna")),
        "same for all": SameForAll({target: _mean_change(reference, known[target], target) for target in targets}),
    }


def _mean_change(reference: Store, known: Mapping[str, torch.Tensor], target: str) -> OneChange:
    """Return the true mean change of each plate, as nobody who has to learn it could know it."""
    rows = np.array([row for row, cell in enumerate(reference.obs.index) if cell in known])
    outcomes = torch.stack([known[cell] for cell in reference.obs.index[rows]])
    sources = torch.from_numpy(reference.images(rows))
    return own_change(sources, outcomes, plates=list(reference.plates[rows]), condition=Condition.parse(target))


def counterfactuals(truth: Store, target: str) -> dict[str, torch.Tensor]:
    """Return what each cell that the truth knows looks like under a target, by the cell's id."""
    chosen = (truth.condition_names == target) & (truth.obs["Metadata_Origin"] == "counterfactual").to_numpy()
    rows = np.flatnonzero(chosen)
    images = torch.from_numpy(truth.images(rows))
    return dict(zip(truth.obs["Metadata_SourceCell"].to_numpy()[rows], images, strict=True))


def write_planted(
    path: Path, study: Mapping[str, Path], models: Mapping[str, Translator], targets: Sequence[str]
) -> Path:
    """Translate the control cells of the test plates by every model and write one store."""
    reference = open_store(study["reference"])
    rows = reference.select(split="test", conditions=[reference.info.control])
    batch = _batch(reference, rows)
    tables, counts = [], []
    for name, model in models.items():
        for target in targets:
            images = model.translate(batch, target=Condition.parse(target)).images
            converted = reference.intensity.to_counts(images, list(batch.plates))[0]
            counts.append(converted.numpy().astype(np.uint16))
            tables.append(_table(reference, rows, target, name))
    training_plates = sorted(set(reference.plates[reference.select(split="train")]))
    attributes = {"inputs": {"store": fingerprint(study["reference"])}, "trained_on": {"base": training_plates}}
    info = reference.info
    write_store(
        path,
        obs=pd.concat(tables, ignore_index=True),
        counts=np.concatenate(counts),
        channels=info.channels,
        full_scale=info.full_scale,
        size_px=info.size_px,
        pixel_um=info.pixel_um,
        control=info.control,
        intensity=reference.intensity,
        attributes=attributes,
    )
    return path


def _batch(reference: Store, rows: np.ndarray) -> CellBatch:
    ids = tuple(reference.obs.index[rows])
    return CellBatch(
        images=torch.from_numpy(reference.images(rows)),
        cell_ids=ids,
        plates=tuple(reference.plates[rows]),
        conditions=(reference.info.control,) * len(rows),
        seeds=torch.tensor([derive_seed("planted", 0, cell) for cell in ids]),
    )


def _table(reference: Store, rows: np.ndarray, target: str, model: str) -> pd.DataFrame:
    """Return the columns that every store needs, and those that `translate` adds."""
    place = [f"Metadata_{name}" for name in ("Cell", "Plate", "Well", "Site", "pert_type", "Split")]
    table = reference.obs.iloc[rows][place].reset_index(drop=True)
    condition = Condition.parse(target)
    table["Metadata_SourceCell"] = table["Metadata_Cell"]
    table["Metadata_Cell"] = table["Metadata_Cell"] + f">{target}>{model}"
    table["Metadata_Compound"], table["Metadata_Concentration"] = condition.compound, condition.dose
    table["Metadata_Origin"], table["Metadata_SourceCondition"] = "generated", reference.info.control
    table["Metadata_TargetCondition"], table["Metadata_Model"], table["Metadata_Seed"] = target, model, "0"
    return table


def _training(reference: Store, condition: str) -> tuple[torch.Tensor, list[str]]:
    rows = reference.select(split="train", conditions=[condition])
    return torch.from_numpy(reference.images(rows)), list(reference.plates[rows])


def _shift(reference: Store, target: str):
    control, treated = _training(reference, reference.info.control), _training(reference, target)
    return fit_mean_shift(control[0], treated[0], control_plates=control[1], target_plates=treated[1])
