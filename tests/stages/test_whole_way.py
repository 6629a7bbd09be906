"""The whole way on a very small study, through the command line, as a user goes it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest

from cellbridge.cli import main
from cellbridge.data.store import open_store
from cellbridge.runs import MANIFEST, file_sha256, verify_directory

NETWORK = ["--set", "network.widths=[16,32]", "--set", "network.attention_levels=[1]"]
TRAINING = ["--set", "training.batch_size=8", "--set", "training.steps=6", "--set", "training.checkpoint_every=3"]
TEST_PLATE = "0001053597806"
"""With a compound called `null`: names that tables love to read as a number and as nothing."""
SAMPLER = ["--set", "sampler.steps=2"]


def call(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plates to evaluation: two training plates and one test plate, few cells, a few steps of training."""
    root = tmp_path_factory.mktemp("study")
    plates = [
        "--set",
        f'plates=[P1,P2,"{TEST_PLATE}"]',
        "--set",
        "control_wells=3",
        "--set",
        "wells=[2]",
        "--set",
        "sites=2",
    ]
    fields = ["--set", "field_px=160", "--set", "cells_per_field=14", "--set", "conditions=[taxol@1,'null@5']"]
    named = ["--set", "compounds={'null': tunicamycin}"]
    call("synthesize", "--seed", 3, *plates, *fields, *named, "--out", root / "plates")
    split = ["--set", f'split={{by: plate, test: ["{TEST_PLATE}"]}}']
    call("prepare", "--manifest", root / "plates/manifest.yaml", *split, "--out", root / "store.zarr")
    truth = ["--manifest", root / "plates/truth/manifest.yaml", "--crops-from", root / "store.zarr"]
    call("prepare", *truth, "--out", root / "truth.zarr")
    call("train-classifier", "--store", root / "store.zarr", *TRAINING, "--out", root / "classifier")
    call("pretrain", "--store", root / "store.zarr", *TRAINING, *NETWORK, *SAMPLER, "--out", root / "base")
    for compound in ("taxol", "null"):
        condition = ["--base", root / "base", "--condition", compound, "--set", "adapter.rank=2"]
        call("finetune", "--store", root / "store.zarr", *condition, *TRAINING, *SAMPLER, "--out", root / compound)
    translate(root, root / "translated.zarr")
    judged = [
        "--translated",
        root / "translated.zarr",
        "--reference",
        root / "store.zarr",
        "--truth",
        root / "truth.zarr",
    ]
    call(
        "evaluate", *judged, "--classifier", root / "classifier", "--set", "resamples=100", "--out", root / "evaluation"
    )
    return root


def translate(root: Path, out: Path, *more: object) -> None:
    adapters = ["--adapter", root / "taxol", "--adapter", root / "null"]
    solver = ["--set", "solver.steps=3", "--n", 9]
    call("translate", "--store", root / "store.zarr", "--base", root / "base", *adapters, *solver, *more, "--out", out)


def test_every_model_directory_verifies(study: Path) -> None:
    for run in ("classifier", "base", "taxol", "null"):
        assert verify_directory(study / run / "model") == []


def test_every_run_says_where_it_came_from(study: Path) -> None:
    for run in ("classifier", "base", "taxol", "evaluation"):
        assert (study / run / "config.yaml").is_file()
        provenance = json.loads((study / run / "provenance.json").read_text(encoding="utf-8"))
        assert all(len(entry["sha256"]) == 64 for entry in provenance["inputs"].values())


def test_two_trainings_with_one_seed_give_identical_weights(study: Path) -> None:
    call("pretrain", "--store", study / "store.zarr", *TRAINING, *NETWORK, *SAMPLER, "--out", study / "again")
    files = [json.loads((study / run / "model" / MANIFEST).read_text())["files"] for run in ("base", "again")]
    assert files[0] == files[1]


