"""A loss that remembers: what it draws its times by is in the checkpoint, and a resumed training is the one that never stopped."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_cells import SmallDenoiser, denoising, source
from small_training import digest

from cellbridge.config import TrainingConfig
from cellbridge.diffusion.fitting import ImportanceLoss, noised_batches, variational
from cellbridge.diffusion.importance import ImportanceTimes
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import CheckpointError
from cellbridge.runs import RunDir
from cellbridge.training import throughput
from cellbridge.training.events import Event, Finished
from cellbridge.training.loop import fit

STEPS_T = 10
"""So few times that each has its ten losses, and importance begins, while a small test runs."""


def training(run: Path, *, steps: int = 40, accumulation: int = 1, schedule_steps: int = STEPS_T, **options):
    config = TrainingConfig(
        steps=steps,
        batch_size=8,
        accumulation=accumulation,
        log_every=10,
        checkpoint_every=20,
        keep_last=5,
        precision="fp32",
        decay="constant",
    )
    cells, schedule = source(config), make_schedule("cosine", schedule_steps)
    times = ImportanceTimes(schedule.steps)
    loss = variational(schedule, "v", objective="vlb", bins=cells.data.bin_edges, learned_range=False)
    batches = noised_batches(
        cells,
        steps=schedule.steps,
        seed=0,
        condition_dropout=0.1,
        device=torch.device("cpu"),
        accumulation=accumulation,
        times=times,
    )
    return fit(
        SmallDenoiser(),
        ImportanceLoss(loss, times),
        batches,
        config=config,
        run=RunDir(run),
        identity={"schedule.steps": str(schedule_steps)} if options else {},
        device=torch.device("cpu"),
        **options,
    )


def finish(events) -> Event:
    *_, last = events
    assert isinstance(last, Finished)
    return last


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    finish(training(run))
    return run


def remembered(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(RunDir(run).checkpoint(step) / "method.safetensors")


def test_the_checkpoint_holds_ten_losses_of_every_time(whole):
    found = remembered(whole, 40)
    assert found["losses"].shape == (STEPS_T, 10)
    assert found["counts"].sum() == 40 * 8
    assert (found["counts"] >= 10).all()
    counts = found["counts"].double()
    assert counts.max() > 1.5 * counts.min()  # by then times are drawn by importance


def test_a_resumed_training_is_the_one_that_never_stopped(whole, tmp_path):
    finish(training(tmp_path, steps=20))
    finish(training(tmp_path, steps=40))
    for name in ("weights", "ema", "optimizer", "method"):
        files = [load_file(RunDir(run).checkpoint(40) / f"{name}.safetensors") for run in (whole, tmp_path)]
        assert digest(files[0]) == digest(files[1]), name


def test_accumulation_changes_rounding_alone(whole, tmp_path):
    finish(training(tmp_path, steps=20, accumulation=2))
    one, two = remembered(whole, 20), remembered(tmp_path, 20)
    assert torch.equal(one["counts"], two["counts"])
    assert torch.allclose(one["losses"], two["losses"], rtol=1e-3)


def test_a_loss_that_remembers_nothing_writes_no_file(tmp_path):
    finish(denoising(tmp_path, steps=6))
    assert not (RunDir(tmp_path).checkpoint(6) / "method.safetensors").exists()


def test_memories_of_another_schedule_are_refused(tmp_path):
    finish(training(tmp_path, steps=20))
    with pytest.raises(
        CheckpointError, match=r'method.safetensors: "losses" has shape \(10, 10\), the network has \(20, 10\)'
    ):
        finish(training(tmp_path, steps=40, schedule_steps=20))


def test_with_another_schedule_memory_begins_anew_where_that_is_asked_for(tmp_path):
    finish(training(tmp_path, steps=20))
    finish(training(tmp_path, steps=40, schedule_steps=20, accept_changes=True))
    assert remembered(tmp_path, 40)["counts"].sum() == 20 * 8


def test_losses_that_are_computed_twice_are_remembered_once(whole, tmp_path, monkeypatch):
    """As they are on a device whose peak is known, to count what a step computes."""
    monkeypatch.setattr(throughput, "device_peak", lambda device, dtype: 1e9)
    finish(training(tmp_path, steps=20))
    finish(training(tmp_path, steps=40))
    assert digest(remembered(whole, 40)) == digest(remembered(tmp_path, 40))
