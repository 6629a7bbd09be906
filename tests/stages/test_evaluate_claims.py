"""Claims about what `evaluate` does with the same cells in another order, with few cells, with repeats, and with the other stores it takes."""

import json
import stat

import numpy as np
import pytest
from known_world import HEAD, truth_images, write_classifier, write_study, write_translated

from cellbridge.data.store import open_store, write_store
from cellbridge.evaluation.arms import drawn_rows
from cellbridge.runs import RunDir, file_sha256
from cellbridge.stages.evaluate import Config, run

TARGETS = ("shrinker@1", "dimmer@5")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """An honest model, asked for the control, too, and one that returns eight images over and over."""
    folder = tmp_path_factory.mktemp("known world")
    paths = write_study(folder, per_well=16)
    reference = open_store(paths["reference"])
    sources = reference.images(reference.select(split="test", conditions=["DMSO"]))
    truth = {target: truth_images(paths, target, origin="counterfactual") for target in TARGETS}
    padded = {target: images[np.arange(len(images)) % 8] for target, images in truth.items()}
    models = {"honest": {**truth, "DMSO": sources}, "padded": padded}
    paths["translated"] = write_translated(folder / "translated.zarr", paths, models)
    paths["classifier"] = write_classifier(folder / "classifier", paths)
    paths["round_trip"] = _back(folder / "back.zarr", paths["translated"], reference)
    paths["unconditional"] = _without_condition(folder / "unconditional.zarr", reference)
    return paths


def _back(path, translated, reference):
    """Write what a model that knows the way back makes of every output: the source itself."""
    store = open_store(translated)
    source = reference.obs.index.get_indexer(store.obs["Metadata_SourceCell"])
    obs = store.obs.reset_index(drop=True)
    obs["Metadata_SourceCell"] = obs["Metadata_Cell"]
    obs["Metadata_Cell"] = obs["Metadata_Cell"] + ">back"
    obs["Metadata_Compound"], obs["Metadata_Concentration"] = "DMSO", ""
    write_store(path, obs=obs, counts=reference.counts(source), intensity=reference.intensity, **HEAD)
    return path


def _without_condition(path, reference):
    """Write cells of all conditions, as a model without a condition would make them."""
    rows = reference.select(split="train")[::3]
    obs = reference.obs.iloc[rows].reset_index(drop=True)
    write_store(path, obs=obs, counts=reference.counts(rows), intensity=reference.intensity, **HEAD)
    return path


