"""Compounds that a base was not trained on, asked for by name or by SMILES, through `generate` and `translate`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from known_world import write_study

from cellbridge.conditions import Condition, resolve_or_read
from cellbridge.data.store import open_store
from cellbridge.errors import ConditionError, ConfigError, ModelError
from cellbridge.settings import load
from cellbridge.stages import generate, pretrain, translate

SMALL = ["network.widths=[8,8]", "network.attention_levels=[]", "training.batch_size=8", "training.steps=2"]
READING = ["network.conditioning.scheme=late", "network.conditioning.compound=fingerprint", "conditions=[shrinker@1]"]
SMILES = {"DMSO": "CS(C)=O", "shrinker": "CCO"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and bases that read names, SMILES and nothing."""
    root = tmp_path_factory.mktemp("unseen")
    store = f"store={write_study(root, per_well=2)['reference']}"
    table = [f"network.conditioning.smiles.{name}={text}" for name, text in SMILES.items()]
    for name, own in {
        "names": READING,
        "smiles": [*READING, *table, "network.conditioning.text=smiles"],
        "deaf": [],
        "doses": ["network.conditioning.scheme=one_hot", "conditions=[shrinker@1]"],
    }.items():
        settings = [store, *SMALL, "sampler.steps=2", "training.learning_rate=0.05", *own]
        pretrain.run(load(pretrain.Config, overrides=settings), out=root / name)
    return root


def generated(study: Path, out: Path, *settings: str, base: str = "names") -> torch.Tensor:
    given = [f"base={study / base}", "n=2", "solver.steps=2", "device=cpu", "shared_noise=true", *settings]
    generate.run(load(generate.Config, overrides=given), out=out)
    cells = open_store(out)
    return torch.from_numpy(cells.images(range(cells.info.n_cells)))


def test_a_compound_is_generated_by_its_name_alone_and_another_name_gives_other_cells(study, tmp_path):
    images = generated(study, tmp_path / "out.zarr", "conditions=[colchicine@3,vinblastine@3]", "unseen=true")
    cells = open_store(tmp_path / "out.zarr")
    assert [condition.name for condition in cells.info.conditions] == ["colchicine@3", "vinblastine@3"]
    assert not torch.equal(images[:2], images[2:])


def test_a_compound_is_generated_by_its_smiles(study, tmp_path):
    asked = ["conditions=[colchicine@3]", "unseen=true"]
    found = [
        generated(study, tmp_path / name, *asked, f"smiles.colchicine={text}", base="smiles")
        for name, text in (("one.zarr", "COC1=CC2=C(C=C1)"), ("other.zarr", "c1ccncc1"))
    ]
    assert not torch.equal(*found)
    with pytest.raises(ConfigError, match='no entry for the compound "colchicine"'):
        generated(study, tmp_path / "none.zarr", *asked, base="smiles")
    with pytest.raises(ModelError, match=r'was trained on CCO for "shrinker", not CCN'):
        generated(study, tmp_path / "none.zarr", *asked, "smiles.shrinker=CCN", base="smiles")
    assert not (tmp_path / "none.zarr").exists()


def test_a_network_that_is_told_doses_is_asked_for_another_dose_of_a_compound_it_knows(study, tmp_path):
    asked = ["conditions=[shrinker@1,shrinker@3,SHRINKER@30]", "unseen=true"]
    images = generated(study, tmp_path / "out.zarr", *asked, base="doses")
    known, three, thirty = images.split(2)
    assert not torch.equal(known, three)
    assert not torch.equal(three, thirty)
    assert [c.name for c in open_store(tmp_path / "out.zarr").info.conditions][-1] == "shrinker@30"
    for unknown in ("colchicine@3", "DMSO@-1"):
        with pytest.raises(ConditionError):
            generated(study, tmp_path / "none.zarr", f"conditions=[{unknown}]", "unseen=true", base="doses")
    assert not (tmp_path / "none.zarr").exists()


def test_cells_are_translated_to_a_compound_that_the_store_does_not_hold(study, tmp_path):
    given: list[Any] = [f"store={study / 'store.zarr'}", f"base={study / 'names'}", "n=2", "solver.steps=2"]
    given += ["device=cpu", "targets=[colchicine@3]", "unseen=true"]
    translate.run(load(translate.Config, overrides=given), out=tmp_path / "out.zarr")
    assert set(open_store(tmp_path / "out.zarr").obs["Metadata_TargetCondition"]) == {"colchicine@3"}


def test_what_is_not_asked_for_as_unseen_is_a_slip_of_the_pen_and_a_base_that_reads_nothing_says_so(study, tmp_path):
    with pytest.raises(ConditionError, match=r'Did you mean "shrinker'):
        generated(study, tmp_path / "out.zarr", "conditions=[shrinkr@1]")
    with pytest.raises(ConditionError, match=r'no model of "colchicine@3" was given'):
        generated(study, tmp_path / "out.zarr", "conditions=[colchicine@3]", "unseen=true", base="deaf")
    with pytest.raises(ModelError, match="the base reads no SMILES"):
        generated(study, tmp_path / "out.zarr", "conditions=[DMSO]", "smiles.DMSO=C")
    assert not (tmp_path / "out.zarr").exists()


def test_a_known_condition_stays_itself_and_an_ambiguous_one_ambiguous():
    known = [Condition("taxol", 1.0), Condition("taxol", 10.0), Condition("DMSO")]
    assert resolve_or_read("TAXOL@1", known, unseen=True) == known[0]
    assert resolve_or_read("taxol@3", known, unseen=True) == Condition("taxol", 3.0)
    assert resolve_or_read("colchicine", known, unseen=True) == Condition("colchicine")
    for text, unseen in (("taxol", True), ("taxol@3", False), ("colchicine", False)):
        with pytest.raises(ConditionError):
            resolve_or_read(text, known, unseen=unseen)
