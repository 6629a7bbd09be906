"""Several processes of one command: the numbers of one, one writer, and one end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import Ended, command, launch

from cellbridge import processes, runtime
from cellbridge.config import TrainingConfig
from cellbridge.errors import ConfigError
from cellbridge.runs import MANIFEST, RunDir, verify_directory
from cellbridge.training.events import read

FEW = ["--set", "training.batch_size=8", "--set", "training.steps=4", "--set", "training.checkpoint_every=2"]
FEW += ["--set", "training.log_every=1", "--set", "training.precision=fp32", "--device", "cpu"]
NETWORK = ["--set", "network.widths=[16,32]", "--set", "network.attention_levels=[1]", "--set", "sampler.steps=2"]


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def test_without_a_launcher_there_is_one_process_and_it_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set this alone
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (processes.count(), processes.index(), processes.is_main()) == (1, 0, True)
    assert processes.fail(3) == (3, True)
    assert processes.finish() == 0


@pytest.mark.parametrize(("asked", "cut"), [(1, 2), (2, 2), (3, 6), (4, 4)])
def test_a_batch_is_cut_into_parts_that_two_processes_share_evenly(second_of_two: None, asked: int, cut: int) -> None:
    assert processes.shared(TrainingConfig(batch_size=12, accumulation=asked)).accumulation == cut


def test_a_batch_that_cannot_be_shared_is_refused_with_what_to_set(second_of_two: None) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 9 cannot be cut into 6 equal .* Set it to a multiple of 6"):
        processes.shared(TrainingConfig(batch_size=9, accumulation=3))


def test_each_process_takes_the_device_of_its_own_number(second_of_two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.pick_device("auto") == runtime.pick_device("cuda") == torch.device("cuda:1")
    assert runtime.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="2 processes cannot share it"):
        runtime.pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 or more processes were started on a machine with 1 CUDA devices"):
        runtime.pick_device("auto")


def results_of(item: int) -> tuple[torch.Tensor, ...]:
    """Tensors of all types that are sent, one of them empty and one without a dimension."""
    time.sleep(0.02 * (item % 3))
    draw = torch.randn(item, 3, generator=torch.Generator().manual_seed(item))
    return torch.tensor([item * 1000, 65535], dtype=torch.uint16), draw, torch.tensor(item)


def print_in_order(items: int) -> None:
    for found in processes.in_order(range(items), results_of):
        print(json.dumps([tensor.tolist() for tensor in found]))


@pytest.mark.parametrize("count", [1, 3])
def test_shared_items_come_in_order_and_unchanged_to_the_main_process(count: int) -> None:
    ended = launch(print_in_order, [[7]] * count)
    expected = [[tensor.tolist() for tensor in results_of(item)] for item in range(7)]
    assert [json.loads(line) for line in ended.out[0].splitlines()] == expected
    assert ended.out[1:] == [""] * (count - 1)
    assert ended.codes == [0] * count


def fail_or_wait(code: int | None) -> None:
    processes._GRACE_S = 0.3
    with processes.watched():
        if code is None:
            time.sleep(60.0)
        raise SystemExit(processes.fail(code)[0])


def test_a_process_that_waits_for_ever_ends_with_the_code_of_the_one_that_failed() -> None:
    started = time.monotonic()
    assert launch(fail_or_wait, [[None], [4]]).codes == [4, 4]
    assert time.monotonic() - started < 30


def die_or_wait(dies: bool) -> None:
    def work(item: int) -> tuple[torch.Tensor, ...]:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return results_of(item)

    try:
        list(processes.in_order(range(4), work))
    except RuntimeError as error:
        print(processes.lost_another(error))


def test_a_killed_process_is_named_as_such_by_the_others() -> None:
    ended = launch(die_or_wait, [[False], [True]])
    assert ended.codes == [0, -signal.SIGKILL]
    assert "another of the 2 processes ended without a word" in ended.out[0]
    assert re.search(
        r"newest checkpoint\. \(.*gloo.*\)", ended.out[0]
    )  # what was said itself, in case it was something else


def call(count: int, *arguments: object, codes: int = 0) -> Ended:
    """Run the command line in `count` processes, and expect all of them to end with one code."""
    ended = launch(command, [arguments] * count)
    assert ended.codes == [codes] * count, ended.err
    return ended


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few cells of two training plates and a test plate, and a base that one process trained."""
    root = tmp_path_factory.mktemp("processes")
    wells = ["--set", "plates=[P1,P2,P3]", "--set", "control_wells=2", "--set", "wells=[1]", "--set", "sites=2"]
    fields = ["--set", "field_px=160", "--set", "cells_per_field=14", "--set", "conditions=[taxol@1]"]
    call(1, "synthesize", "--seed", 3, *wells, *fields, "--out", root / "plates")
    split = ["--set", 'split={by: plate, test: ["P3"]}']
    call(1, "prepare", "--manifest", root / "plates/manifest.yaml", *split, "--out", root / "store.zarr")
    call(1, "pretrain", "--store", root / "store.zarr", *FEW, *NETWORK, "--out", root / "pretrain-1")
    return root


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in read(RunDir(run).events) if event["event"] == "logged"]


