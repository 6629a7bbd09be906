"""`generate`: fresh cells of conditions, of blends of adapters and of a joint model, from the command line to the store."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from known_world import HEAD, write_study

from cellbridge import assembly
from cellbridge.adapters.doses import dose_shares
from cellbridge.cli import main
from cellbridge.conditions import Condition
from cellbridge.config import SolverConfig
from cellbridge.data.store import open_store, write_store
from cellbridge.errors import ConditionError
from cellbridge.runs import verify_directory
from cellbridge.runtime import noise_per_image

TRAINING = ["training.steps=4", "training.batch_size=8", "training.learning_rate=0.05", "sampler.steps=2"]
NETWORK = ["network.widths=[8,8]", "network.attention_levels=[]"]
STEPS = ["--set", "solver.steps=2", "--device", "cpu"]
LOW, HIGH = "shrinker@1", "shrinker@10"


def call(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def two_doses(folder: Path) -> Path:
    """Write the small study with one compound at two doses in place of two compounds."""
    known = open_store(write_study(folder, per_well=2)["reference"])
    rows = np.arange(known.info.n_cells)
    obs = known.obs.reset_index(drop=True)
    obs.loc[obs["Metadata_Compound"] == "dimmer", ["Metadata_Compound", "Metadata_Concentration"]] = ["shrinker", "10"]
    path = folder / "doses.zarr"
    write_store(path, obs=obs, counts=known.counts(rows), intensity=known.intensity, **HEAD)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a base of the control and a joint one, adapters of two doses over the first, and what was generated of them."""
    root = tmp_path_factory.mktemp("generate")
    store = two_doses(root)
    for name, conditions in (("base", "control"), ("joint", "all")):
        chosen = sets(f"conditions={conditions}", *NETWORK, *TRAINING)
        call("pretrain", "--store", store, *chosen, "--out", root / name)
    for name, condition in (("low", LOW), ("high", HIGH)):
        own = ["--base", root / "base", "--condition", condition, *sets("adapter.rank=2", *TRAINING)]
        call("finetune", "--store", store, *own, "--out", root / name)
    generate(root, "cells.zarr", "--condition", LOW, "--condition", "DMSO", "--condition", HIGH, "--n", 5)
    return root


def adapters(root: Path) -> list[object]:
    return ["--base", root / "base", "--adapter", root / "low", "--adapter", root / "high", *STEPS]


def generate(root: Path, out: str, *more: object, models: list[object] | None = None) -> None:
    call("generate", *(models or adapters(root)), *more, "--out", root / out)


def counts(path: Path, condition: str | None = None) -> np.ndarray:
    store = open_store(path)
    return store.counts(store.select(conditions=None if condition is None else [condition]))


def test_the_store_says_of_each_cell_its_condition_model_and_seed_and_of_no_source(study):
    store = open_store(study / "cells.zarr")
    assert verify_directory(study / "cells.zarr") == []
    assert list(store.condition_names) == [LOW] * 5 + ["DMSO"] * 5 + [HIGH] * 5
    assert list(store.obs["Metadata_TargetCondition"]) == list(store.condition_names)
    assert list(store.obs["Metadata_Model"]) == ["adapter"] * 5 + ["base"] * 5 + ["adapter"] * 5
    assert set(store.obs["Metadata_Origin"]) == {"generated"}
    assert set(store.obs["Metadata_pert_type"]) == {"trt", "negcon"}
    assert store.obs["Metadata_Seed"].nunique() == 15
    assert not [column for column in store.obs if "Source" in column]
    assert store.info.attributes["trained_on"] == {name: ["P1", "P2"] for name in ("base", LOW, "DMSO", HIGH)}


def test_counts_are_in_the_units_of_the_first_plate_that_the_base_was_trained_on(study):
    store, reference = open_store(study / "cells.zarr"), open_store(study / "doses.zarr")
    assert set(store.plates) == {"P1"}
    assert store.intensity.to_dict() == reference.intensity.subset(["P1"]).to_dict()