def _judge(paths, out, **settings):
    run(Config(**paths, figures=False, resamples=100, device="cpu", **settings), out=out)
    return json.loads(RunDir(out).metrics.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def forty(study, tmp_path_factory):
    """An evaluation of 40 cells of each row out of a tree that may not be written to, and the inputs' hashes before it."""
    files = [file for path in study.values() for file in (path, *path.rglob("*"))]
    before = {file: file_sha256(file) for file in files if file.is_file()}
    for file in files:
        file.chmod(file.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        metrics = _judge(study, tmp_path_factory.mktemp("runs") / "forty", n=40)
    finally:
        for file in files:
            file.chmod(file.stat().st_mode | stat.S_IWUSR)
    after = {file: file_sha256(file) for path in study.values() for file in path.rglob("*") if file.is_file()}
    return {"metrics": metrics, "before": before, "after": after}


def _target(metrics, name="shrinker@1"):
    return next(target for target in metrics["targets"] if target["target"] == name)


def _section(target, key):
    return next(section for section in target["sections"] if section["key"] == key)


def _row(section, key):
    return next(row for row in section["rows"] if row.get("key") == key)


def test_an_input_tree_that_may_not_be_written_to_works_and_stays_as_it_is(forty):
    assert forty["before"] == forty["after"]


def test_forty_cells_give_value_n_interval_and_a_warning_of_bias(forty):
    for target in forty["metrics"]["targets"]:
        model = next(row for row in target["rows"] if row["key"] == "model:honest")
        assert model["n"] == 40
        for column in ("target_hit", "frechet", "kernel", "gap_closed"):
            assert model[column]["low"] <= model[column]["value"] <= model[column]["high"]
            assert model[column]["n"] > 0
        assert any("mostly bias" in note for note in target["notes"])


def test_a_store_padded_with_copies_is_named(forty):
    for target in forty["metrics"]["targets"]:
        verdict = next(found for found in target["verdicts"] if found["key"] == "model:padded")
        names = [finding["name"] for finding in verdict["findings"] if finding["state"] == "against"]
        assert "repeats its outputs" in names
        assert verdict["held_up"] is False
        assert _row(_section(target, "memorisation"), "model:padded")["distinct"]["value"] == 8


def test_the_control_as_a_target_is_no_target_but_says_what_is_left_unchanged(forty):
    assert {target["target"] for target in forty["metrics"]["targets"]} == set(TARGETS)
    identity = _row(_section(_target(forty["metrics"]), "identity"), "model:honest")
    assert identity["unchanged"]["value"] == pytest.approx(0, abs=1e-6)
    assert identity["returned"]["value"] == pytest.approx(0, abs=1e-6)
    swap = next(section for section in forty["metrics"]["sections"] if section["key"] == "swap")
    assert next(row for row in swap["rows"] if row["key"] == "model:honest")["against"] == {"text": "control"}


def test_every_null_row_stands_in_the_table(forty):
    keys = [row["key"] for row in _target(forty["metrics"])["rows"]]
    nulls = {
        "copy",
        "shift",
        "moments",
        "denoised",
        "random_target",
        "unconditional",
        "count",
        "shuffled:model:honest",
        "real",
    }
    assert nulls | {"imitation:model:honest", "control:model:honest"} <= set(keys)
    assert "target_hit" in next(row for row in _target(forty["metrics"])["rows"] if row["key"] == "unconditional")


def test_outputs_are_nearest_to_the_condition_that_was_asked_for(forty):
    for target in forty["metrics"]["targets"]:
        row = _row(_section(target, "neighbourhood"), "model:honest")
        assert row["rank"]["value"] == 1
        assert row["nearest"]["text"] == target["target"]


def test_the_order_of_cells_changes_nothing(study, tmp_path):
    shuffled = dict(study)
    for name in ("reference", "translated"):
        store = open_store(study[name])
        order = np.random.default_rng(1).permutation(store.info.n_cells)
        arrays = {"counts": store.counts(order), "masks": store.masks(order), "x_T": store.x_T(order)}
        obs = store.obs.iloc[order].reset_index(drop=True)
        shuffled[name] = tmp_path / f"{name}.zarr"
        write_store(shuffled[name], obs=obs, intensity=store.intensity, **arrays, **HEAD)
    for name, paths in (("one", study), ("other", shuffled)):
        _judge({key: paths[key] for key in ("reference", "translated", "classifier")}, tmp_path / name, n=30)
    first, second = (
        json.loads(RunDir(tmp_path / name).metrics.read_text(encoding="utf-8")) for name in ("one", "other")
    )
    for one, other in zip(first["targets"], second["targets"], strict=True):
        for key in ("rows", "distances", "sections"):
            assert _numbers(one[key]) == pytest.approx(_numbers(other[key]), rel=1e-3, abs=1e-4, nan_ok=True)
        assert [found["label"] for found in one["verdicts"]] == [found["label"] for found in other["verdicts"]]


def test_cells_without_a_condition_are_a_sample_of_their_store_in_whatever_order_it_lies(study, tmp_path):
    store = open_store(study["unconditional"])
    order = np.argsort(store.condition_names, kind="stable")
    sorted_path = tmp_path / "sorted.zarr"
    obs = store.obs.iloc[order].reset_index(drop=True)
    write_store(sorted_path, obs=obs, counts=store.counts(order), intensity=store.intensity, **HEAD)
    drawn = []
    for found in (store, open_store(sorted_path)):
        rows = drawn_rows(found, np.arange(found.info.n_cells), seed=0)[:24]
        drawn.append(found.obs.index[rows].tolist())
        assert set(found.condition_names[rows]) == {"DMSO", *TARGETS}
    assert drawn[0] == drawn[1]


def _numbers(found):
    """Return all numbers of nested JSON, in order."""
    if isinstance(found, dict):
        return [number for value in found.values() for number in _numbers(value)]
    if isinstance(found, list):
        return [number for value in found for number in _numbers(value)]
    return [float(found)] if isinstance(found, int | float) else []
