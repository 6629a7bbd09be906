"""Claims about `evaluate`: planted failures are named, nothing that it reads is written to, and a leak is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from known_world import HEAD, truth_images, write_classifier, write_study, write_translated

from cellbridge.data.comparison import compare, held_out
from cellbridge.data.store import open_store, write_store
from cellbridge.errors import LeakError, ModelError, NumericalError, RunError, StoreError
from cellbridge.evaluation.arms import truth_of
from cellbridge.runs import MANIFEST, RunDir, file_sha256, fingerprint, publish_directory
from cellbridge.stages.evaluate import Config, run
from cellbridge.stages.report import Config as ReportConfig
from cellbridge.stages.report import run as report

TARGETS = ("shrinker@1", "dimmer@5")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One study, a classifier, and four models: the truth itself, a copier, one deaf to its condition, one that mixes cells up."""
    folder = tmp_path_factory.mktemp("known world")
    paths = write_study(folder, per_well=16)
    reference = open_store(paths["reference"])
    sources = reference.images(reference.select(split="test", conditions=["DMSO"]))
    truth = {target: truth_images(paths, target, origin="counterfactual") for target in TARGETS}
    models = {
        "honest": truth,
        "copier": dict.fromkeys(TARGETS, sources),
        "deaf": dict.fromkeys(TARGETS, truth["shrinker@1"]),
        "mixer": {target: np.roll(images, 17, axis=0) for target, images in truth.items()},
    }
    paths["translated"] = write_translated(folder / "translated.zarr", paths, models)
    paths["classifier"] = write_classifier(folder / "classifier", paths)
    return paths


@pytest.fixture(scope="module")
def evaluation(study, tmp_path_factory):
    """The evaluation of all four, its summary, and the hashes of every input before it."""
    before = _hashes(study)
    out = tmp_path_factory.mktemp("runs") / "evaluation"
    summary = run(Config(**study, resamples=200), out=out)
    metrics = json.loads(RunDir(out).metrics.read_text(encoding="utf-8"))
    return {"out": out, "summary": summary, "metrics": metrics, "before": before}


def _hashes(study):
    return {file: file_sha256(file) for path in study.values() for file in sorted(path.rglob("*")) if file.is_file()}


def _target(evaluation, name="shrinker@1"):
    return next(target for target in evaluation["metrics"]["targets"] if target["target"] == name)


def _row(evaluation, key, target="shrinker@1"):
    return next(row for row in _target(evaluation, target)["rows"] if row["key"] == key)


def _label(evaluation, model, target="shrinker@1"):
    return next(v["label"] for v in _target(evaluation, target)["verdicts"] if v["key"] == f"model:{model}")


def test_the_truth_itself_holds_up(evaluation):
    for target in TARGETS:
        assert _label(evaluation, "honest", target) == "carries the phenotype, cell by cell"


def test_a_copier_is_named(evaluation):
    for target in TARGETS:
        assert _label(evaluation, "copier", target) == "indistinguishable from DMSO"


def test_a_model_that_is_deaf_to_its_condition_is_named(evaluation):
    assert _label(evaluation, "deaf") == "does not depend on its condition"


def test_a_model_that_mixes_cells_up_is_named_although_its_distribution_is_right(evaluation):
    gap = _row(evaluation, "model:mixer")["gap_closed"]
    assert gap["low"] <= 1 <= gap["high"]
    assert _row(evaluation, "model:mixer", "dimmer@5")["against"]["copy"]["low"] > 0
    verdicts = [v for target in TARGETS for v in _target(evaluation, target)["verdicts"] if v["key"] == "model:mixer"]
    assert [v["held_up"] for v in verdicts] == [False, False]


def test_copying_scores_one_and_the_best_possible_zero(evaluation):
    for target in TARGETS:
        assert _row(evaluation, "copy", target)["score"]["value"] == 1
        assert _row(evaluation, "best", target)["score"]["value"] == 0
        assert _row(evaluation, "model:honest", target)["error"]["value"] < 1e-6


