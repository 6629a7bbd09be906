"""`fit-prior`, and what draws from it: from the command line to stores, with a model that hardly learnt."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from known_world import write_study

from cellbridge import assembly
from cellbridge.cli import main
from cellbridge.conditions import Condition
from cellbridge.config import SolverConfig
from cellbridge.data.store import open_store
from cellbridge.diffusion.noise_field import fit_field
from cellbridge.diffusion.prior import XTPrior
from cellbridge.errors import ModelError
from cellbridge.runs import RunDir, fingerprint, verify_directory
from cellbridge.runtime import derive_seed, noise_per_image

SMALL = ["training.steps=4", "training.batch_size=8", "training.learning_rate=0.05", "sampler.steps=2"]
NETWORK = ["network.widths=[8,8]", "network.attention_levels=[]"]
STEPS = ["--set", "solver.steps=2", "--device", "cpu"]
TARGET, KINDS = "shrinker@1", ("field", "bank", "flow")


def call(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a base, an adapter over it, their priors of each kind, and a few cells generated from one."""
    root = tmp_path_factory.mktemp("prior")
    store = write_study(root, per_well=3)["reference"]
    call("pretrain", "--store", store, *sets(*NETWORK, *SMALL), "--out", root / "base")
    own = ["--base", root / "base", "--condition", TARGET, *sets("adapter.rank=2", *SMALL)]
    call("finetune", "--store", store, *own, "--out", root / "adapter")
    for kind in KINDS:
        call("fit-prior", "--store", store, *models(root), "--kind", kind, *STEPS, "--out", root / kind)
    call("generate", *asked(root), "--condition", TARGET, "--n", 3, "--out", root / "cells.zarr")
    return root


def models(root: Path) -> list[object]:
    return ["--base", root / "base", "--adapter", root / "adapter"]


def asked(root: Path, kind: str = "field") -> list[object]:
    return [*models(root), "--x-T", f"prior:{root / kind}", *STEPS]


