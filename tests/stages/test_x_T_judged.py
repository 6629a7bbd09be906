"""Where x_T came from and what it is held against, from stores to the sections of an evaluation."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from known_world import HEAD, truth_images, write_classifier, write_study, write_translated

from cellbridge.data.comparison import compare
from cellbridge.data.store import open_store, write_store
from cellbridge.evaluation.arms import Sights
from cellbridge.evaluation.judges import open_judges
from cellbridge.evaluation.noise import noises_of
from cellbridge.evaluation.noise_origins import judge_origins, origin_of
from cellbridge.evaluation.noise_references import judge_x_T, x_T_section
from cellbridge.evaluation.sight import Sight
from cellbridge.evaluation.target import Draws, make_target
from cellbridge.runs import fingerprint

TARGET = "shrinker@1"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A honest translation with white x_T, its references, and cells "generated" that are the truth, or control cells."""
    folder = tmp_path_factory.mktemp("origins")
    paths = write_study(folder, per_well=16)
    truth = truth_images(paths, TARGET, origin="counterfactual")
    paths["translated"] = write_translated(folder / "translated.zarr", paths, {"honest": {TARGET: truth}})
    paths["classifier"] = write_classifier(folder / "classifier", paths)
    reference = open_store(paths["reference"])
    sources = reference.images(reference.select(split="test", conditions=["DMSO"]))
    for name, x_T, images in (("right", "prior:fitted", truth), ("wrong", "fresh", sources)):
        paths[name] = write_generated(folder / f"{name}.zarr", paths, images, x_T=x_T)
    paths["references"] = write_references(folder / "translated_x_T.zarr", paths)
    return paths


def write_generated(path, paths, images, *, x_T):
    """Write a store as `generate` does, of the plate under judgement's map."""
    reference = open_store(paths["reference"])
    counts = reference.intensity.to_counts(torch.from_numpy(images), ["P3"] * len(images))[0].numpy().astype(np.uint16)
    empty = dict.fromkeys(("Metadata_Well", "Metadata_Site", "Metadata_Split"), "")
    compound, _, dose = TARGET.partition("@")
    own = {"Metadata_Plate": "P3", "Metadata_Compound": compound, "Metadata_Concentration": dose}
    rows = [{"Metadata_Cell": f"g{i}", **own, "Metadata_pert_type": "trt", **empty} for i in range(len(images))]
    attributes = {"config": {"x_T": x_T}, "generated": {}, "inputs": {"store": fingerprint(paths["reference"])}}
    attributes |= {"prior_kind": "field"} if x_T.startswith("prior") else {}
    maps = reference.intensity.subset(["P3"])
    write_store(path, obs=pd.DataFrame(rows), counts=counts, intensity=maps, attributes=attributes, **HEAD)
    return path


def write_references(path, paths):
    """Write references of 24 test cells: twice the steps is 5 % quieter, training cells are white, generated ones 10 % quieter."""
    reference, rng = open_store(paths["reference"]), np.random.default_rng(9)
    translated = open_store(paths["translated"])
    some = reference.select(split="test", conditions=["DMSO"])[:48:2]
    at = [list(translated.obs["Metadata_SourceCell"]).index(cell) for cell in reference.obs["Metadata_Cell"].iloc[some]]
    training = reference.select(split="train", conditions=["DMSO"])[:30]
    chosen = {"double steps": some, "generated": some, "train": training}
    x_T = [0.95 * translated.x_T(at), 0.9 * rng.standard_normal((24, 3, 16, 16)), rng.standard_normal((30, 3, 16, 16))]
    tables = []
    for kind, rows in chosen.items():
        table = reference.obs.iloc[rows].reset_index(drop=True)
        table["Metadata_SourceCell"], table["Metadata_Reference"] = table["Metadata_Cell"], kind
        table["Metadata_Cell"] = table["Metadata_Cell"] + f"/{kind}"
        tables.append(table)
    every = np.concatenate(list(chosen.values()))
    write_store(
        path,
        obs=pd.concat(tables, ignore_index=True),
        counts=reference.counts(every),
        masks=reference.masks(every),
        x_T=np.concatenate(x_T).astype(np.float32),
        intensity=reference.intensity,
        **HEAD,
    )
    return path


@pytest.fixture(scope="module")
def seen(study):
    """The one target of the evaluation, and the generated stores as the judges see them."""
    reference = open_store(study["reference"])
    judges = open_judges(study["classifier"], reference, extractors=(), inception_weights=None, device="cpu")
    sights = {name: Sight(open_store(study[name]), judges) for name in ("reference", "translated", "right", "wrong")}
    translated = sights["translated"]
    comparison = compare([translated.store], reference, None, split="test", n=None, seed=0)[0]
    target = make_target(Sights(judges, sights["reference"], {"honest": translated}), comparison, Draws(100, 0))
    return target.without_images(), [sights["right"], sights["wrong"]]