def test_every_arm_stands_at_one_n_with_hits_errors_and_distances(evaluation):
    rows = _target(evaluation)["rows"]
    expected = {"copy", "shift", "moments", "denoised", "real", "counterfactual", "best"}
    assert expected < {row["key"] for row in rows}
    count = next(row for row in rows if row["key"] == "count")
    assert count["n"] == 3  # wells
    rows = [row for row in rows if row["key"] != "count"]
    assert {row["n"] for row in rows if row["kind"] != "real"} == {64}
    rows = [row for row in rows if row["key"] != "random_target"]
    assert {row["n_distance"] for row in rows} == {16}
    for row in rows:
        assert "value" in row["frechet"]
        assert row["target_hit"]["low"] is not None
        assert ("error" in row) == (row["kind"] != "real")


def test_a_random_cell_of_the_target_on_the_same_plate_is_a_null_row_by_cell(evaluation):
    """Real cells of the target: their hits and distances are those of the real row, and what they lack is to be these very cells."""
    for target in TARGETS:
        row, honest = _row(evaluation, "random_target", target), _row(evaluation, "model:honest", target)
        assert (row["kind"], row["n"], row["name"]) == ("null", 64, f"random {target} cell of the plate")
        assert row["error"]["value"] > 2 * honest["error"]["value"]
        assert honest["against"]["random_target"]["high"] < 0
        assert "random_target" not in honest["hit_against"]
        for column in ("target_hit", "frechet", "kernel", "gap_closed"):
            assert "real cells of the target" in row[column]["not_computed"]
    cells = pd.read_parquet(evaluation["out"] / "cells.parquet")
    assert (cells["Metadata_Arm"] == "random_target").sum() == 64 * len(TARGETS)


def test_untouched_control_closes_none_of_the_gap_within_its_interval(evaluation):
    gap = _row(evaluation, "copy")["gap_closed"]
    assert gap["low"] <= 0 <= gap["high"]


def test_results_say_what_made_them(evaluation):
    metrics = evaluation["metrics"]
    extractor = metrics["extractors"][0]
    assert extractor["name"].startswith("cellbridge-classifier@")
    assert len(extractor["sha256"]) == 64
    assert set(metrics["inputs"]) == {"translated", "reference", "classifier", "truth"}
    assert metrics["inception"]["not_computed"].startswith("no weights were given")
    words = metrics["classifier"]["per_condition"]
    assert words["DMSO"]["held_out"].startswith("all cells, translated ones among them")
    assert words["shrinker@1"]["held_out"].startswith("wells that cells were translated from")


def test_white_x_T_passes_its_battery_beside_fresh_noise(evaluation):
    noise = _target(evaluation)["noise"]
    assert set(noise["models"]) == {"honest", "copier", "deaf", "mixer"}
    assert min(test["p_holm"] for test in noise["models"]["honest"]) > 1e-3
    assert len(noise["fresh"]) == len(noise["models"]["honest"]) == 11


def test_inputs_are_only_read(evaluation, study):
    assert _hashes(study) == evaluation["before"]


def test_figures_and_the_table_are_written(evaluation):
    figures = [figure for target in evaluation["metrics"]["targets"] for figure in target["figures"]]
    assert len(figures) >= 10
    assert all((evaluation["out"] / figure["file"]).read_bytes().startswith(b"\x89PNG") for figure in figures)
    table = (evaluation["out"] / "table.txt").read_text(encoding="utf-8")
    assert table.strip() == evaluation["summary"]["table"].strip()
    assert "best possible" in table


@pytest.fixture(scope="module")
def one_target(study, tmp_path_factory):
    """One model, one target, no x_T, as a store of its own."""
    folder, store = tmp_path_factory.mktemp("one target"), open_store(study["translated"])
    honest = (store.obs["Metadata_Model"] == "honest") & (store.obs["Metadata_TargetCondition"] == "dimmer@5")
    chosen = np.flatnonzero(honest.to_numpy())
    obs = store.obs.iloc[chosen].reset_index(drop=True)
    write_store(folder / "one.zarr", obs=obs, counts=store.counts(chosen), intensity=store.intensity, **HEAD)
    return Config(**{**study, "translated": folder / "one.zarr", "truth": None}, n=40, resamples=100)


