"""Files that would run code, and keys that nobody knows: refused before anything happens."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Run, one_line
from evidence import sign_again
from small_study import Study, settings

_UNET = "unet/diffusion_pytorch_model.safetensors"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path):
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._canary}'",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def write_pickle(path: Path, canary: Path, *, torch_format: bool = False) -> Path:
    payload = {"state_dict": Payload(canary)}
    if torch_format:
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    return path


def test_the_payload_works(tmp_path: Path, canary: Path) -> None:
    """Without this, an absent canary would prove nothing."""
    pickle.loads(write_pickle(tmp_path / "evil.pt", canary).read_bytes())  # noqa: S301
    assert canary.exists()
    canary.unlink()
    torch.load(write_pickle(tmp_path / "evil.pt", canary, torch_format=True), weights_only=False)
    assert canary.exists()


def commands_that_take(study: Study, out: Path) -> dict[str, list[object]]:
    """Return, by option, a command that ends with it; the path follows."""
    few, end = ("training.steps=2",), ["--out", out]
    judged = ["--translated", study.store, "--reference", study.store]
    finetune = study.finetune(*few)
    return {
        "pretrain --init-from": [*study.pretrain(*few), *end, "--init-from"],
        "finetune --init-from": [*finetune, *end, "--init-from"],
        "train-classifier --init-from": [*study.train_classifier(*few), *end, "--init-from"],
        "pretrain --resume": [*study.pretrain(*few), *end, "--resume"],
        "finetune --base": [*finetune, *end, "--base"],
        "translate --base": [*study.translate(), *end, "--base"],
        "translate --adapter": [*study.translate(), "--base", study.base, *end, "--adapter"],
        "evaluate --classifier": ["evaluate", *judged, *end, "--classifier"],
    }


_OPTIONS = list(commands_that_take(Study(Path()), Path()))


@pytest.mark.parametrize(
    ("option", "name"),
    [*((option, "evil.pt") for option in _OPTIONS), ("pretrain --init-from", "evil.safetensors")],
)
def test_a_pickle_is_refused_and_not_opened(
    study: Study, run: Run, tmp_path: Path, canary: Path, option: str, name: str
) -> None:
    """Row 25."""
    evil = write_pickle(tmp_path / name, canary, torch_format=name.endswith(".pt"))
    one_line(run(*commands_that_take(study, tmp_path / "out")[option], evil), name)
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["evil.pt", "evil.safetensors"])
def test_a_pickle_of_inception_weights_is_refused_and_its_code_is_not_run(
    study: Study, translated: Path, run: Run, tmp_path: Path, canary: Path, name: str
) -> None:
    """Row 25: a state dict of others may be a pickle, of which tensors alone are read."""
    evil = write_pickle(tmp_path / name, canary, torch_format=name.endswith(".pt"))
    judged = ["--translated", translated, "--reference", study.store]
    given = ["--classifier", study.classifier, "--inception-weights", evil]
    one_line(run("evaluate", *judged, *given, "--out", tmp_path / "out"), name)
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "model", "weights", "fallback"),
    [
        ("pretrain --init-from", "base", _UNET, "unet/diffusion_pytorch_model.bin"),
        ("finetune --base", "base", _UNET, "unet/diffusion_pytorch_model.bin"),
        ("translate --adapter", "adapter", "adapter_model.safetensors", "adapter_model.bin"),
        ("train-classifier --init-from", "classifier", "classifier.safetensors", "classifier.pt"),
    ],
)
@pytest.mark.parametrize("instead", ["renamed", "fallback"])
def test_a_pickle_inside_a_signed_model_is_refused_and_not_opened(
    study: Study,
    run: Run,
    tmp_path: Path,
    canary: Path,
    option: str,
    model: str,
    weights: str,
    fallback: str,
    instead: str,
) -> None:
    """Row 25: in place of the weights, and beside them under the name that the library beneath falls back to."""
    copied = tmp_path / model
    shutil.copytree(getattr(study, model), copied)
    (copied / "model" / weights).unlink()
    place = copied / "model" / (weights if instead == "renamed" else fallback)
    write_pickle(place, canary, torch_format=instead == "fallback")
    sign_again(copied / "model")
    one_line(run(*commands_that_take(study, tmp_path / "out")[option], copied), Path(weights).name)
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tag", ['!!python/object/apply:os.system ["touch {}"]', "!!python/name:os.system"])
@pytest.mark.parametrize("where", ["file", "--set"])
def test_yaml_that_names_python_objects_is_refused(
    study: Study, run: Run, tmp_path: Path, canary: Path, tag: str, where: str
) -> None:
    """Row 27."""
    text = tag.format(canary)
    config = tmp_path / "config.yaml"
    config.write_text(f"training:\n  steps: {text}\n")
    given = ["--config", config] if where == "file" else settings(f"training.steps={text}")
    out = ["--out", tmp_path / "out"]
    one_line(run("pretrain", "--store", study.store, *given, *out), "python" if where == "--set" else "not plain YAML")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["file", "--set"])
def test_an_unknown_key_gets_the_nearest_one(study: Study, run: Run, tmp_path: Path, where: str) -> None:
    """Row 27."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"training": {"lerning_rate": 0.1}}))
    given = ["--config", config] if where == "file" else settings("training.lerning_rate=0.1")
    outcome = run("pretrain", "--store", study.store, *given, "--out", tmp_path / "out")
    one_line(outcome, 'unknown key "training.lerning_rate"', 'Did you mean "learning_rate"?')
    assert not (tmp_path / "out").exists()
