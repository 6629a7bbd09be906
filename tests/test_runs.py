import json
import os
from pathlib import Path

import pytest

from cellbridge.errors import CheckpointError, RunError
from cellbridge.runs import (
    MANIFEST,
    RunDir,
    discard_directory,
    exclusive,
    publish_directory,
    publish_model,
    read_manifest,
    remove_leftovers,
    verify_directory,
    write_json,
    write_text,
)


def publish(target: Path, text: str) -> None:
    with publish_directory(target, manifest={"kind": "test"}) as directory:
        (directory / "sub").mkdir()
        (directory / "sub/a.txt").write_text(text)


def test_a_directory_appears_whole_and_verifies(tmp_path: Path) -> None:
    publish(tmp_path / "model", "1")
    assert verify_directory(tmp_path / "model") == []
    assert read_manifest(tmp_path / "model")["kind"] == "test"


def test_a_failure_leaves_the_old_directory_and_no_temporary(tmp_path: Path) -> None:
    publish(tmp_path / "model", "old")
    with pytest.raises(FileNotFoundError), publish_directory(tmp_path / "model", manifest={}) as directory:
        (directory / "absent/a.txt").write_text("new")
    assert (tmp_path / "model/sub/a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_publishing_again_replaces_the_whole_directory(tmp_path: Path) -> None:
    publish(tmp_path / "model", "old")
    with publish_directory(tmp_path / "model", manifest={}) as directory:
        (directory / "b.txt").write_text("new")
    assert sorted(read_manifest(tmp_path / "model")["files"]) == ["b.txt"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda d: (d / "sub/a.txt").write_text("22"), "2 bytes"),
        (lambda d: (d / "sub/a.txt").write_text("2"), "sha256 differs"),
        (lambda d: (d / "sub/a.txt").unlink(), "missing"),
        (lambda d: (d / "more").write_text(""), "not listed"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, problem: str) -> None:
    publish(tmp_path / "model", "1")
    damage(tmp_path / "model")
    assert problem in verify_directory(tmp_path / "model")[0]


def test_a_directory_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    publish(tmp_path / "model", "1")
    (tmp_path / "model" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        verify_directory(tmp_path / "model")


@pytest.mark.parametrize("entry", [5, {}, {"bytes": "3", "sha256": ""}, {"bytes": 3}])
def test_a_manifest_whose_entries_are_none_is_no_manifest(tmp_path: Path, entry: object) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {"a": entry}}))
    with pytest.raises(CheckpointError, match="is no manifest"):
        verify_directory(tmp_path)


def test_of_a_linked_directory_the_link_is_deleted_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("linked", ".linked.1.tmp"):
        (tmp_path / name).symlink_to(kept)
    discard_directory(tmp_path / "linked")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_run_is_held_while_its_model_is_published(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with publish_model(run, manifest={}), pytest.raises(RunError, match="in use"), exclusive(run):
        pass
    assert run.require_model() == run.model


def test_json_refuses_values_that_other_readers_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_text_is_replaced_atomically(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    write_json(tmp_path / "a", {"µ": 1})
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"µ": 1}
    assert os.listdir(tmp_path) == ["a"]


def test_a_changed_file_of_a_model_is_named_with_what_to_do_and_a_new_one_does_no_harm(tmp_path: Path) -> None:
    publish(tmp_path / "model", "1")
    (tmp_path / "model/.DS_Store").write_text("")
    assert RunDir(tmp_path).require_model() == tmp_path / "model"
    (tmp_path / "model/sub/a.txt").write_text("2")
    with pytest.raises(CheckpointError, match=r"sub/a\.txt: sha256 differs.* restore it from a copy"):
        RunDir(tmp_path).require_model()


def test_a_run_directory_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), exclusive(RunDir(tmp_path / "a/b")):
        raise ValueError("refused")
    assert os.listdir(tmp_path) == []
    with exclusive(RunDir(tmp_path / "a")):
        write_text(RunDir(tmp_path / "a").config, "kept")
    with pytest.raises(ValueError, match="refused"), exclusive(RunDir(tmp_path / "a")):
        raise ValueError("refused")
    assert RunDir(tmp_path / "a").config.read_text() == "kept"