def test_one_target_without_truth_says_what_is_not_computed_and_one_seed_gives_the_same_numbers(one_target, tmp_path):
    for name in ("first", "again"):
        run(one_target.model_copy(update={"figures": False}), out=tmp_path / name)
    first, again = (RunDir(tmp_path / name).metrics.read_text(encoding="utf-8") for name in ("first", "again"))
    assert first == again
    target = json.loads(first)["targets"][0]
    assert target["n"] == 40
    assert any("shuffled condition (honest): not computed" in note for note in target["notes"])
    assert any("the truth is not known" in note for note in target["notes"])
    assert target["noise"] == {"not_computed": "the translated store holds no x_T"}
    assert all("error" not in row for row in target["rows"])
    # Without truth per cell, nothing tells a compound that dims from an intensity shift.
    assert target["verdicts"][0]["label"] in ("explained by an intensity shift", "not told from an intensity shift")
    assert target["verdicts"][0]["held_up"] is not True


def _with_card(run, other, old, new):
    """Publish a classifier again with something else in its card."""
    with publish_directory(other / "model", manifest={"kind": "classifier"}) as directory:
        for file in (run / "model").iterdir():
            if file.name != MANIFEST:
                shutil.copy(file, directory / file.name)
        card = directory / "cellbridge.json"
        card.write_text(card.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return other


def test_a_classifier_trained_on_a_plate_under_judgement_is_refused(study, tmp_path):
    leaky = _with_card(study["classifier"], tmp_path / "leaky", '"P2"', '"P3"')
    with pytest.raises(LeakError, match='the classifier was trained on plate "P3", which is under judgement'):
        run(Config(**{**study, "classifier": leaky}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _rewritten(path, store, rows, *, obs=None, **changes):
    """Write some rows of a store again, with the attributes given alone."""
    table = store.obs.iloc[rows] if obs is None else obs
    arrays = {"counts": store.counts(rows), "x_T": store.x_T(rows), "masks": store.masks(rows)} | changes
    write_store(path, obs=table.reset_index(drop=True), intensity=store.intensity, **arrays, **HEAD)
    return path


def _rows_of(store, *, model, target, n=None):
    chosen = (store.obs["Metadata_Model"] == model) & (store.obs["Metadata_TargetCondition"] == target)
    return np.flatnonzero(chosen.to_numpy())[:n]


def test_a_model_trained_on_a_plate_under_judgement_is_refused_by_name(study, tmp_path):
    store = open_store(study["translated"])
    trained_on = {"base": ["P1"], "shrinker@1": ["P1", "P3"]}
    rows, attributes = _rows_of(store, model="honest", target="dimmer@5", n=8), {"trained_on": trained_on}
    leaky = _rewritten(tmp_path / "leaky.zarr", store, rows, attributes=attributes)
    config = Config(**{**study, "translated": leaky}, resamples=100, figures=False)
    with pytest.raises(
        LeakError, match='the adapter of shrinker@1 was trained on plate "P3", which is under judgement'
    ):
        run(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    summary = run(config.model_copy(update={"model_plates": "shared"}), out=tmp_path / "run")
    models = json.loads(RunDir(tmp_path / "run").metrics.read_text(encoding="utf-8"))["models"]
    assert models["trained_on"]["adapter of shrinker@1"] == ["P1", "P3"]
    assert models["shared"] == {"adapter of shrinker@1": ["P3"]}
    assert "adapter of shrinker@1 was trained on other wells of plates under judgement (P3)" in summary["table"]


def test_stores_made_from_another_store_are_refused_with_both_fingerprints(study, tmp_path):
    store = open_store(study["translated"])
    expected = fingerprint(study["reference"])[:12]
    for attributes, name in (
        ({"inputs": {"store": "f" * 64}}, "translated"),
        ({"crops_from_sha256": "f" * 64}, "truth"),
    ):
        other = _rewritten(tmp_path / f"{name}.zarr", store, [0, 1], attributes=attributes)
        with pytest.raises(StoreError, match=rf"{name}\.zarr: was made from .* ffffffffffff…, but .* has {expected}"):
            run(Config(**{**study, name: other}), out=tmp_path / "run")


def test_a_truth_that_holds_no_counterfactuals_is_refused(study, tmp_path):
    with pytest.raises(
        StoreError, match=r"store\.zarr: has no column Metadata_SourceCell, so it holds no counterfactuals"
    ):
        run(Config(**{**study, "truth": study["reference"]}), out=tmp_path / "run")


def test_a_base_in_place_of_the_classifier_is_named(study, tmp_path):
    base = _with_card(study["classifier"], tmp_path / "base", '"kind": "classifier"', '"kind": "base"')
    with pytest.raises(ModelError, match=r"base: holds a model of kind 'base', expected a classifier"):
        run(Config(**{**study, "classifier": base}), out=tmp_path / "run")


@pytest.mark.parametrize("n", [1, 2, 5])
def test_very_few_cells_give_what_can_be_computed_and_no_verdict(study, tmp_path, n):
    run(Config(**study, n=n, resamples=100, figures=n == 1), out=tmp_path / "run")
    metrics = json.loads(RunDir(tmp_path / "run").metrics.read_text(encoding="utf-8"))
    for target in metrics["targets"]:
        assert target["n"] == n
        assert {verdict["label"] for verdict in target["verdicts"]} == {"n too small"}
    assert ("not_computed" in metrics["targets"][0]["noise"]) is (n == 1)
    report(ReportConfig(runs=(tmp_path / "run",)))


def test_cells_without_a_mask_and_constant_stains_are_left_out_of_the_error_and_said(study, tmp_path):
    reference, rows = open_store(study["reference"]), np.arange(len(open_store(study["reference"]).obs))
    chosen = (reference.obs["Metadata_Split"] == "test") & (reference.obs["Metadata_Compound"] == "DMSO")
    of_test = np.flatnonzero(chosen.to_numpy())
    masks, counts = reference.masks(rows), reference.counts(rows)
    masks[of_test[:2]] = 0
    store = _rewritten(tmp_path / "maskless.zarr", reference, rows, masks=masks)
    comparison = _first_comparison(study, store)
    truth, notes = truth_of(open_store(store), open_store(study["truth"]), comparison)
    assert truth.known.sum() == len(comparison.sources) - 2
    assert notes == [f"error per cell: 2 of {len(comparison.sources)} cells have no mask and are left out of it."]
    counts[of_test, 2] = 300
    store = _rewritten(tmp_path / "dark.zarr", reference, rows, counts=counts)
    truth, notes = truth_of(open_store(store), open_store(study["truth"]), comparison)
    assert truth is None
    assert notes[0].startswith("error per cell: not computed: Mito is constant")


def _first_comparison(study, reference):
    stores = [open_store(path) for path in (study["translated"], reference, study["truth"])]
    return compare(stores[:1], *stores[1:], split="test", n=None, seed=0)[0]


def test_noise_that_is_not_finite_is_a_numerical_error(study, tmp_path):
    store = open_store(study["translated"])
    rows = _rows_of(store, model="honest", target="dimmer@5", n=8)
    x_T = store.x_T(rows)
    x_T[3, 0, 0, 0] = np.nan
    broken = _rewritten(tmp_path / "broken.zarr", store, rows, x_T=x_T)
    with pytest.raises(NumericalError, match=r"x_T of 1 of 8 cells is not finite \(honest, dimmer@5\)") as caught:
        run(Config(**{**study, "translated": broken}), out=tmp_path / "run")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()


def test_a_directory_of_another_run_is_refused_and_stays_as_it_is(study, tmp_path):
    out = tmp_path / "base"
    out.mkdir()
    for name, text in (("config.yaml", "network: {}\n"), ("events.jsonl", "{}\n")):
        (out / name).write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="holds something else than an evaluation"):
        run(Config(**study), out=out)
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "events.jsonl"]
    assert (out / "config.yaml").read_text(encoding="utf-8") == "network: {}\n"


def test_an_interrupted_evaluation_leaves_nothing_of_an_older_one_beside_its_config(one_target, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(one_target, out=out)
    (out / "figures" / "older-cells.png").write_bytes(b"")
    (out / "report.html").write_text("old", encoding="utf-8")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cellbridge.evaluation.target.arms_of", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(one_target.model_copy(update={"seed": 5}), out=out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "config.yaml",
        "provenance.json",
    ]
    run(one_target.model_copy(update={"seed": 5}), out=out)
    assert json.loads(RunDir(out).metrics.read_text(encoding="utf-8"))["seed"] == 5


def test_a_store_that_does_not_say_its_sources_is_refused(study, tmp_path):
    with pytest.raises(StoreError, match="has no column Metadata_SourceCell"):
        run(Config(**{**study, "translated": study["reference"]}), out=tmp_path / "run")


def test_another_reference_is_refused(study, one_target, tmp_path):
    """By its cells, too, where the translated store does not say what it was made from."""
    other = open_store(study["reference"])
    obs = other.obs.assign(Metadata_Cell="other-" + other.obs["Metadata_Cell"])
    _rewritten(tmp_path / "other.zarr", other, np.arange(len(obs)), obs=obs)
    with pytest.raises(StoreError, match=r'source cell "P3-A01-0" is not in .*other\.zarr'):
        run(one_target.model_copy(update={"reference": tmp_path / "other.zarr"}), out=tmp_path / "run")


def test_missing_inception_weights_and_classifiers_are_refused_before_torch_is_imported(study, tmp_path):
    with pytest.raises(ModelError, match=r"inception\.pth: no such weights file"):
        run(Config(**study, inception_weights=tmp_path / "inception.pth"), out=tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from cellbridge.stages.evaluate import Config, run\n"
        f"paths = { ({name: str(path) for name, path in study.items()} | {'classifier': str(tmp_path)})!r}\n"
        "try: run(Config(**paths), out=Path('nowhere'))\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["CheckpointError", "False"]


def test_a_cell_without_a_counterfactual_is_left_out_and_counted(study, tmp_path):
    truth = open_store(study["truth"])
    keep = np.flatnonzero(~truth.obs["Metadata_SourceCell"].isin(["P3-A01-0", "P3-A01-3"]).to_numpy())
    for name, rejected, expected in (
        ("unmatched", {"no_object": 2}, (0, 2)),
        ("removed", {"lost": 2}, (2, 0)),
    ):
        _rewritten(tmp_path / name, truth, keep, attributes={"rejected": rejected})
        stores = [open_store(path) for path in (study["translated"], study["reference"], tmp_path / name)]
        for comparison in compare(stores[:1], *stores[1:], split="test", n=None, seed=0):
            assert (comparison.lost, comparison.unmatched, len(comparison.sources)) == (*expected, 62)


def test_a_cell_that_the_truth_knows_under_another_condition_alone_was_removed(study, tmp_path):
    truth = open_store(study["truth"])
    gone = (truth.obs["Metadata_SourceCell"] == "P3-A01-0").to_numpy() & (truth.condition_names == "shrinker@1")
    _rewritten(tmp_path / "truth.zarr", truth, np.flatnonzero(~gone))
    stores = [open_store(path) for path in (study["translated"], study["reference"], tmp_path / "truth.zarr")]
    found = {c.target: (c.lost, c.unmatched) for c in compare(stores[:1], *stores[1:], split="test", n=None, seed=0)}
    assert found == {"shrinker@1": (1, 0), "dimmer@5": (0, 0)}


def test_held_out_words_speak_of_translated_cells_only_where_there_are_some(study):
    reference = open_store(study["reference"])
    few = np.flatnonzero((reference.condition_names == "DMSO") & (reference.obs["Metadata_Split"] == "test").to_numpy())
    rows, words = held_out(reference, ["no such condition"], split="test", generated_from=few[:4])
    assert len(rows) == 0
    assert words["no such condition"].startswith("wells that cells were translated from are left out")


def test_draws_of_real_cells_are_disjoint_and_sources_are_the_same_for_all_targets(study):
    stores = [open_store(path) for path in (study["translated"], study["reference"])]
    first, second = compare(stores[:1], stores[1], None, split="test", n=20, seed=3)
    assert (first.sources == second.sources).all()
    for comparison in (first, second):
        draws = [comparison.reference, *comparison.floor, comparison.ceiling, comparison.sources[comparison.scored]]
        together = np.concatenate(draws)
        assert len(np.unique(together)) == len(together)
        assert len({len(draw) for draw in draws}) == 1
        outputs = stores[0].obs.iloc[comparison.outputs["honest"]]
        assert list(outputs["Metadata_SourceCell"]) == list(stores[1].obs.index[comparison.sources])
        shuffled = stores[0].obs.iloc[comparison.shuffled["honest"]]
        assert list(shuffled["Metadata_SourceCell"]) == list(outputs["Metadata_SourceCell"])
        assert set(shuffled["Metadata_TargetCondition"]).isdisjoint({comparison.target})
    assert isinstance(stores[0].obs, pd.DataFrame)
