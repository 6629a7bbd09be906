import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_training import events, until

from cellbridge.runs import RunDir
from cellbridge.training import checkpoint
from cellbridge.training.events import read


@pytest.mark.slow
def test_what_two_processes_log_after_a_resume_is_what_one_logs(tmp_path):
    logged = {e.step: e.values for e in events(tmp_path / "one") if type(e).__name__ == "Logged"}
    until(tmp_path / "two", 8)
    assert len(checkpoint.load(RunDir(tmp_path / "two").checkpoint(8)).window["losses"]) == 3
    script = Path(__file__).with_name("small_training.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), str(tmp_path / "two"), "0.0"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    again = [entry for entry in read(RunDir(tmp_path / "two").events) if entry["event"] == "logged"]
    assert [entry["step"] for entry in again] == [10, 15, 20, 24]
    for entry in again:
        for name in ("loss", "loss/low", "gradient_norm"):
            assert entry[name] == pytest.approx(logged[entry["step"]][name], rel=1e-5)
