"""The same failures on real cells (BBBC021, cyclohexamide 50 µM): a copier and an intensity shifter are named for what they are.

One DMSO well per plate: intervals are within-well only. `CELLBRIDGE_BBBC021_STUDY` may name a finished `make study
STUDY=bbbc021_cyclohexamide`, whose store and classifier are then used; else both are made here, in minutes.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from planted_store import write_planted
from planted_translators import Copier, IntensityShifter

from cellbridge.baselines.trivial import ChannelAffine, fit_mean_shift, fit_moments
from cellbridge.conditions import Condition
from cellbridge.data.store import open_store
from cellbridge.settings import load
from cellbridge.stages import evaluate, prepare, train_classifier

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "pipelines/studies/bbbc021_cyclohexamide"
TARGET = "cyclohexamide@50"


@pytest.fixture(scope="module")
def study(real_data, tmp_path_factory) -> dict[str, Path]:
    """The store of real cells, and a classifier that was trained on another plate than is judged."""
    made = os.environ.get("CELLBRIDGE_BBBC021_STUDY")
    if made:
        return {"reference": Path(made) / "store.zarr", "classifier": Path(made) / "classifier"}
    out = tmp_path_factory.mktemp("bbbc021")
    manifest = ROOT / "data_manifests/bbbc021_cells/manifest.yaml"
    given = {"manifest": str(manifest), "root": str(real_data / "bbbc021_cells")}
    settings = yaml.safe_load((STUDY / "prepare.yaml").read_text(encoding="utf-8"))
    prepare.run(prepare.Config(**settings, **given), out=out / "store.zarr")
    config = load(
        train_classifier.Config,
        file=STUDY / "train_classifier.yaml",
        overrides=["training.steps=300", "training.checkpoint_every=300"],
        options={"store": str(out / "store.zarr")},
    )
    train_classifier.run(config, out=out / "classifier")
    return {"reference": out / "store.zarr", "classifier": out / "classifier"}


@pytest.fixture(scope="module")
def evaluation(study, tmp_path_factory) -> dict:
    """Copier, mean shift and moment matching, fitted on the training plate, judged on the other."""
    out = tmp_path_factory.mktemp("planted")
    store = open_store(study["reference"])
    control, treated = (store.select(split="train", conditions=[name]) for name in ("DMSO", TARGET))
    images = [torch.from_numpy(store.images(rows)) for rows in (control, treated)]
    plates = {"control_plates": list(store.plates[control]), "target_plates": list(store.plates[treated])}
    condition = Condition.parse(TARGET)
    models = {"copier": Copier()}
    for name, fit in (("shifter", fit_mean_shift), ("moments", fit_moments)):
        models[name] = IntensityShifter(ChannelAffine({condition: fit(*images, **plates)}, name=name))
    write_planted(out / "planted.zarr", study, models, [TARGET])
    config = evaluate.Config(
        translated=out / "planted.zarr",
        reference=study["reference"],
        classifier=study["classifier"],
    )
    evaluate.run(config, out=out / "evaluation")
    return json.loads((out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))


def _verdict(evaluation: dict, model: str) -> dict:
    (target,) = evaluation["targets"]
    return next(verdict for verdict in target["verdicts"] if verdict["key"] == f"model:{model}")


@pytest.mark.parametrize(
    ("model", "key", "label"),
    [
        ("copier", "copier", "indistinguishable from DMSO"),
        ("shifter", "intensity_shift", "explained by an intensity shift"),
        ("moments", "intensity_shift", "explained by an intensity shift"),
    ],
)
def test_what_is_planted_on_real_cells_is_named(evaluation, model, key, label):
    verdict = _verdict(evaluation, model)
    print(f"\n{model}: {verdict['label']}; {verdict['text']}")
    assert key in {finding["key"] for finding in verdict["findings"] if finding["state"] == "against"}
    assert (verdict["label"], verdict["held_up"]) == (label, False)


def test_intervals_say_that_they_are_within_one_well(evaluation):
    (target,) = evaluation["targets"]
    assert target["resampled"] == "sites (within-well only)"
    assert (target["n_wells"], target["n_sites"]) == (1, 4)
    assert np.isfinite(target["rows"][0]["target_hit"]["low"])