OWN = {
    "pretrain": NETWORK,
    "finetune": ["--base", "{root}/pretrain-1", "--condition", "taxol", "--set", "adapter.rank=2", *NETWORK[-2:]],
    "train-classifier": ["--set", "balance=sampling", "--set", "training.channels_last=true"],
}


@pytest.mark.parametrize("verb", list(OWN))
def test_two_processes_train_with_the_losses_of_one(study: Path, verb: str) -> None:
    own = [text.format(root=study) for text in OWN[verb]]
    for count in (1, 2):
        if not (study / f"{verb}-{count}").exists():
            ended = call(
                count, verb, "--store", study / "store.zarr", *FEW, *own, "--json", "--out", study / f"{verb}-{count}"
            )
    np.testing.assert_allclose(losses(study / f"{verb}-2"), losses(study / f"{verb}-1"), rtol=1e-5)
    assert json.loads(ended.out[0])["model"] == str(study / f"{verb}-2/model")
    assert ended.out[1] == ""
    assert verify_directory(study / f"{verb}-2/model") == []
    assert not list((study / f"{verb}-2").rglob("*.tmp"))


@pytest.fixture(scope="module")
def adapter(study: Path) -> Path:
    own = [text.format(root=study) for text in OWN["finetune"]]
    call(1, "finetune", "--store", study / "store.zarr", *FEW, *own, "--out", study / "taxol")
    return study / "taxol"


def test_a_translation_by_three_processes_is_the_store_of_one(study: Path, adapter: Path) -> None:
    models = ["--base", study / "pretrain-1", "--adapter", adapter, "--device", "cpu"]
    cut = ["--set", "solver.steps=2", "--set", "batch_size=3", "--n", 10, "--target", "DMSO", "--target", "taxol"]
    for count in (1, 3):
        out = study / f"translated-{count}.zarr"
        call(count, "translate", "--store", study / "store.zarr", *models, *cut, "--trajectories", 4, "--out", out)
    for name in ("translated-{}.zarr", "translated-{}_trajectories.zarr"):
        one, three = (
            json.loads((study / name.format(count) / MANIFEST).read_text(encoding="utf-8")) for count in (1, 3)
        )
        for file in one["files"]:
            if file != "zarr.json" or "trajectories" not in name:  # which names its pictures
                assert one["files"][file] == three["files"][file]
    assert not list(study.glob(".translated*"))


def test_three_processes_generate_the_store_of_one(study: Path, adapter: Path) -> None:
    models = ["--base", study / "pretrain-1", "--adapter", adapter, "--device", "cpu"]
    cut = ["--set", "solver.steps=2", "--set", "batch_size=2", "--n", 5, "--condition", "DMSO", "--condition", "taxol"]
    for count in (1, 3):
        call(count, "generate", *models, *cut, "--out", study / f"generated-{count}.zarr")
    one, three = (
        json.loads((study / f"generated-{count}.zarr" / MANIFEST).read_text(encoding="utf-8")) for count in (1, 3)
    )
    assert one["files"] == three["files"]
    assert not list(study.glob(".generated*"))


