"""SIGKILL in the middle of fetching, and the same command again: whole files only, none of it fetched in vain."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_server import Fault, faulty_server
from small_set import noise, partials, visible, write_manifest

KILLS = 5


@pytest.mark.slow
def test_five_kills_leave_whole_files_only_and_the_next_run_ends_the_work(tmp_path: Path) -> None:
    lot = random.Random(0)
    with faulty_server() as server:
        server.files = {f"plate/f{n}.tif": noise(400_000, seed=n) for n in range(12)}
        server.always = {name: Fault(pause_s=0.15, piece=40_000) for name in server.files}
        files = [
            {"path": name, "sha256": hashlib.sha256(content).hexdigest()} for name, content in server.files.items()
        ]
        manifest = write_manifest(tmp_path / "set", {"url": server.url, "files": files})
        root = manifest.parent / "data"
        command = [sys.executable, "-m", "cellbridge", "fetch", str(manifest), "--set", "workers=3", "--json"]
        kept = 0
        for _ in range(KILLS):
            requests = len(server.log)
            process = subprocess.Popen(
                command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            waited = time.monotonic()
            while not any(method == "GET" for method, _, _ in server.log[requests:]):
                assert process.poll() is None, "ended before it was killed"
                assert time.monotonic() - waited < 300
                time.sleep(0.02)
            time.sleep(0.1 + 0.9 * lot.random())
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            found = visible(root)
            assert all(content == server.files[name] for name, content in found.items())
            assert sum(map(len, found.values())) + sum(partials(root)) >= kept
            kept = sum(map(len, found.values()))
        server.always.clear()
        resumed = len(server.log)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert visible(root) == server.files
        assert any(
            wanted is not None for method, _, wanted in server.log if method == "GET"
        )  # something was gone on with
        assert partials(root) == []
        asked = {name for method, name, _ in server.log[resumed:] if method == "GET"}
        assert asked <= set(server.files) - set(found)
