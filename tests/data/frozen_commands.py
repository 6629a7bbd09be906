"""Run cellbridge commands one after the other in a process of its own, in which folders can be made read-only for whoever runs it.

Standard input: a JSON list of steps, each `["freeze", FOLDER]` or the words of a command. Standard output: a JSON list with, for each,
{"refuses": whether a file can no longer be written there} or {"code", "out", "err"}.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

_OF_ITS_OWN = ["unshare", "-rm"]
"""What gives a command mounts of its own, which other processes do not see and which end with it."""


def run_frozen(steps: Sequence[Sequence[object]]) -> list[dict[str, Any]]:
    """Run the steps, with mounts of their own where the machine allows it, and else by taking away the permission to write."""
    can_mount = _can_mount()
    command = [*(_OF_ITS_OWN if can_mount else ()), sys.executable, __file__, "mount" if can_mount else "chmod"]
    words = [[str(word) for word in step] for step in steps]
    of_this_checkout = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        command, input=json.dumps(words), stdout=subprocess.PIPE, text=True, check=True, env=of_this_checkout
    )
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def _can_mount() -> bool:
    """Try what `_freeze` does, on a folder of this module's own."""
    if shutil.which("unshare") is None:
        return False
    tried = "mount --bind . . && mount -o remount,ro,bind ."
    done = subprocess.run([*_OF_ITS_OWN, "sh", "-c", tried], cwd=Path(__file__).parent, capture_output=True)
    return done.returncode == 0


def _freeze(folder: Path, *, by: str) -> dict[str, Any]:
    if by == "mount":  # the administrator may write where permissions say no, but not where the mount does
        for options in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
            subprocess.run(["mount", *options], check=True)
    else:
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        (folder / "written").touch()
    except OSError:
        return {"refuses": True}
    os.unlink(folder / "written")
    return {"refuses": False}


def _command(words: list[str]) -> dict[str, Any]:
    from cellbridge.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answers = [_freeze(Path(step[1]), by=sys.argv[1]) if step[0] == "freeze" else _command(step) for step in asked]
    json.dump(answers, sys.stdout)