def test_two_translations_with_one_seed_give_identical_stores(study: Path) -> None:
    translate(study, study / "twice.zarr")
    one, other = open_store(study / "translated.zarr"), open_store(study / "twice.zarr")
    rows = np.arange(one.info.n_cells)
    np.testing.assert_array_equal(one.counts(rows), other.counts(rows))


def test_a_translation_does_not_depend_on_the_batch_size(study: Path) -> None:
    translate(study, study / "small.zarr", "--set", "batch_size=2")
    one, other = open_store(study / "translated.zarr"), open_store(study / "small.zarr")
    rows = np.arange(one.info.n_cells)
    np.testing.assert_allclose(one.images(rows), other.images(rows), rtol=0, atol=2e-3)  # 1e-3 of the range [-1, 1]


def test_each_output_names_its_source_seed_and_model(study: Path) -> None:
    translated, reference = open_store(study / "translated.zarr"), open_store(study / "store.zarr")
    assert translated.info.n_cells == 2 * 9
    assert set(translated.obs["Metadata_SourceCell"]) <= set(reference.obs["Metadata_Cell"])
    assert set(translated.obs["Metadata_TargetCondition"]) == {"taxol@1", "null@5"}
    assert set(translated.obs["Metadata_Model"]) == {"ddib"}
    assert translated.obs["Metadata_Seed"].str.isdigit().all()


def test_names_that_look_like_numbers_or_nothing_stay_as_they_are(study: Path) -> None:
    obs = open_store(study / "translated.zarr").obs
    assert set(obs["Metadata_Plate"]) == {TEST_PLATE}
    assert set(obs["Metadata_Compound"]) == {"taxol", "null"}
    assert '"null@5"' in (study / "evaluation/metrics.json").read_text(encoding="utf-8")
    for form, name in (("anndata", "cells.h5ad"), ("profiles", "wells.parquet")):
        given = ["--translated", study / "translated.zarr", "--to", form]
        call("export", study / "store.zarr", *given, "--out", study / name)
    obs, wells = anndata.read_h5ad(study / "cells.h5ad").obs, pq.read_table(study / "wells.parquet").to_pandas()
    for table in (obs, wells):
        assert set(table["Metadata_Plate"]) == {"P1", "P2", TEST_PLATE}
        assert set(table["Metadata_Compound"]) == {"DMSO", "taxol", "null"}


def test_the_evaluation_has_every_null_row_at_the_same_n(study: Path) -> None:
    metrics = json.loads((study / "evaluation/metrics.json").read_text(encoding="utf-8"))
    text = json.dumps(metrics)
    for row in ("copy the control", "mean shift", "denoised copy", "shuffled", "best possible", "floor"):
        assert row in text, row
    assert "cellbridge-classifier@" in text


