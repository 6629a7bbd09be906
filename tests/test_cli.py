import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cellbridge import cli
from cellbridge.cli import COMMANDS, main
from cellbridge.runs import publish_directory


def heavy_modules(*arguments: str) -> set[str]:
    """Run a command in a fresh interpreter and return which heavy libraries it imported."""
    code = (
        "import sys; from cellbridge.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "print('\\n', *{m.split('.')[0] for m in sys.modules} & {'torch', 'diffusers', 'anndata', 'zarr', 'skimage', 'pandas'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    assert heavy_modules("--help") == set()


def test_a_mistake_in_the_command_line_is_found_before_anything_heavy_is_imported() -> None:
    arguments = ["finetune", "--store", "absent.zarr", "--base", "absent", "--condition", "taxl", "--out", "absent"]
    assert heavy_modules(*arguments) == set()


def test_a_misspelt_command_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["translat"])
    assert stopped.value.code == 2
    assert 'there is no command "translat". Did you mean "translate"?' in capsys.readouterr().err


@pytest.mark.parametrize("command", [c.name for c in COMMANDS])
def test_every_command_has_a_page_of_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_help_of_a_command_lists_its_settings_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert heavy_modules("pretrain", "--help") == set()
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    assert "training.learning_rate = 0.001" in capsys.readouterr().out


def test_an_error_is_one_line_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--store", "absent.zarr", "--out", "absent"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cellbridge pretrain: StoreError: absent.zarr: no such store")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "message"), [("file", "is a file"), ("file/run", "is a file"), ("x" * 300, "File name too long")]
)
def test_an_impossible_place_for_a_result_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, message: str
) -> None:
    (tmp_path / "file").write_text("")
    for verb in ("pretrain", "train-classifier"):
        assert main([verb, "--store", "absent.zarr", "--out", str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


class Broken(io.StringIO):
    """A stream that nothing can be written to, over a file descriptor of its own."""

    def __init__(self, number: int, file: Path):
        super().__init__()
        self._number, self._file = number, file.open("w")

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))

    def fileno(self) -> int:
        return self._file.fileno()


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 4)])
def test_a_summary_that_nobody_reads_fails_nothing_and_one_that_finds_the_disk_full_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    with publish_directory(tmp_path / "model", manifest={"kind": "base"}):
        pass
    monkeypatch.setattr(sys, "stdout", Broken(number, tmp_path / "out"))
    assert main(["checkpoint", "verify", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert error == "" if code == 0 else "The work is done" in error


def test_each_warning_of_a_summary_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    prepare = next(command for command in COMMANDS if command.name == "prepare")
    cli._show(prepare, {"cells": 1, "warnings": ["It's odd.", "So is this."]}, as_json=False)
    assert capsys.readouterr().out == "cells: 1\nwarning: It's odd.\nwarning: So is this.\n"


def test_an_error_that_cannot_be_printed_keeps_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(errno.EIO, tmp_path / "err"))
    assert main(["pretrain", "--store", "absent.zarr", "--out", "absent"]) == 2
