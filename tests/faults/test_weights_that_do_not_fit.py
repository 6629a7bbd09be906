"""Weights with a key too few or too many, or bound to another base: refused by name.

Every manifest is signed again, so that only a look at the keys can find the fault.
"""

import hashlib
import shutil
from pathlib import Path

import pytest
from commands import Run, one_line
from evidence import checkpoint, sign_again
from safetensors.torch import load_file, save_file
from small_study import Study

_UNET = "unet/diffusion_pytorch_model.safetensors"


def change_keys(file: Path, change: str) -> str:
    """Take the first tensor out of a safetensors file, or put another one in; return its name."""
    tensors = load_file(file)
    first = min(tensors)
    name = first if change == "missing" else "intruder.weight"
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[first].clone()
    save_file(tensors, file)
    return name


def changed_copy(run: Path, place: Path, weights: str, change: str) -> tuple[Path, str]:
    """Copy a run with a model whose weights have a key too few or too many; return it and the key."""
    shutil.copytree(run, place)
    name = change_keys(place / "model" / weights, change)
    sign_again(place / "model")
    return place, name


@pytest.mark.parametrize("change", ["missing", "extra"])
@pytest.mark.parametrize("verb", ["finetune", "translate", "pretrain --init-from"])
def test_a_base_with_other_keys_is_refused_by_name(
    study: Study, run: Run, tmp_path: Path, verb: str, change: str
) -> None:
    """Row 35."""
    base, key = changed_copy(study.base, tmp_path / "base", _UNET, change)
    commands = {
        "finetune": study.with_base(base).finetune("training.steps=2"),
        "translate": [*study.translate(), "--base", base],
        "pretrain --init-from": [*study.pretrain("training.steps=2"), "--init-from", base],
    }
    one_line(run(*commands[verb], "--out", tmp_path / "out"), key, "diffusion_pytorch_model.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["missing", "extra"])
@pytest.mark.parametrize("verb", ["translate", "finetune --init-from"])
def test_an_adapter_with_other_keys_is_refused_by_name(
    study: Study, run: Run, tmp_path: Path, verb: str, change: str
) -> None:
    """Row 35."""
    adapter, key = changed_copy(study.adapter, tmp_path / "adapter", "adapter_model.safetensors", change)
    commands = {
        "translate": [*study.translate(), "--base", study.base, "--adapter", adapter],
        "finetune --init-from": [*study.finetune("training.steps=2"), "--init-from", adapter],
    }
    one_line(run(*commands[verb], "--out", tmp_path / "out"), key, "adapter_model.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["missing", "extra"])
@pytest.mark.parametrize("verb", ["evaluate", "train-classifier --init-from"])
def test_a_classifier_with_other_keys_is_refused_by_name(
    study: Study, translated: Path, run: Run, tmp_path: Path, verb: str, change: str
) -> None:
    """Row 35."""
    classifier, key = changed_copy(study.classifier, tmp_path / "classifier", "classifier.safetensors", change)
    judged = ["--translated", translated, "--reference", study.store]
    commands = {
        "evaluate": ["evaluate", *judged, "--classifier", classifier],
        "train-classifier --init-from": [*study.train_classifier("training.steps=2"), "--init-from", classifier],
    }
    one_line(run(*commands[verb], "--out", tmp_path / "out"), key, "classifier.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["missing", "extra"])
@pytest.mark.parametrize("part", ["weights", "ema", "optimizer"])
def test_a_checkpoint_with_other_keys_is_refused_by_name(
    study: Study, run: Run, tmp_path: Path, part: str, change: str
) -> None:
    """Row 35."""
    out = tmp_path / "base"
    shutil.copytree(study.base, out)
    newest = checkpoint(out, 2)
    key = change_keys(newest / f"{part}.safetensors", change)
    sign_again(newest)
    one_line(run(*study.pretrain("training.steps=2"), "--out", out), key, f"{newest}/{part}.safetensors")


@pytest.mark.parametrize("verb", ["translate", "finetune --init-from"])
def test_an_adapter_of_another_base_is_refused_with_both_hashes(
    study: Study, run: Run, tmp_path: Path, verb: str
) -> None:
    """Row 35."""
    outcome = run(*study.pretrain("training.steps=1", "training.seed=1"), "--out", tmp_path / "other")
    assert outcome.code == 0, outcome
    another = study.with_base(tmp_path / "other")
    commands = {
        "translate": [*study.translate(), "--base", another.base, "--adapter", study.adapter],
        "finetune --init-from": [*another.finetune("training.steps=2"), "--init-from", study.adapter],
    }
    manifests = [(base / "model/manifest.json").read_bytes() for base in (study.base, another.base)]
    hashes = [hashlib.sha256(manifest).hexdigest() for manifest in manifests]
    one_line(run(*commands[verb], "--out", tmp_path / "out"), *hashes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "train_classifier"])
def test_weights_to_start_from_that_are_absent_unfinished_or_of_another_kind_are_said_to_be_so(
    study: Study, run: Run, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "unfinished/checkpoints").mkdir(parents=True)
    other = study.classifier if verb == "pretrain" else study.base
    places = {tmp_path / "absent": "no such directory", tmp_path / "unfinished": "no finished model", other: "of kind"}
    for place, message in places.items():
        command = getattr(study, verb)("training.steps=2")
        one_line(run(*command, "--init-from", place, "--out", tmp_path / "out"), message)
        assert not (tmp_path / "out").exists()