def test_a_picture_lies_beside_the_store_and_nothing_else(study):
    assert (study / "cells.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(study.glob(".cells*"))


@pytest.mark.parametrize(("condition", "run"), [(LOW, "low"), (HIGH, "high")])
def test_a_cell_is_what_the_merged_adapter_makes_of_the_noise_of_its_seed(study, condition, run):
    base, store = assembly.load_base(study / "base"), open_store(study / "cells.zarr")
    rows = store.select(conditions=[condition])
    seeds = torch.tensor([int(seed) for seed in store.obs["Metadata_Seed"].iloc[rows]])
    denoiser, card = assembly.load_adapted(base, study / run)
    labels = torch.full((len(seeds),), card.row(condition))
    noise = noise_per_image(seeds, (3, 16, 16), purpose="x_T")
    images = assembly.build_sampler(SolverConfig(steps=2)).sample(denoiser, noise, labels, seeds=seeds)
    expected = store.intensity.forward(store.intensity.to_counts(images, ["P1"] * 5)[0], ["P1"] * 5)
    np.testing.assert_allclose(store.images(rows), expected.numpy(), rtol=0, atol=2e-3)


def test_cells_depend_neither_on_the_batch_size_nor_on_how_many_there_are(study):
    generate(study, "few.zarr", "--condition", LOW, "--condition", HIGH, "--n", 3, "--set", "batch_size=2")
    one, few = open_store(study / "cells.zarr"), open_store(study / "few.zarr")
    assert set(few.obs["Metadata_Cell"]) < set(one.obs["Metadata_Cell"])
    rows = [one.obs.index.get_loc(cell) for cell in few.obs.index]
    np.testing.assert_allclose(one.images(rows), few.images(np.arange(6)), rtol=0, atol=2e-3)  # 1e-3 of [-1, 1]


def test_adapters_are_swapped_once_per_condition(study, tmp_path, monkeypatch):
    used, switch = [], assembly.switch
    monkeypatch.setattr(assembly, "switch", lambda *a, **k: used.append(a[1].name) or switch(*a, **k))
    asked = ["--condition", LOW, "--condition", "DMSO", "--condition", HIGH, "--n", 5, "--set", "batch_size=2"]
    call("generate", *adapters(study), *asked, "--out", tmp_path / "x.zarr")
    assert used == [LOW, "DMSO", HIGH]


def test_shared_noise_starts_all_conditions_alike(study):
    asked = ["--condition", LOW, "--condition", HIGH, "--n", 2, "--set", "shared_noise=true"]
    generate(study, "shared.zarr", *asked)
    seeds = list(open_store(study / "shared.zarr").obs["Metadata_Seed"])
    assert seeds[:2] == seeds[2:]
    assert seeds[0] != seeds[1]
    low, high = (counts(study / "shared.zarr", condition) for condition in (LOW, HIGH))
    assert (low != high).mean() > 0.5


def test_a_blend_with_all_the_weight_on_one_adapter_is_that_adapter(study, tmp_path):
    asked = ["--condition", LOW, "--n", 5, "--blend", f"{LOW}:1,{HIGH}:0", "--out", tmp_path / "x.zarr"]
    call("generate", *adapters(study), *asked)
    np.testing.assert_array_equal(counts(tmp_path / "x.zarr"), counts(study / "cells.zarr", LOW))


def test_a_dose_between_two_is_blended_by_its_logarithm(study, tmp_path):
    share = math.log(10 / 2) / math.log(10 / 1)
    blends = {"named": f"{LOW}:{share!r},{HIGH}:{1 - share!r}", "doses": "doses"}
    series = {"named": [], "doses": ["--condition", "DMSO", "--condition", LOW]}
    for name, blend in blends.items():
        asked = ["--condition", "shrinker@2", *series[name], "--n", 3, "--blend", blend]
        call("generate", *adapters(study), *asked, "--out", tmp_path / f"{name}.zarr")
    np.testing.assert_array_equal(counts(tmp_path / "named.zarr"), counts(tmp_path / "doses.zarr", "shrinker@2"))
    store = open_store(tmp_path / "doses.zarr")
    assert list(store.obs["Metadata_Model"].unique()) == [
        "blend shrinker@1:0.69897, shrinker@10:0.30103",
        "base",
        "adapter",
    ]
    assert store.info.attributes["trained_on"]["shrinker@2"] == ["P1", "P2"]


def test_a_dose_that_has_an_adapter_is_no_blend_however_it_is_written(study, tmp_path):
    generate(study, str(tmp_path / "own.zarr"), "--condition", "Shrinker 1 uM", "--n", 5, "--blend", "doses")
    assert set(open_store(tmp_path / "own.zarr").obs["Metadata_Model"]) == {"adapter"}
    assert np.array_equal(counts(tmp_path / "own.zarr"), counts(study / "cells.zarr", LOW))


def test_a_condition_that_only_an_adapter_knows_is_translated_to_by_name(study, tmp_path):
    """The store holds the compound at another dose, as the plate of a new experiment may."""
    given = ["--store", study / "store.zarr", "--target", HIGH, "--n", 2, "--out", tmp_path / "to.zarr"]
    call("translate", *adapters(study), *given)
    assert set(open_store(tmp_path / "to.zarr").condition_names) == {HIGH}


def test_a_network_that_reads_doses_is_told_the_dose_that_a_blend_is_for(study, tmp_path):
    told = ["network.conditioning.scheme=one_hot", "conditions=all", *NETWORK, *TRAINING]
    call("pretrain", "--store", study / "doses.zarr", *sets(*told), "--out", tmp_path / "base")
    own = ["--base", tmp_path / "base", "--condition", LOW, *sets("adapter.rank=2", *TRAINING)]
    call("finetune", "--store", study / "doses.zarr", *own, "--out", tmp_path / "low")
    models = ["--base", tmp_path / "base", "--adapter", tmp_path / "low", "--set", "shared_noise=true", *STEPS]
    for dose in ("1", "1.0", "5"):
        asked = ["--condition", f"shrinker@{dose}", "--n", 2, "--blend", f"{LOW}:1"]
        call("generate", *models, *asked, "--out", tmp_path / f"{dose}-um.zarr")
    one, again, five = (counts(tmp_path / f"{dose}-um.zarr") for dose in ("1", "1.0", "5"))
    np.testing.assert_array_equal(one, again)
    assert (one != five).any()


def test_a_scale_of_zero_is_the_control(study, tmp_path):
    base = assembly.load_base(study / "base")
    attached = assembly.attach_adapters(base, [study / "low"])
    condition = Condition.parse(LOW)
    model = assembly.switch(attached, condition, shares={condition: 0.0})
    x_t, t = torch.randn(2, 3, 16, 16), torch.full((2,), 400.0)
    own = base.denoiser()(x_t, t, torch.full((2,), assembly.CONTROL_ROW))
    assert torch.equal(model.denoiser(x_t, t, torch.full((2,), model.row)), own)


def test_shares_of_doses_add_up_and_are_halves_at_the_geometric_mean():
    assert dose_shares(math.sqrt(10), [100, 1, 10, 0.01]) == pytest.approx({1: 0.5, 10: 0.5})
    assert dose_shares(10, [1, 10]) == {10: 1.0}
    for dose, known in ((0.5, [1, 10]), (20, [1, 10]), (1, [2]), (1, []), (0.5, [0, 1]), (None, [1, 2])):
        with pytest.raises(ConditionError):
            dose_shares(dose, known)


def test_a_joint_model_generates_translates_and_carries_an_adapter(study):
    joint = ["--base", study / "joint", *STEPS]
    generate(study, "joint.zarr", "--condition", LOW, "--condition", HIGH, "--n", 3, models=joint)
    store = open_store(study / "joint.zarr")
    assert set(store.obs["Metadata_Model"]) == {"base"}
    assert not np.array_equal(counts(study / "joint.zarr", LOW), counts(study / "joint.zarr", HIGH))
    call("translate", "--store", study / "doses.zarr", *joint, "--n", 3, "--out", study / "by-joint.zarr")
    assert [c.name for c in open_store(study / "by-joint.zarr").info.conditions] == [LOW, HIGH]
    own = ["--base", study / "joint", "--condition", LOW, *sets("adapter.rank=2", *TRAINING)]
    call("finetune", "--store", study / "doses.zarr", *own, "--out", study / "over-joint")
    with_adapter = [*joint, "--adapter", study / "over-joint"]
    generate(study, "over.zarr", "--condition", LOW, "--condition", HIGH, "--n", 3, models=with_adapter)
    assert list(open_store(study / "over.zarr").obs["Metadata_Model"]) == ["adapter"] * 3 + ["base"] * 3
    assert not np.array_equal(counts(study / "over.zarr", LOW), counts(study / "joint.zarr", LOW))
    np.testing.assert_array_equal(counts(study / "over.zarr", HIGH), counts(study / "joint.zarr", HIGH))


def test_a_condition_that_is_named_twice_has_one_row(study, tmp_path):
    named = sets(f"conditions=[{LOW},{LOW.upper()},{HIGH},{LOW}]", *NETWORK, *TRAINING[1:], "training.steps=1")
    call("pretrain", "--store", study / "doses.zarr", *named, "--out", tmp_path / "base")
    card = json.loads((tmp_path / "base/model/cellbridge.json").read_text(encoding="utf-8"))
    assert card["conditions"] == ["", "DMSO", LOW, HIGH, "<adapter>"]


def test_a_generated_store_can_be_replaced_by_another_but_no_other_store(study, tmp_path, capsys):
    out = tmp_path / "x.zarr"
    for n in (1, 2):
        asked = ["--condition", LOW, "--n", n, "--set", "overwrite=true", "--out", out]
        call("generate", *adapters(study), *asked)
    assert open_store(out).info.n_cells == 2
    asked = ["--condition", LOW, "--n", 1, "--set", "overwrite=true", "--out", study / "store.zarr"]
    assert "is not a store that generate made" in refused(capsys, *adapters(study), *asked)
    assert verify_directory(study / "store.zarr") == []


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["generate", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--condition", "shrinkr@1"], 'Did you mean "shrinker@1"'),
        (["--condition", "shrinker"], 'the data holds "shrinker@1", "shrinker@10". Name one of them'),
        (["--condition", LOW, "--n", "0"], "\"n\" = '0': Input should be greater than 0"),
        (["--condition", LOW, "--n", "-3"], "\"n\" = '-3'"),
        ([], '"conditions" is required'),
        (["--condition", LOW, "--plate", "P9"], 'plate "P9" is not in the store'),
        (["--condition", LOW, "--store", "absent.zarr"], "no such store"),
        (["--condition", LOW, "--blend", f"{LOW}=0.3"], "expected doses, or adapters with their shares"),
        (["--condition", LOW, "--blend", "shrinkr@1:0.3"], 'Did you mean "shrinker@1"'),
        (["--condition", "x", "--blend", f"{LOW}:0.3,{LOW}:0.7"], "names an adapter twice"),
        (["--condition", "x", "--blend", f"{LOW}:0.3,{LOW.title()}:0.7"], "names an adapter twice"),
        (["--condition", "", "--blend", f"{LOW}:0.3"], "names no compound"),
        (
            ["--condition", LOW, *sets("solver.guidance_scale=2", "solver.guidance_interval=[2000,3000]")],
            "of which there are 1000",
        ),
        (
            ["--condition", LOW, *sets("solver.guidance_scale=2", "solver.guidance_interval=[0.2,0.9]")],
            "guides nothing",
        ),
        (["--condition", LOW, "--condition", HIGH, "--blend", f"{LOW}:1"], "name it by one condition"),
        (
            ["--condition", "shrinker@20", "--blend", "doses"],
            "does not lie between two doses that have an adapter (1, 10)",
        ),
        (["--condition", "shrinker", "--blend", "doses"], "needs a dose to blend for"),
        (["--condition", LOW, "--adapter", "{root}/low"], f"are both adapters for {LOW}"),
        (["--condition", LOW, "--adapter", "{root}/base"], "a model of kind 'base', expected 'adapter'"),
        (["--condition", LOW, "--adapter", "absent"], "holds no finished model"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(study, tmp_path, capsys, arguments, message):
    given = [argument.format(root=study) for argument in arguments]
    n = [] if "--n" in given else ["--n", 2]
    assert message in refused(capsys, *adapters(study), *n, *given, "--out", tmp_path / "x.zarr")
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_base_and_a_condition_without_a_model_are_refused(study, tmp_path, capsys):
    end = ["--n", 2, *STEPS, "--out", tmp_path / "x.zarr"]
    models = ["--base", study / "joint", "--adapter", study / "low"]
    assert "belongs to the base" in refused(capsys, *models, "--condition", LOW, *end)
    assert "cellbridge finetune" in refused(capsys, "--base", study / "base", "--condition", LOW, *end)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["cells.zarr", "fresh.zarr"])
def test_names_that_are_taken_are_refused(study, capsys, taken):
    (study / "fresh.png").write_bytes(b"mine")
    asked = ["--condition", LOW, "--n", 1, "--out", study / taken]
    assert "exists already" in refused(capsys, *adapters(study), *asked)
    assert (study / "fresh.png").read_bytes() == b"mine"


def test_the_store_of_the_base_has_to_be_there_or_another_to_be_given(study, tmp_path, capsys):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model").symlink_to(study / "base/model")
    asked = ["--base", tmp_path / "base", *STEPS, "--condition", "DMSO", "--n", 1]
    assert "Give --store" in refused(capsys, *asked, "--out", tmp_path / "x.zarr")
    provenance = json.loads((study / "base/provenance.json").read_text(encoding="utf-8"))
    provenance["inputs"]["store"]["sha256"] = "0" * 64
    (tmp_path / "base/provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    assert "no longer the store that" in refused(capsys, *asked, "--out", tmp_path / "x.zarr")
    call("generate", *asked, "--store", study / "doses.zarr", "--plate", "P3", "--out", tmp_path / "x.zarr")
    assert set(open_store(tmp_path / "x.zarr").plates) == {"P3"}


def test_a_misspelt_condition_is_found_without_torch(study):
    code = (
        "import sys; from cellbridge.cli import main\n"
        f"print(main(['generate', '--base', {str(study / 'base')!r}, '--condition', 'DMS', '--n', '1', '--out', 'x']))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'Did you mean "DMSO"' in done.stderr
    assert done.stdout.split() == ["2", "False"]