@pytest.fixture(scope="module")
def noise(study, seen):
    target, _ = seen
    translated = open_store(study["translated"])
    noises = noises_of({"honest": translated}, target.comparison)
    stores = {"translated": translated, "references": open_store(study["references"])}
    return judge_x_T(noises, target.reference, target.comparison, **stores, resamples=100, seed=0)


def by_name(tests, name="variance"):
    return next(test for test in tests if test["name"] == name)


def test_the_change_by_twice_the_steps_is_of_the_same_cells(noise):
    """0.95² of the variance of those 24 cells, whatever it is."""
    found = by_name(noise["discretisation"])
    assert found["difference"]["n"] == 24
    assert found["after"] == pytest.approx(0.95**2 * found["before"], rel=1e-5)


def test_references_are_read_by_their_kind(noise):
    found = {name: by_name(entry["tests"])["effect"] for name, entry in noise["references"].items() if "tests" in entry}
    assert found["generated"] == pytest.approx(0.81, abs=0.02)
    assert found["train"] == pytest.approx(1.0, abs=0.03)
    assert noise["references"]["generated"]["n"] == 24
    assert "not_computed" in noise["references"]["diffused"]
    assert by_name(noise["misfit"])["difference"]["low"] is not None


def test_without_references_the_models_are_still_judged(study, seen):
    target, _ = seen
    translated = open_store(study["translated"])
    noises = noises_of({"honest": translated}, target.comparison)
    settings = {"translated": translated, "references": None, "resamples": 100, "seed": 0}
    found = judge_x_T(noises, target.reference, target.comparison, **settings)
    assert len(found["models"]["honest"]) == len(found["fresh"]) == 11
    assert all("not_computed" in entry for entry in found["references"].values())
    assert "not_computed" in judge_x_T({}, target.reference, target.comparison, **settings)


def test_the_section_has_a_row_for_each_noise_and_a_column_for_each_test(noise):
    section = x_T_section(noise)
    json.dumps(section, allow_nan=False)
    assert [row["key"] for row in section["rows"]] == ["honest", "fresh", "generated", "double steps", "train"]
    columns = {column["key"] for column in section["columns"]}
    assert len(columns) == 12
    assert all(set(row) - {"name", "key", "kind"} <= columns for row in section["rows"])
    assert "not_computed" in x_T_section({"not_computed": "no x_T"})


def test_origins_stand_side_by_side_and_the_right_cells_win(seen):
    target, generated = seen
    section = judge_origins([target], generated)
    json.dumps(section, allow_nan=False)
    rows = {row["key"]: row for row in section["rows"]}
    assert list(rows) == ["model:honest", "real", "generated:right.zarr", "generated:wrong.zarr"]
    right, wrong = rows["generated:right.zarr"], rows["generated:wrong.zarr"]
    assert right["name"] == f"{TARGET} · prior (field): right.zarr"
    assert wrong["name"] == f"{TARGET} · N(0, I): wrong.zarr"
    assert right["target_hit"]["value"] > wrong["target_hit"]["value"] + 0.2
    assert right["frechet"]["value"] < wrong["frechet"]["value"]
    assert right["gap_closed"]["value"] > 0.7 > wrong["gap_closed"]["value"]
    # The truth in both: the same images of the same cells, but for counts of another plate's map.
    assert rows["model:honest"]["target_hit"]["value"] == pytest.approx(right["target_hit"]["value"], abs=0.1)
    assert len({row["n_distance"]["value"] for row in rows.values()}) == 1


def test_stores_of_other_conditions_and_no_stores_are_said(seen):
    target, generated = seen
    assert "not_computed" in judge_origins([target], [])
    other = judge_origins([target], [_Empty(generated[0])])
    assert other["notes"] == [f"{TARGET}: no generated store holds cells of it."]


class _Empty:
    """A sight of a store that holds no cell of the target."""

    def __init__(self, sight):
        self.store = _NoConditions(sight.store)


class _NoConditions:
    def __init__(self, store):
        self.condition_names = np.full(store.info.n_cells, "DMSO", dtype=object)
        self.obs = store.obs


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"config": {"x_T": "fresh"}}, "N(0, I)"),
        ({"config": {"x_T": "inverted"}}, "inverted"),
        ({"config": {"x_T": "prior:a/b"}, "prior_kind": "bank"}, "prior (bank)"),
        ({"generated": {}}, "N(0, I)"),
        ({"share_clipped": 0.0}, "inverted"),
        ({}, "not known"),
    ],
)
def test_a_store_says_where_its_noise_came_from(attributes, words):
    class Info:
        pass

    Info.attributes = attributes
    assert origin_of(Info) == words
