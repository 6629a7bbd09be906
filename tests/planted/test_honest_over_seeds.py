"""Claim: an honest model is seldom accused. Many small studies, each with cells, a classifier and draws of its own.

In some of them chance has real cells hit more often than their own counterfactuals; then the verdict is "in part", which accuses nobody.
"""

import json
import sys
from pathlib import Path

import pytest
from planted_store import planted_models, write_planted

from cellbridge.runs import RunDir
from cellbridge.stages.evaluate import Config, run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))
from known_world import write_classifier, write_study

PLATES = {"P1": "train", "P2": "train", "P3": "test", "P4": "test"}
TARGETS = ("shrinker@1", "dimmer@5")
SEEDS = 40


def verdicts_of(folder, seed):
    """Return the verdicts on the counterfactual renderer in a study of this seed."""
    study = write_study(folder, per_well=16, seed=seed, plates=PLATES)
    study["classifier"] = write_classifier(folder / "classifier", study)
    models = planted_models(study, TARGETS, works_on="P3")
    study["translated"] = write_planted(folder / "planted.zarr", study, {"honest": models["honest"]}, TARGETS)
    run(Config(**study, seed=seed, resamples=300, figures=False, device="cpu"), out=folder / "evaluation")
    metrics = json.loads(RunDir(folder / "evaluation").metrics.read_text(encoding="utf-8"))
    return [verdict for target in metrics["targets"] for verdict in target["verdicts"]]


@pytest.mark.slow
def test_the_honest_oracle_passes_in_at_least_95_percent_of_studies(tmp_path):
    held_up = []
    for seed in range(1, SEEDS + 1):
        (tmp_path / str(seed)).mkdir()
        held_up += [verdict["held_up"] for verdict in verdicts_of(tmp_path / str(seed), seed)]
    assert sum(found is not False for found in held_up) >= 0.95 * len(held_up)
    assert sum(found is True for found in held_up) >= 0.9 * len(held_up)
