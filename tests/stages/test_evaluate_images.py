"""Anybody's images, judged: what is planted is named, honest images pass, and nothing is written beside them."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellbridge.cli import main
from cellbridge.errors import ImageError, LeakError, ModelError, RunError
from cellbridge.stages.evaluate_images import Config, run
from cellbridge.stages.report import Config as ReportConfig
from cellbridge.stages.report import run as report

CHANNELS = ("DNA", "ER")
SIZE = 24
CONDITIONS = {"DMSO": (3.6, 0.0), "swollen@1": (5.2, 0.0), "speckled@1": (3.6, 0.35)}
"""Radius of the nucleus, and share of bright speckles in the ER."""


def cells(condition: str, n: int, seed: int) -> np.ndarray:
    """Draw cells (n, channel, y, x), uint8: a nucleus, and a cell body around it, each at its own place."""
    rng = np.random.default_rng([seed, len(condition)])
    radius, speckles = CONDITIONS[condition]
    y, x = np.mgrid[:SIZE, :SIZE]
    images = np.empty((n, 2, SIZE, SIZE))
    for image in images:
        centre, stretch = SIZE / 2 + rng.uniform(-2, 2, 2), rng.uniform(0.85, 1.15)
        distance = np.hypot((y - centre[0]) * stretch, (x - centre[1]) / stretch)
        nucleus = 1 / (1 + np.exp(1.6 * (distance - radius * rng.uniform(0.9, 1.1))))
        body = 1 / (1 + np.exp(1.2 * (distance - 8.5)))
        spots = (rng.random((SIZE, SIZE)) < speckles) * body
        image[0] = 30 + 150 * nucleus * rng.uniform(0.85, 1.15) + rng.normal(0, 4, (SIZE, SIZE))
        image[1] = 30 + 90 * body * rng.uniform(0.85, 1.15) + 70 * spots + rng.normal(0, 4, (SIZE, SIZE))
    return np.clip(images, 0, 255).astype(np.uint8)


def write(folder: Path, sets: dict[str, np.ndarray]) -> Path:
    """Write class folders of .npy files."""
    for condition, images in sets.items():
        (folder / condition).mkdir(parents=True)
        for index, image in enumerate(images):
            np.save(folder / condition / f"c{index:03d}.npy", image)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Real and training images of three conditions, the control among them."""
    root = tmp_path_factory.mktemp("world")
    write(root / "real", {name: cells(name, 75, 1) for name in CONDITIONS})
    write(root / "train", {name: cells(name, 36, 2) for name in CONDITIONS})
    return root


def judged(world: Path, out: Path, sets: dict[str, dict[str, np.ndarray]], **settings) -> dict:
    """Judge several models at once; each is a folder beside the output."""
    folders = tuple(write(out / name, images) for name, images in sets.items())
    given = {"generated": folders, "real": world / "real", "train": world / "train", "resamples": 100}
    given |= {"images": {"channels": CHANNELS, "axes": "CHW"}} | settings
    run(Config(**given), out=out / "evaluation")
    return json.loads((out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))


TARGETS = ("swollen@1", "speckled@1")