def test_what_is_refused_is_said_once_and_ends_all(study: Path) -> None:
    ended = call(
        2, "pretrain", "--store", study / "store.zarr", "--set", "training.batch_size=9", "--out", study / "x", codes=2
    )
    assert len(ended.complaints) == 1
    assert "cannot be cut into 2 equal micro-batches" in ended.complaints[0]
    assert not (study / "x").exists()


def test_a_held_run_directory_ends_all_processes(study: Path, tmp_path: Path) -> None:
    from cellbridge.runs import exclusive

    with exclusive(RunDir(tmp_path)):
        ended = call(2, "pretrain", "--store", study / "store.zarr", *FEW, *NETWORK, "--out", tmp_path, codes=2)
    assert len(ended.complaints) == 1
    assert "in use by process" in ended.complaints[0]


def test_what_only_one_process_lacks_ends_all(study: Path, tmp_path: Path) -> None:
    common = [*FEW, *NETWORK, "--out", tmp_path / "run"]
    each = [["pretrain", "--store", study / name, *common] for name in ("store.zarr", "absent.zarr")]
    ended = launch(command, each)
    assert ended.codes == [2, 2]
    assert len(ended.complaints) == 1
    assert "absent.zarr: no such store" in ended.complaints[0]


def test_a_command_that_is_not_shared_is_left_to_the_main_process(study: Path) -> None:
    ended = call(2, "checkpoint", "list", study / "pretrain-1")
    assert "step-00000004" in ended.out[0]
    assert ended.out[1] == ""


@pytest.mark.slow
def test_stopped_processes_have_saved_and_one_process_continues(study: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    steady = [*FEW, *NETWORK, "--set", "training.decay=constant", "--out", run.path]
    long = ["pretrain", "--store", study / "store.zarr", *steady, "--set", "training.checkpoint_every=10000"]

    def stop(started: list) -> None:
        while not run.events.is_file() or '"logged"' not in run.events.read_text(encoding="utf-8"):
            assert all(process.is_alive() for process in started)
            time.sleep(0.05)
        for process in [*started, *started]:  # as a scheduler and then its launcher do
            process.terminate()

    ended = launch(command, [[*long, "--set", "training.steps=9000"]] * 2, meanwhile=stop)
    assert ended.codes == [143, 143]
    assert len(ended.complaints) == 1
    step = run.saved_checkpoints()[-1][0]
    assert f"stopped at step {step} of 9000; saved" in ended.complaints[0]
    call(1, *long, "--set", f"training.steps={step + 2}")
    assert [event["step"] for event in read(run.events) if event["event"] == "logged"] == list(range(1, step + 3))


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_the_launchers_train_with_the_losses_of_one_process(study: Path, launcher: str) -> None:
    few = ["--store", study / "store.zarr", *FEW, *NETWORK, "--json", "--out", study / launcher]
    line = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "cellbridge", "pretrain", *map(str, few)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["model"] == str(study / launcher / "model")
    np.testing.assert_allclose(losses(study / launcher), losses(study / "pretrain-1"), rtol=1e-5)


@pytest.mark.slow
def test_a_launcher_that_is_asked_to_stop_leaves_a_checkpoint(study: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    long = [*FEW, *NETWORK, "--set", "training.steps=9000", "--set", "training.checkpoint_every=9000"]
    line = ["-m", "cellbridge", "pretrain", "--store", study / "store.zarr", *long, "--out", run.path]
    launcher = subprocess.Popen(
        [sys.executable, "-m", *LAUNCHERS["torchrun"], *map(str, line)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not run.events.is_file() or '"logged"' not in run.events.read_text(encoding="utf-8"):
        assert launcher.poll() is None
        time.sleep(0.1)
    launcher.terminate()
    _, error = launcher.communicate(timeout=120)
    step, path = run.saved_checkpoints()[-1]
    assert error.count(f"stopped at step {step} of 9000; saved {path}") == 1
    assert verify_directory(path) == []