def inverted_cells(root: Path, condition: str) -> torch.Tensor:
    """Invert a condition's training cells by hand."""
    base, store = assembly.load_base(root / "base"), open_store(root / "store.zarr")
    model = assembly.load_models(base, [root / "adapter"])[Condition.parse(condition)]
    rows = store.select(split="train", conditions=[condition])
    labels = torch.full((len(rows),), model.row)
    inversion = assembly.build_inversion(SolverConfig(steps=2))
    return inversion.invert(model.denoiser, torch.from_numpy(store.images(rows)), labels, seeds=torch.zeros(len(rows)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_says_what_it_was_fitted_to_and_of_which_model_it_is(study, kind):
    card = assembly.read_prior_card(study / kind)
    assert verify_directory(study / kind / "model") == []
    assert card.prior == kind
    assert card.base_sha256 == fingerprint(study / "base")
    assert card.solver.steps == 2
    assert {name: entry.n for name, entry in card.conditions.items()} == {"DMSO": 24, TARGET: 18}
    assert {entry.plates for entry in card.conditions.values()} == {("P1", "P2")}
    assert card.conditions["DMSO"].model_sha256 == card.base_sha256
    assert card.conditions[TARGET].model_sha256 == fingerprint(study / "adapter")
    assert RunDir(study / kind).provenance.exists()


@pytest.mark.parametrize("condition", ["DMSO", TARGET])
def test_the_field_is_that_of_the_training_cells_inverted_under_their_own_model(study, condition):
    found = prior_of(study, "field", condition).tensors()
    for name, expected in fit_field(inverted_cells(study, condition)).tensors().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)


def prior_of(root: Path, kind: str, condition: str) -> XTPrior:
    base, named = assembly.load_base(root / "base"), Condition.parse(condition)
    hashes = assembly.model_hashes(base, [root / "adapter"], [named])
    return assembly.load_priors(root / kind, base=base, models=hashes)[named]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_draws_noise_of_the_condition_and_not_fresh_noise(study, kind):
    seeds = torch.arange(6)
    drawn = prior_of(study, kind, TARGET).sample(seeds, (3, 16, 16))
    assert not torch.equal(drawn, noise_per_image(seeds, (3, 16, 16), purpose="x_T"))
    assert not torch.equal(drawn, prior_of(study, kind, "DMSO").sample(seeds, (3, 16, 16)))


def test_a_generated_cell_is_what_the_model_makes_of_the_prior_s_draw_of_its_seed(study):
    store, base = open_store(study / "cells.zarr"), assembly.load_base(study / "base")
    seeds = torch.tensor([int(seed) for seed in store.obs["Metadata_Seed"]])
    noise = prior_of(study, "field", TARGET).sample(seeds, (3, 16, 16))
    denoiser, card = assembly.load_adapted(base, study / "adapter")
    labels = torch.full((3,), card.row(TARGET))
    images = assembly.build_sampler(SolverConfig(steps=2)).sample(denoiser, noise, labels, seeds=seeds)
    expected = store.intensity.forward(store.intensity.to_counts(images, ["P1"] * 3)[0], ["P1"] * 3)
    np.testing.assert_allclose(store.images(np.arange(3)), expected.numpy(), rtol=0, atol=2e-3)
    assert store.info.attributes["inputs"]["prior"] == fingerprint(study / "field")


def test_cells_of_a_prior_depend_neither_on_the_batch_size_nor_on_how_many_there_are(study, tmp_path):
    more = ["--n", 2, "--set", "batch_size=1", "--out", tmp_path / "x.zarr"]
    call("generate", *asked(study), "--condition", TARGET, *more)
    few, many = open_store(tmp_path / "x.zarr"), open_store(study / "cells.zarr")
    np.testing.assert_allclose(few.images([0, 1]), many.images([0, 1]), rtol=0, atol=2e-3)


def test_a_translation_from_a_prior_is_new_cells_of_the_target_and_keeps_no_noise(study, tmp_path):
    call("translate", "--store", study / "store.zarr", *asked(study), "--n", 4, "--out", tmp_path / "x.zarr")
    store, base = open_store(tmp_path / "x.zarr"), assembly.load_base(study / "base")
    assert store.x_T([0]) is None
    assert store.info.attributes["trained_on"][TARGET] == ["P1", "P2"]
    seeds = torch.tensor([derive_seed("translate", 0, cell) for cell in store.obs["Metadata_SourceCell"]])
    noise = prior_of(study, "field", TARGET).sample(seeds, (3, 16, 16))
    denoiser, card = assembly.load_adapted(base, study / "adapter")
    labels = torch.full((4,), card.row(TARGET))
    images = assembly.build_sampler(SolverConfig(steps=2)).sample(denoiser, noise, labels, seeds=seeds)
    plates = list(store.plates)
    expected = store.intensity.forward(store.intensity.to_counts(images, plates)[0], plates)
    np.testing.assert_allclose(store.images(np.arange(4)), expected.numpy(), rtol=0, atol=2e-3)


@pytest.fixture(scope="module")
def referred(study, tmp_path_factory):
    """A translation with the references of its x_T."""
    out = tmp_path_factory.mktemp("referred") / "cells.zarr"
    more = ["--n", 6, "--set", "x_T_references=4", "--out", out]
    call("translate", "--store", study / "store.zarr", *models(study), *STEPS, *more)
    return out


def test_references_of_x_T_lie_beside_a_translation(study, referred):
    store, cells = open_store(referred.with_name("cells_x_T.zarr")), open_store(referred)
    assert verify_directory(store.info.path) == []
    assert list(store.obs["Metadata_Reference"]) == ["double steps"] * 4 + ["generated"] * 4 + ["train"] * 4
    assert set(store.obs["Metadata_SourceCell"][:8]) <= set(cells.obs["Metadata_SourceCell"])
    assert set(store.plates[8:]) == {"P1", "P2"}
    assert set(store.condition_names) == {"DMSO"}
    assert store.info.attributes["alpha_T"] == cells.info.attributes["alpha_T"]
    assert 0 < store.info.attributes["alpha_T"] < 0.01


def test_each_reference_is_the_inversion_that_it_says(study, referred):
    store, real = open_store(referred.with_name("cells_x_T.zarr")), open_store(study / "store.zarr")
    base = assembly.load_base(study / "base")
    model = assembly.load_models(base, [])[Condition("DMSO")]
    labels, seeds = torch.full((4,), model.row), torch.zeros(4, dtype=torch.int64)
    for first, steps in ((0, 4), (8, 2)):
        cells = [real.obs.index.get_loc(cell) for cell in store.obs["Metadata_SourceCell"][first : first + 4]]
        images = torch.from_numpy(real.images(cells))
        np.testing.assert_array_equal(store.images(range(first, first + 4)), images.numpy())
        inversion = assembly.build_inversion(SolverConfig(steps=steps))
        expected = inversion.invert(model.denoiser, images, labels, seeds=seeds)
        np.testing.assert_allclose(store.x_T(range(first, first + 4)), expected.numpy(), atol=1e-4)
    again = torch.tensor([derive_seed("translate", 0, cell) for cell in store.obs["Metadata_SourceCell"][4:8]])
    noise = noise_per_image(again, (3, 16, 16), purpose="x_T")
    images = assembly.build_sampler(SolverConfig(steps=2)).sample(model.denoiser, noise, labels, seeds=again)
    inversion = assembly.build_inversion(SolverConfig(steps=2))
    expected = inversion.invert(model.denoiser, images, labels, seeds=again)
    np.testing.assert_allclose(store.x_T(range(4, 8)), expected.numpy(), atol=1e-4)
    assert not store.masks(range(4, 8)).any()


def test_a_translation_is_the_same_with_and_without_its_references(study, referred, tmp_path):
    call("translate", "--store", study / "store.zarr", *models(study), *STEPS, "--n", 6, "--out", tmp_path / "x.zarr")
    one, other = open_store(tmp_path / "x.zarr"), open_store(referred)
    np.testing.assert_array_equal(one.counts(range(6)), other.counts(range(6)))
    np.testing.assert_array_equal(one.x_T(range(6)), other.x_T(range(6)))


def test_a_prior_of_another_base_or_adapter_is_refused_with_both_hashes(study):
    base, target = assembly.load_base(study / "base"), Condition.parse(TARGET)
    with pytest.raises(ModelError, match=f"belong to the base {base.sha256}, but the base given is {'0' * 64}"):
        assembly.load_priors(study / "field", base=replace(base, sha256="0" * 64), models={})
    own = fingerprint(study / "adapter")
    with pytest.raises(ModelError, match=f"of {TARGET} belongs to the model {own}, but the one given is {'1' * 64}"):
        assembly.load_priors(study / "field", base=base, models={target: "1" * 64})


def test_an_adapter_trained_again_is_refused_until_its_prior_is_fitted_again(study, tmp_path, capsys):
    own = ["--base", study / "base", "--condition", TARGET, *sets("adapter.rank=1", *SMALL)]
    call("finetune", "--store", study / "store.zarr", *own, "--out", tmp_path / "again")
    given = ["--base", study / "base", "--adapter", tmp_path / "again", "--x-T", f"prior:{study / 'field'}", *STEPS]
    message = f"the prior of {TARGET} belongs to the model {fingerprint(study / 'adapter')}"
    for command, more in (
        ("generate", ["--condition", TARGET, "--n", 2]),
        ("translate", ["--store", study / "store.zarr"]),
    ):
        assert message in refused(capsys, command, *given, *more, "--out", tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()


def test_a_condition_without_a_prior_and_a_blend_are_refused(study, tmp_path, capsys):
    call("fit-prior", "--store", study / "store.zarr", "--base", study / "base", *STEPS, "--out", tmp_path / "control")
    prior = ["--x-T", f"prior:{tmp_path / 'control'}", *STEPS, "--n", 2, "--out", tmp_path / "x.zarr"]
    message = refused(capsys, "generate", *models(study), "--condition", TARGET, *prior)
    assert f'holds no prior of x_T for "{TARGET}". Run `cellbridge fit-prior --condition "{TARGET}"`' in message
    blend = ["--blend", f"{TARGET}:0.5", "--condition", TARGET]
    assert "is a blend. Use x_T=fresh" in refused(capsys, "generate", *models(study), *blend, *prior)


def test_a_prior_that_was_changed_is_refused(study, tmp_path, capsys):
    shutil.copytree(study / "field", tmp_path / "field")
    file = tmp_path / "field/model/prior-0.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    prior = ["--x-T", f"prior:{tmp_path / 'field'}", *STEPS, "--n", 2, "--out", tmp_path / "x.zarr"]
    assert "sha256 differs" in refused(capsys, "generate", *models(study), "--condition", TARGET, *prior)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("generate", ["--x-T", "inverted"], "new cells have no image to invert"),
        ("generate", ["--x-T", "prior:"], "expected inverted, fresh, or prior:DIR"),
        ("generate", ["--x-T", "prior:{root}/base"], "holds no priors of x_T"),
        ("generate", ["--x-T", "prior:absent"], "holds no finished model"),
        ("translate", ["--x-T", "frsh"], "expected inverted, fresh, or prior:DIR"),
        ("translate", ["--x-T", "fresh", "--set", "x_T_references=4"], "x_T_references are of inverted noise"),
        ("fit-prior", ["--kind", "fild"], "Input should be 'field', 'bank' or 'flow'"),
        ("fit-prior", ["--condition", "shrinkr@1"], 'Did you mean "shrinker@1"'),
        ("fit-prior", ["--condition", "dimmer@5"], 'no model of "dimmer@5" was given: run `cellbridge finetune'),
        ("fit-prior", ["--n", "3"], "greater than or equal to 10"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(study, tmp_path, capsys, command, arguments, message):
    given = [argument.format(root=study) for argument in arguments]
    own = ["--condition", TARGET, "--n", 2] if command == "generate" else ["--store", study / "store.zarr"]
    assert message in refused(capsys, command, *models(study), *own, *given, *STEPS, "--out", tmp_path / "x.zarr")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_taken_is_refused(study, capsys):
    asked = ["--store", study / "store.zarr", *models(study), "--out", study / "field"]
    assert "exists already" in refused(capsys, "fit-prior", *asked)


def test_a_misspelt_condition_is_found_without_torch(study):
    arguments = ["fit-prior", "--store", str(study / "store.zarr"), "--base", "b", "--condition", "DMS", "--out", "x"]
    code = f"import sys; from cellbridge.cli import main\nprint(main({arguments!r}))\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'Did you mean "DMSO"' in done.stderr
    assert done.stdout.split() == ["2", "False"]


def test_the_summary_is_strict_json(study, tmp_path, capsys):
    capsys.readouterr()
    control = ["--store", study / "store.zarr", "--base", study / "base", *STEPS, "--out", tmp_path / "x"]
    call("fit-prior", *control, "--json")
    summary = json.loads(capsys.readouterr().out)
    assert summary["cells"] == {"DMSO": 24}
    assert summary["kind"] == "field"
