"""The whole way on a very small study, through the command line, as a user goes it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cellbridge.cli import main
from cellbridge.data.store import open_store
from cellbridge.runs import MANIFEST, verify_directory

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