def shifted(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Move each channel's mean to that of other images."""
    by = like.mean(axis=(0, 2, 3)) - images.mean(axis=(0, 2, 3))
    return np.clip(images + by[:, None, None], 0, 255).round().astype(np.uint8)


def planted() -> dict[str, dict[str, np.ndarray]]:
    """Models by what is wrong with them; "honest" draws anew."""
    control, train = cells("DMSO", 36, 7), {name: cells(name, 36, 2) for name in TARGETS}
    honest = {name: cells(name, 36, 3) for name in TARGETS}
    mixed = np.concatenate([honest[name] for name in TARGETS])
    first = TARGETS[0]
    dropped = honest[first].copy()
    dropped[:, 0] = 30
    return {
        "honest": honest,
        "copier": dict.fromkeys(TARGETS, control),
        "shifter": {name: shifted(control, train[name]) for name in TARGETS},
        "memoriser": {first: np.rot90(train[first], axes=(2, 3)).copy()},
        "deaf": {TARGETS[0]: mixed[::2], TARGETS[1]: mixed[1::2]},
        "blind": {first: dropped},
        "padded": {first: np.concatenate([honest[first][:12]] * 3)},
    }


@pytest.fixture(scope="module")
def evaluation(world, tmp_path_factory) -> Path:
    """All models judged at once."""
    out = tmp_path_factory.mktemp("judged")
    judged(world, out, planted())
    return out / "evaluation"


@pytest.fixture(scope="module")
def verdicts(evaluation) -> dict[tuple[str, str], dict]:
    found = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    return {(v["key"].removeprefix("model:"), t["target"]): v for t in found["targets"] for v in t["verdicts"]}


PLANTED = {
    "copier": ("copier",),
    "shifter": ("intensity_shift", "copier"),
    "memoriser": ("memoriser",),
    "deaf": ("condition_ignored",),
    "blind": ("channels",),
    "padded": ("duplicates",),
}
"""Findings, any of which names the failure."""
ASKED = [(model, TARGETS[0]) for model in PLANTED] + [(model, TARGETS[1]) for model in ("copier", "shifter", "deaf")]


@pytest.mark.parametrize(("model", "target"), ASKED)
def test_what_is_planted_is_named(verdicts, model, target):
    verdict = verdicts[model, target]
    against = {finding["key"] for finding in verdict["findings"] if finding["state"] == "against"}
    assert against & set(PLANTED[model]), (verdict["label"], against)
    assert verdict["held_up"] is False


@pytest.mark.parametrize("target", TARGETS)
def test_honest_images_carry_the_phenotype_and_nothing_speaks_against_them(verdicts, target):
    verdict = verdicts["honest", target]
    assert not [finding["key"] for finding in verdict["findings"] if finding["state"] == "against"]
    assert verdict["label"].startswith("carries")


def test_every_row_has_its_n_interval_and_null_rows_beside_it(evaluation):
    found = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    for target in found["targets"]:
        rows = {row["key"]: row for row in target["rows"]}
        assert {"copy", "shift", "moments", "real", "imitation:model:honest", "shuffled:model:honest"} <= set(rows)
        assert {row["n_distance"] for row in rows.values()} == {25}
        for row in rows.values():
            assert row["frechet"]["low"] < row["frechet"]["value"] < row["frechet"]["high"]
            assert row["frechet"]["resampled"] == "jackknife over images, taken for independent"
        assert rows["model:honest"]["gap_closed"]["value"] > 0.8
        assert abs(rows["copy"]["gap_closed"]["value"]) < 0.4
        assert rows["real"]["target_hit"]["value"] > 0.8
        assert any("Fréchet distance" in note and "bias" in note for note in target["notes"])


def test_the_report_renders_it_and_single_images_are_in_the_table(evaluation):
    report(ReportConfig(runs=(evaluation,)))
    html = (evaluation / "report.html").read_text(encoding="utf-8")
    for words in ("Overlap with real images", "Are they copies?", "Channel by channel", "Do conditions differ?"):
        assert words in html
    cells_ = pd.read_parquet(evaluation / "cells.parquet")
    memoriser = cells_[(cells_.Metadata_Arm == "model:memoriser") & (cells_.Metadata_Target == TARGETS[0])]
    assert len(memoriser) == 36
    assert (memoriser["nearest_training_cell"] == memoriser["Metadata_Cell"]).all()
    assert memoriser["nearest_training_distance"].max() < 0.05


def _tree(folder: Path) -> dict[str, tuple[str, int]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), os.stat(f).st_mtime_ns) for f in files}