def test_the_same_command_again_continues_instead_of_starting_over(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (study / "base/model" / MANIFEST).read_bytes()
    events = (study / "base/events.jsonl").read_text()
    call("pretrain", "--store", study / "store.zarr", *TRAINING, *NETWORK, *SAMPLER, "--out", study / "base")
    assert (study / "base/model" / MANIFEST).read_bytes() == before
    assert events.count('"event": "logged"') == (study / "base/events.jsonl").read_text().count('"event": "logged"')


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_a_misspelt_condition_of_a_real_store_is_found_without_torch(study: Path) -> None:
    code = (
        "import sys; from cellbridge.cli import main\n"
        f"print(main(['finetune', '--store', {str(study / 'store.zarr')!r}, '--base', 'x', '--condition', 'taxl', '--out', 'x']))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'Did you mean "taxol"?' in done.stderr
    assert done.stdout.split() == ["2", "False"]


def test_an_adapter_of_another_base_is_refused_with_both_hashes(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [*TRAINING, *NETWORK, *SAMPLER, "--seed", 9, "--out", study / "other"]
    call("pretrain", "--store", study / "store.zarr", *other)
    models = ["--base", study / "other", "--adapter", study / "taxol"]
    error = refused(capsys, "translate", "--store", study / "store.zarr", *models, "--out", study / "never.zarr")
    assert error.startswith("cellbridge translate: ModelError:")
    assert "belongs to the base" in error
    assert not (study / "never.zarr").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--condition", "taxl"], 'Did you mean "taxol"?'),
        (["finetune", "--condition", "DMSO"], "is the control"),
        (["finetune", "--condition", "taxol", "--set", "lerning_rate=1"], "unknown key"),
        (["translate", "--target", "latrunculin"], "is not in the data"),
        (["translate", "--target", "taxol"], "no model of"),
        (["translate", "--adapter", "absent"], "holds no finished model"),
        (["translate", "--source", "taxol", "--target", "DMSO"], "no model of the source"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    study: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    verb, *rest = arguments
    out = study / "never"
    assert message in refused(
        capsys, verb, "--store", study / "store.zarr", "--base", study / "base", *rest, "--out", out
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("store.zarr", "is the input"),
        ("base", "is the input"),
        (".", "contains the input"),
        ("base/model/unet", "lies inside the input"),
        ("truth.zarr", "is not a store that translate made"),
        ("plates", "is not a store that translate made"),
        ("plates/manifest.yaml", "which nothing may be added to"),
        ("base/config.yaml/x.zarr", "lies inside the input"),
        ("evaluation/metrics.json", "is not a store that translate made"),
        ("evaluation/metrics.json/x.zarr", "is a file"),
    ],
)
def test_overwriting_replaces_nothing_but_a_translation(
    study: Path, capsys: pytest.CaptureFixture[str], place: str, message: str
) -> None:
    before = verify_directory(study / "store.zarr") + verify_directory(study / "base/model")
    models = ["--store", study / "store.zarr", "--base", study / "base", "--adapter", study / "taxol"]
    error = refused(capsys, "translate", *models, "--set", "overwrite=true", "--out", study / place)
    assert message in error
    assert before == verify_directory(study / "store.zarr") + verify_directory(study / "base/model") == []


def test_a_translation_can_be_replaced_by_another(study: Path) -> None:
    shutil.copytree(study / "translated.zarr", study / "replaced.zarr")
    translate(study, study / "replaced.zarr", "--set", "overwrite=true", "--target", "taxol", "--target", "taxol@1")
    assert [c.name for c in open_store(study / "replaced.zarr").info.conditions] == ["taxol@1"]


def test_a_training_adds_nothing_to_a_store_or_a_model(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("store.zarr", "store.zarr/run", "base/model"):
        for verb in ("pretrain", "train-classifier"):
            error = refused(capsys, verb, "--store", study / "store.zarr", "--out", study / out)
            assert "nothing may be added to" in error
    assert verify_directory(study / "store.zarr") + verify_directory(study / "base/model") == []


@pytest.mark.parametrize(
    "model", ["base/model/unet/diffusion_pytorch_model.safetensors", "taxol/model/adapter_model.safetensors"]
)
def test_weights_with_one_bit_changed_are_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    name, rest = model.split("/", 1)
    shutil.copytree(study / name, tmp_path / name)
    content = bytearray((tmp_path / model).read_bytes())
    content[-5] ^= 1
    (tmp_path / model).write_bytes(content)
    runs = {"base": study / "base", "taxol": study / "taxol", name: tmp_path / name}
    models = ["--store", study / "store.zarr", "--base", runs["base"], "--adapter", runs["taxol"]]
    error = refused(capsys, "translate", *models, "--out", tmp_path / "out.zarr")
    assert f"{rest}: sha256 differs" in error
    assert "restore it" in error
    assert not (tmp_path / "out.zarr").exists()


def test_a_translation_says_which_plates_its_models_have_seen_and_what_made_it(study: Path) -> None:
    attributes = open_store(study / "translated.zarr").info.attributes
    assert attributes["trained_on"] == {name: ["P1", "P2"] for name in ("base", "taxol@1", "null@5")}
    prepared = open_store(study / "store.zarr").info.attributes
    assert set(attributes["made_by"]) == {"cellbridge", "commit"}
    assert set(prepared["made_by"]) == {"cellbridge"}
    assert "commit" in json.loads((study / "store.zarr" / "provenance.json").read_text())
    assert attributes["aliases"] == prepared["aliases"]
    assert prepared["config"]["split"]["test"] == [TEST_PLATE]


def test_rows_of_a_translation_say_of_the_source_only_what_is_named_so(study: Path) -> None:
    translated, reference = open_store(study / "translated.zarr").obs, open_store(study / "store.zarr").obs
    place = {"Metadata_Cell", "Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Split"}
    place |= {"Location_Center_X", "Location_Center_Y"}
    others = set(reference.columns) - place
    about_source = {f"Metadata_Source_{name.removeprefix('Metadata_')}" for name in others if "Metadata_" in name}
    about_source |= {f"Source_{name}" for name in others if "Metadata_" not in name}
    assert about_source <= set(translated.columns)
    own = {f"Metadata_{n}" for n in ("Compound", "Concentration", "pert_type", "Origin", "Model", "Sample", "Seed")}
    own |= {f"Metadata_{n}" for n in ("SourceCell", "SourceCondition", "TargetCondition")}
    assert set(translated.columns) == place | about_source | own
    assert set(translated["Metadata_Source_Compound"]) == {"DMSO"}


def test_a_condition_of_an_adapter_can_be_the_source(study: Path) -> None:
    translate(study, study / "back.zarr", "--source", "taxol", "--target", "DMSO")
    back = open_store(study / "back.zarr")
    assert set(back.obs["Metadata_SourceCondition"]) == {"taxol@1"}
    assert [c.name for c in back.info.conditions] == ["DMSO"]
    assert back.info.attributes["trained_on"]["taxol@1"] == ["P1", "P2"]


def test_two_adapters_of_one_condition_are_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--base", study / "base", "--adapter", study / "taxol", "--adapter", study / "taxol"]
    error = refused(capsys, "translate", "--store", study / "store.zarr", *models, "--out", study / "never.zarr")
    assert "are both adapters for taxol@1" in error


def test_weights_that_training_starts_from_are_hashed_and_cannot_change(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--store", study / "store.zarr", *NETWORK, *SAMPLER, "--set", "training.steps=1", "--out", study / "onward"]
    call("pretrain", *few, "--init-from", study / "base")
    provenance = json.loads((study / "onward/provenance.json").read_text(encoding="utf-8"))
    assert provenance["inputs"]["init_from"]["sha256"] == file_sha256(Path(provenance["inputs"]["init_from"]["path"]))
    assert "init_from" in refused(capsys, "pretrain", *few, "--init-from", study / "onward")


def test_a_resume_that_is_refused_leaves_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ["--base", study / "base", "--condition", "null", "--resume", study / "taxol", "--out", study / "never"]
    error = refused(capsys, "finetune", "--store", study / "store.zarr", *other, *TRAINING, *SAMPLER)
    assert "made with other inputs" in error
    assert not (study / "never").exists()


def test_another_configuration_in_the_same_run_directory_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study / "base", study / "copied")
    changed = [*TRAINING, *NETWORK, *SAMPLER, "--set", "condition_dropout=0.2"]
    error = refused(capsys, "pretrain", "--store", study / "store.zarr", *changed, "--out", study / "copied")
    assert "condition_dropout" in error


def test_the_report_is_one_file_that_asks_for_nothing_from_outside(study: Path) -> None:
    call("report", study / "evaluation", study / "base")
    page = (study / "evaluation/report.html").read_text(encoding="utf-8")
    assert "copy the control" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_the_notebook_reads_the_run(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    path = Path(__file__).parents[2] / "analysis/read_a_run.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("CELLBRIDGE_RUN", str(study))
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
