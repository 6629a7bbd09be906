"""Claims about `evaluate` on several translated stores: one table, and what belongs to a store stays with its models."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from known_world import HEAD, truth_images, write_classifier, write_study, write_translated

from cellbridge.data.comparison import compare
from cellbridge.data.store import open_store, write_store
from cellbridge.errors import LeakError, StoreError
from cellbridge.evaluation.inputs import describe_inputs, numbered
from cellbridge.runs import RunDir, fingerprint
from cellbridge.stages.evaluate import Config, run

TARGETS = ("shrinker@1", "dimmer@5")
SETTINGS = {"resamples": 100, "n": 24, "figures": False}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    paths = write_study(folder, per_well=12)
    paths["classifier"] = write_classifier(folder / "classifier", paths)
    return paths


@pytest.fixture(scope="module")
def stores(study, tmp_path_factory):
    """The truth and a copier, in one store, and each in its own."""
    folder = tmp_path_factory.mktemp("stores")
    reference = open_store(study["reference"])
    sources = reference.images(reference.select(split="test", conditions=["DMSO"]))
    honest = {target: truth_images(study, target, origin="counterfactual") for target in TARGETS}
    models = {"copier": dict.fromkeys(TARGETS, sources), "honest": honest}
    both = write_translated(folder / "both.zarr", study, models)
    return {"both": both, **{name: write_translated(folder / name, study, {name: models[name]}) for name in models}}


@pytest.fixture(scope="module")
def apart(study, stores, tmp_path_factory):
    """The evaluation of both stores."""
    out = tmp_path_factory.mktemp("runs") / "apart"
    run(Config(**study, translated=[stores["honest"], stores["copier"]], **SETTINGS), out=out)
    return _metrics(out)


def _metrics(out):
    return json.loads(RunDir(out).metrics.read_text(encoding="utf-8"))


def _sampled(path, study, *, times):
    """Write the honest model with several draws of each cell, each an answer by chance."""
    reference, truth = open_store(study["reference"]), open_store(study["truth"])
    rows = reference.select(split="test", conditions=["DMSO"])
    write_translated(path.with_suffix(".one"), study, {"drawn": {"shrinker@1": reference.images(rows)}})
    one = open_store(path.with_suffix(".one"))
    responding = truth_images(study, "shrinker@1", origin="responding")
    chosen = (truth.condition_names == "shrinker@1") & (truth.obs["Metadata_Origin"] == "responding").to_numpy()
    chance = dict(zip(truth.obs["Metadata_SourceCell"][chosen], truth.obs["Truth_PResponse"][chosen], strict=True))
    p = np.array([float(chance[cell]) for cell in one.obs["Metadata_SourceCell"]])
    tables, counts = [], []
    for sample in range(times):
        table = one.obs.reset_index(drop=True)
        table["Metadata_Sample"] = str(sample)
        table["Metadata_Cell"] += f">{sample}"
        answers = np.random.default_rng(sample).random(len(p)) < p
        images = np.where(answers[:, None, None, None], responding, reference.images(rows)).astype(np.float32)
        tables.append(table)
        counted = reference.intensity.to_counts(torch.from_numpy(images), list(reference.plates[rows]))[0]
        counts.append(counted.numpy().astype(np.uint16))
    order = list(reversed(range(times)))  # the first draw is known by its number, not by where it lies
    obs = pd.concat([tables[k] for k in order], ignore_index=True)
    attributes = {"inputs": {"store": fingerprint(study["reference"])}, "trained_on": {"bridge": ["P1", "P2"]}}
    kept = np.concatenate([counts[k] for k in order])
    write_store(path, obs=obs, counts=kept, intensity=reference.intensity, attributes=attributes, **HEAD)
    return path


def test_stores_of_one_model_each_give_the_table_of_one_store_of_both(study, stores, apart, tmp_path):
    run(Config(**study, translated=stores["both"], **SETTINGS), out=tmp_path / "together")
    together = _metrics(tmp_path / "together")
    for one, other in zip(apart["targets"], together["targets"], strict=True):
        assert one["rows"] == other["rows"]
        assert one["verdicts"] == other["verdicts"]
        of_images = [[part for part in target["sections"] if part["key"] != "x_T"] for target in (one, other)]
        assert of_images[0] == of_images[1]
    assert apart["sections"] == together["sections"]
    assert set(apart["inputs"]) == {"translated", "translated 2", "reference", "classifier", "truth"}
    assert set(together["inputs"]) == {"translated", "reference", "classifier", "truth"}


def test_a_model_in_two_stores_is_refused_and_the_remedy_named(study, stores, tmp_path):
    with pytest.raises(StoreError, match=r'model "honest", and so does .*both\.zarr.*--set name=') as caught:
        run(Config(**study, translated=[stores["both"], stores["honest"]]), out=tmp_path / "run")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_rows_compare_on_the_cells_that_every_model_translated(study, stores, tmp_path):
    copier, reference = open_store(stores["copier"]), open_store(study["reference"])
    some = np.arange(0, len(copier.obs), 2)
    fewer = tmp_path / "fewer.zarr"
    attributes = {key: copier.info.attributes[key] for key in ("inputs", "trained_on")}
    head = {"obs": copier.obs.iloc[some].reset_index(drop=True), "intensity": copier.intensity, **HEAD}
    write_store(fewer, counts=copier.counts(some), attributes=attributes, **head)
    pair = [open_store(stores["honest"]), open_store(fewer)]
    for comparison in compare(pair, reference, None, split="test", n=None, seed=0):
        cells = set(reference.obs.index[comparison.sources])
        assert cells == set(copier.obs["Metadata_SourceCell"].iloc[some])
        assert comparison.translated == {"copier": len(cells), "honest": 2 * len(cells)}
        for store, model in zip(pair, ("honest", "copier"), strict=True):
            outputs = store.obs.iloc[comparison.outputs[model]]
            assert list(outputs["Metadata_SourceCell"]) == list(reference.obs.index[comparison.sources])
            assert set(outputs["Metadata_Model"]) == {model}


def test_what_lies_beside_a_store_stays_with_its_models(study, stores, tmp_path):
    """A round trip is known by the fingerprint of the store that was translated back, in whatever order the two are given."""
    store = open_store(stores["copier"])
    back = tmp_path / "back.zarr"
    obs = store.obs.reset_index(drop=True)
    obs["Metadata_SourceCell"] = obs["Metadata_Cell"]
    obs["Metadata_Compound"], obs["Metadata_Concentration"] = "DMSO", ""
    obs["Metadata_Cell"] += ">DMSO"
    attributes = {"inputs": {"store": fingerprint(stores["copier"])}}
    counts = store.counts(np.arange(len(obs)))
    write_store(back, obs=obs, counts=counts, intensity=store.intensity, attributes=attributes, **HEAD)
    given = {"reference": study["reference"], **numbered("translated", (stores["honest"], stores["copier"]))}
    described = describe_inputs(given | {"round_trip": back}, study["classifier"])
    assert described.beside == {"translated": {}, "translated 2": {"round_trip": "round_trip"}}


def test_a_leak_of_the_second_store_is_refused_too(study, stores, tmp_path):
    copier = open_store(stores["copier"])
    leaky = tmp_path / "leaky.zarr"
    attributes = {"inputs": copier.info.attributes["inputs"], "trained_on": {"bridge": ["P1", "P3"]}}
    head = {"obs": copier.obs.reset_index(drop=True), "intensity": copier.intensity, **HEAD}
    write_store(leaky, counts=copier.counts(np.arange(len(copier.obs))), attributes=attributes, **head)
    with pytest.raises(LeakError, match='the bridge was trained on plate "P3"'):
        run(Config(**study, translated=[stores["honest"], leaky], **SETTINGS), out=tmp_path / "run")


def test_draws_of_one_cell_are_judged_by_their_spread_and_the_first_stands_for_them(study, tmp_path):
    path = _sampled(tmp_path / "drawn.zarr", study, times=6)
    run(Config(**study, translated=path, **SETTINGS), out=tmp_path / "run")
    (target,) = _metrics(tmp_path / "run")["targets"]
    section = next(part for part in target["sections"] if part["key"] == "spread")
    row = section["rows"][0]
    assert row["draws"] == {"value": 6.0}
    assert row["ratio"]["value"] == pytest.approx(1.0, abs=0.25)
    assert row["spread"]["value"] == pytest.approx(row["truth"]["value"], rel=0.15)
    assert section["notes"] == ["Draws of each cell: drawn 6. Every other table takes the first of them."]
    store = open_store(path)
    (comparison,) = compare([store], open_store(study["reference"]), None, split="test", n=24, seed=0)
    assert set(store.obs["Metadata_Sample"].iloc[comparison.outputs["drawn"]]) == {"0"}
    assert comparison.draws["drawn"].shape == (24, 6)


def test_cells_that_were_translated_once_have_no_spread_to_judge(apart):
    assert not [part for target in apart["targets"] for part in target["sections"] if part["key"] == "spread"]