def test_two_plain_folders_through_the_command_line_on_a_read_only_tree(tmp_path, capsys):
    inputs = tmp_path / "inputs"
    for name, seed in (("made", 3), ("real", 1)):
        (inputs / name).mkdir(parents=True)
        for index, image in enumerate(cells("swollen@1", 40, seed)):
            np.save(inputs / name / f"{index}.npy", image)
    before = _tree(inputs)
    places = [inputs, *(path for path in inputs.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    command = [
        "evaluate",
        "--generated",
        str(inputs / "made"),
        "--real",
        str(inputs / "real"),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--set", "images.channels=[DNA, ER]", "--set", "images.axes=CHW", "--set", "resamples=100"]
    assert main(command) == 0
    assert main(command) == 0  # computed again, over the earlier one
    assert _tree(inputs) == before
    for place in places:
        place.chmod(0o755)
    (target,) = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["targets"]
    model, real = target["rows"]
    assert (model["n"], model["n_distance"], real["kind"]) == (40, 13, "real")
    assert model["frechet"]["low"] < model["frechet"]["value"]
    assert "no control was given" in model["gap_closed"]["not_computed"]
    assert any("13 images for" in note for note in target["notes"])


def test_outputs_find_their_sources_by_name_where_they_are_translations(tmp_path):
    source = cells("DMSO", 40, 5)
    write(tmp_path / "real", {name: cells(name, 40, 1) for name in ("DMSO", "speckled@1")})
    write(tmp_path / "source", {"DMSO": source})
    spots = np.random.default_rng(0).random(source[:, 1].shape) < 0.3
    same = source.copy()
    same[:, 1] = np.clip(same[:, 1] + 60.0 * spots * (same[:, 1] > 60), 0, 255)
    sets = {"translator": {"speckled@1": same}, "inventor": {"speckled@1": cells("speckled@1", 40, 9)}}
    found = judged(tmp_path, tmp_path, sets, train=None, source=tmp_path / "source")
    by_model = {verdict["model"]: verdict for verdict in found["targets"][0]["verdicts"]}
    states = {name: {f["key"]: f["state"] for f in verdict["findings"]} for name, verdict in by_model.items()}
    assert states["translator"]["identity"] == "for"
    assert states["inventor"]["not_this_cell"] == "against"


def test_what_does_not_fit_is_refused_before_anything_is_computed(tmp_path):
    write(tmp_path / "real", {"DMSO": cells("DMSO", 12, 1), "swollen@1": cells("swollen@1", 12, 1)})
    write(tmp_path / "other", {"speckled@1": cells("speckled@1", 12, 1)})
    write(tmp_path / "small", {"swollen@1": cells("swollen@1", 12, 1)[..., :20]})
    settings = {"real": tmp_path / "real", "images": {"axes": "CHW", "channels": CHANNELS}, "resamples": 100}
    with pytest.raises(ImageError, match='condition "speckled@1" has no real images'):
        run(Config(generated=(tmp_path / "other",), **settings), out=tmp_path / "out")
    with pytest.raises(ImageError, match="Crop and resize all in one way"):
        run(Config(generated=(tmp_path / "small",), **settings), out=tmp_path / "out")
    unnamed = settings | {"images": {"axes": "CHW"}}
    with pytest.raises(ModelError, match=r"nothing gives features of these images .*Name the stains"):
        run(Config(generated=(tmp_path / "other",), **unnamed), out=tmp_path / "out")
    with pytest.raises(RunError, match="lies inside the input"):
        run(Config(generated=(tmp_path / "other",), **settings), out=tmp_path / "real" / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_images_that_stand_on_two_sides_are_refused(tmp_path):
    real = {"DMSO": cells("DMSO", 40, 1), "swollen@1": cells("swollen@1", 40, 1)}
    write(tmp_path / "real", real)
    write(tmp_path / "train", {"swollen@1": np.concatenate([cells("swollen@1", 40, 2), real["swollen@1"][:3]])})
    write(tmp_path / "cheat", {"swollen@1": np.concatenate([cells("swollen@1", 38, 3), real["swollen@1"][5:7]])})
    write(tmp_path / "copier", {"swollen@1": real["DMSO"]})
    flat = np.zeros((1, 2, SIZE, SIZE), np.uint8)
    write(tmp_path / "blank", {"swollen@1": np.concatenate([cells("swollen@1", 38, 3), flat])})
    settings = {"real": tmp_path / "real", "images": {"axes": "CHW", "channels": CHANNELS}, "resamples": 100}
    with pytest.raises(LeakError, match="2 images of cheat are real images of"):
        run(Config(generated=(tmp_path / "cheat",), **settings), out=tmp_path / "out")
    with pytest.raises(LeakError, match="3 images are among the training images"):
        run(Config(generated=(tmp_path / "blank",), train=tmp_path / "train", **settings), out=tmp_path / "out")
    run(Config(generated=(tmp_path / "copier", tmp_path / "blank"), **settings), out=tmp_path / "out")
    (target,) = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["targets"]
    assert target["verdicts"][0]["label"] == "indistinguishable from DMSO"


def test_another_scale_than_the_real_images_is_said(tmp_path):
    write(tmp_path / "real", {"swollen@1": cells("swollen@1", 40, 1)})
    write(
        tmp_path / "made", {"swollen@1": cells("swollen@1", 40, 3).astype(np.uint16)}
    )  # 8-bit counts, stored as 16 bit
    settings = {"real": tmp_path / "real", "images": {"axes": "CHW", "channels": CHANNELS}, "resamples": 100}
    run(Config(generated=(tmp_path / "made",), **settings), out=tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["notes"]
    (note,) = (note for note in notes if "scale" in note)
    assert note.startswith("generated made images are read on a scale of 0 to 65535 (brightest value 2")
