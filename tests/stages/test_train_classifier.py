import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from cellbridge.config import TrainingConfig
from cellbridge.data.intensity import fit_intensity
from cellbridge.data.store import REQUIRED, write_store
from cellbridge.errors import CheckpointError, ConditionError, LeakError, RunError, StoreError
from cellbridge.networks.classifier import extractor_name, load_classifier_directory
from cellbridge.runs import RunDir, file_sha256, read_manifest, verify_directory
from cellbridge.stages import train_classifier
from cellbridge.stages.train_classifier import Config
from cellbridge.training import events

CONDITIONS = ("DMSO", "taxol")
TRAINING = TrainingConfig(
    steps=60, batch_size=16, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9, checkpoint_every=20, precision="fp32"
)


def table(cells_per_well: int) -> pd.DataFrame:
    """Two conditions in two wells each, on two plates for training and one for the test; taxol is rarer."""
    rows = []
    for plate, split in (("P1", "train"), ("P2", "train"), ("P3", "test")):
        for well, compound in (("A01", "DMSO"), ("A02", "DMSO"), ("B01", "taxol"), ("B02", "taxol")):
            for cell in range(cells_per_well if compound == "DMSO" else cells_per_well // 3):
                name = f"{plate}-{well}-{cell}"
                control = "negcon" if compound == "DMSO" else "trt"
                rows.append((name, plate, well, "1", compound, "", control, split))
    return pd.DataFrame(rows, columns=list(REQUIRED)).astype(str)


def cells(obs: pd.DataFrame) -> np.ndarray:
    """Discs on a noisy background, small where the condition is taxol."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    radius = np.where(obs["Metadata_Compound"] == "taxol", 3.0, 5.0)[:, None, None] + rng.normal(
        0, 0.3, (len(obs), 1, 1)
    )
    disc = (np.hypot(x, y)[None] < radius)[:, None]
    return rng.poisson(20 + 180 * disc * np.ones((1, 2, 1, 1))).astype(np.uint16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    obs = table(18)
    counts = cells(obs)
    control = {
        p: counts[((obs.Metadata_Plate == p) & (obs.Metadata_Compound == "DMSO")).to_numpy()]
        for p in ("P1", "P2", "P3")
    }
    intensity = fit_intensity(control, channels=("DNA", "AGP"), full_scale=65535)
    path = tmp_path_factory.mktemp("stores") / "discs.zarr"
    head = {"channels": ("DNA", "AGP"), "full_scale": 65535, "size_px": 16, "pixel_um": None, "control": "DMSO"}
    write_store(path, obs=obs, counts=counts, intensity=intensity, **head)
    return path


def config(store, **settings) -> Config:
    return Config(**{"store": store, "widths": (8, 16), "training": TRAINING, "device": "cpu", **settings})


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "classifier"
    return out, train_classifier.run(config(store), out=out)


def test_sizes_are_told_apart_on_a_plate_that_was_not_seen(trained):
    metrics = json.loads(RunDir(trained[0]).metrics.read_text())
    held_out = metrics["held_out"]
    assert held_out["plates"] == ["P3"]
    assert held_out["n"] == 48
    assert np.sum(held_out["confusion"]) == 48
    assert held_out["balanced_accuracy"]["value"] > 0.9
    assert held_out["per_condition"]["taxol"]["auc"]["value"] > 0.95
    assert held_out["per_condition"]["taxol"]["n"] == 12


def test_model_says_what_it_is_and_is_named_by_its_hash(trained, store):
    out, summary = trained
    model = RunDir(out).require_model()
    network, card = load_classifier_directory(model)
    assert verify_directory(model) == []
    assert card["conditions"] == list(CONDITIONS)
    assert card["channels"] == ["DNA", "AGP"]
    assert card["plates"] == ["P1", "P2"]
    assert card["store_sha256"] == file_sha256(store / "manifest.json")
    assert summary["extractor"] == extractor_name(model)
    digest = read_manifest(model)["files"]["classifier.safetensors"]["sha256"]
    assert summary["extractor"] == f"cellbridge-classifier@{digest[:12]}"
    assert network.features(torch.zeros(1, 2, 16, 16)).shape == (1, 16)


def test_the_same_seed_gives_the_same_weights_and_the_same_command_is_done_at_once(trained, store, tmp_path):
    out, summary = trained
    again = train_classifier.run(config(store), out=tmp_path / "again")
    assert again["extractor"] == summary["extractor"]
    assert train_classifier.run(config(store), out=out)["sha256"] == summary["sha256"]


def test_other_settings_in_the_same_run_are_refused_and_leave_its_configuration(trained, store):
    before = RunDir(trained[0]).config.read_text()
    with pytest.raises(RunError, match=r"settings\.balance"):
        train_classifier.run(config(store, balance="none"), out=trained[0])
    assert RunDir(trained[0]).config.read_text() == before


def test_a_classifier_can_start_from_another(trained, store, tmp_path):
    few = TRAINING.model_copy(update={"steps": 1, "learning_rate": 1e-9, "warmup_steps": 0})
    train_classifier.run(config(store, training=few, init_from=trained[0], held_out=None), out=tmp_path / "next")
    first, second = (load_classifier_directory(RunDir(p).model)[0] for p in (trained[0], tmp_path / "next"))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    pickle = tmp_path / "weights.pt"
    pickle.write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="pickles are never opened"):
        train_classifier.run(config(store, init_from=pickle), out=tmp_path / "evil")


def test_bad_requests_are_refused_before_anything_is_written(store, tmp_path):
    for settings, error, text in (
        ({"conditions": ("taxl",)}, ConditionError, 'Did you mean "taxol"'),
        ({"plates": ("P9",)}, StoreError, "P9"),
        ({"plates": ("P3",)}, StoreError, 'no cell of "DMSO" in split'),
        ({"held_out": "train"}, LeakError, "P1"),
        ({"resume": "absent"}, CheckpointError, "no checkpoint in absent"),
        ({"conditions": ()}, ConditionError, "another condition"),
    ):
        with pytest.raises(error, match=text):
            train_classifier.run(config(store, **settings), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_misspelt_condition_does_not_wait_for_torch(store, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom cellbridge.stages import train_classifier as stage\n"
        f"try:\n    stage.run(stage.Config(store=Path({str(store)!r}), conditions=('taxl',)), out=Path({str(tmp_path / 'out')!r}))\n"
        "except Exception as error:\n    print(type(error).__name__, 'torch' in sys.modules)\n"
    )
    written = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert written.stdout.split() == ["ConditionError", "False"]


def test_it_says_how_many_equally_weighted_cells_its_own_are_worth(trained):
    out, summary = trained
    started = events.read(RunDir(out).events)[0]
    assert started["cells"] == summary["cells"]
    assert started["effective_sample_size"] == summary["effective sample size"]
    assert summary["effective sample size"] < summary["cells"]  # taxol is the rarer condition
