import pytest

from cellbridge.errors import CheckpointError
from cellbridge.runs import RunDir, publish_directory
from cellbridge.stages import checkpoint
from cellbridge.stages.checkpoint import Config


@pytest.fixture
def trained(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    for step in (10, 20):
        with publish_directory(run.checkpoint(step), manifest={"kind": "checkpoint", "step": step}) as directory:
            (directory / "weights.safetensors").write_bytes(bytes(100 * step))
    with publish_directory(run.model, manifest={"kind": "base"}) as directory:
        (directory / "card.json").write_text("{}")
    return run


def test_checkpoints_and_model_are_listed_oldest_first(trained):
    listed = checkpoint.run(Config(action="list", run=trained.path))
    assert list(listed) == ["checkpoints/step-00000010", "checkpoints/step-00000020", "model"]
    assert listed["checkpoints/step-00000020"] == "checkpoint, step 20, 2000 bytes"


def test_whole_checkpoints_verify(trained):
    assert all("verified" in line for line in checkpoint.run(Config(action="verify", run=trained.path)).values())
    assert checkpoint.run(Config(action="verify", run=trained.checkpoint(10))) == {
        "step-00000010": "checkpoint, step 10, 1000 bytes, verified"
    }


def test_every_damaged_file_is_named(trained):
    (trained.checkpoint(10) / "weights.safetensors").write_bytes(b"\x01" * 1000)
    (trained.model / "card.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"step-00000010/weights\.safetensors: sha256 differs.*model/card\.json: .*missing"
    ):
        checkpoint.run(Config(action="verify", run=trained.path))


def test_a_directory_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.run(Config(action="list", run=tmp_path))
