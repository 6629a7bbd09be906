import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from small_training import batches, digest, events, loss, network, until
from torch import nn

from cellbridge.errors import (
    CheckpointError,
    ConfigError,
    ModelError,
    NumericalError,
    RunError,
    StoppedBySignal,
)
from cellbridge.runs import RunDir, verify_directory
from cellbridge.training import checkpoint, loop
from cellbridge.training.continuation import last_good
from cellbridge.training.events import Finished, Logged, SampleDue, Saved, Started, show
from cellbridge.training.loop import LossOutput
from cellbridge.training.signals import StopRequest


def digests(run) -> dict[str, str]:
    snapshot = checkpoint.load(RunDir(run).checkpoint(24))
    return {name: digest(getattr(snapshot, name)) for name in ("weights", "ema", "optimizer")}


def losses(seen) -> dict[int, tuple[float, float]]:
    return {e.step: (e.values["loss"], e.values["loss/low"]) for e in seen if isinstance(e, Logged)}


def last_weights(run, **settings) -> dict[str, torch.Tensor]:
    module = network()
    list(events(run, module=module, **settings))
    return module.state_dict()


@pytest.mark.parametrize("stop", [4, 12, 20])
def test_resumed_training_equals_the_uninterrupted_bit_for_bit(tmp_path, stop):
    whole = list(events(tmp_path / "whole"))
    until(tmp_path / "parts", stop)
    rest = list(events(tmp_path / "parts"))
    assert rest[0] == Started(stop, RunDir(tmp_path / "parts").checkpoint(stop))
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")
    assert {s: v for s, v in losses(whole).items() if s > stop} == losses(rest)


@pytest.mark.parametrize(
    "settings", [{"channels_last": True, "async_checkpoints": False}, {"precision": "bf16"}, {"weight_decay": 0.1}]
)
def test_resume_is_exact_for_convolutions_in_every_layout_and_type(tmp_path, settings):
    def module():
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            head = (nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 1))
            return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), *head)

    def images(step, micro):
        return batches(step, micro)[:, None, :, None].expand(-1, 2, -1, 6)

    def plain(net, batch):
        return LossOutput((net(batch).squeeze(1).float() - batch.mean(dim=(1, 2, 3))).square().mean())

    def train(name):
        return events(tmp_path / name, module=module(), loss=plain, batches=images, **settings)

    list(train("whole"))
    first = train("parts")
    while not isinstance(event := next(first), Saved) or event.step < 12:
        pass
    first.close()
    list(train("parts"))
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


def test_accumulation_equals_the_big_batch(tmp_path):
    def whole_batch(step, micro):
        return torch.cat([data(step, 0), data(step, 1)])

    def data(step, micro):
        return torch.randn(4, 6, generator=torch.Generator().manual_seed(2 * step + micro))

    def plain(module, batch):
        return LossOutput((module(batch).squeeze(1) - batch.sum(dim=1)).square().mean())

    def module():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 1))

    results = []
    for name, source, accumulation in (("big", whole_batch, 1), ("micro", data, 2)):
        net = module()
        list(
            events(
                tmp_path / name, module=net, loss=plain, batches=source, accumulation=accumulation, learning_rate=1e-3
            )
        )
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.allclose(results[0], results[1], atol=1e-6, rtol=0)


def test_only_trainable_parameters_change_and_are_saved(tmp_path):
    module = network()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    finished = list(events(tmp_path, module=module))[-1]
    assert isinstance(finished, Finished)
    assert set(finished.ema) == {"3.weight", "3.bias"}
    assert set(checkpoint.load(RunDir(tmp_path).checkpoint(24)).weights) == {"3.weight", "3.bias"}
    assert torch.equal(module[0].weight, before)


def test_random_state_of_the_caller_is_restored_and_has_no_influence(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = last_weights(tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)
    second = last_weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_reader_of_the_events_cannot_change_the_numbers(tmp_path):
    undisturbed, module = last_weights(tmp_path / "a", sample_every=6), network()
    for event in events(tmp_path / "b", module=module, sample_every=6):
        torch.manual_seed(0)
        if isinstance(event, SampleDue):
            module.eval()
    assert all(torch.equal(undisturbed[name], value) for name, value in module.state_dict().items())


def test_events_come_at_their_steps(tmp_path):
    seen = list(events(tmp_path, sample_every=10))
    assert [e.step for e in seen if isinstance(e, Logged)] == [5, 10, 15, 20, 24]
    assert [e.step for e in seen if isinstance(e, Saved)] == [4, 8, 12, 16, 20, 24]
    assert [e.step for e in seen if isinstance(e, SampleDue)] == [10, 20]
    values = next(e for e in seen if isinstance(e, Logged)).values
    assert {
        "loss",
        "loss/low",
        "gradient_norm",
        "learning_rate",
        "seconds_per_step",
        "data_wait",
        "checkpoint_stall",
        "memory_gib",
    } <= set(values)


def test_what_the_reader_does_at_the_start_is_no_part_of_the_first_steps(tmp_path):
    training = events(tmp_path)
    next(training)
    time.sleep(0.5)
    first = next(event for event in training if isinstance(event, Logged))
    assert first.values["seconds_per_step"] < 0.05


def test_processes_wait_for_one_another_as_long_as_it_takes(tmp_path, monkeypatch):
    """A grid of samples or a slow disk keeps the main process from the next collective for longer than the defaults allow."""
    made = []

    def making(**options):
        made.append(Accelerator(**options))
        return made[-1]

    monkeypatch.setattr(loop, "Accelerator", making)
    next(events(tmp_path))
    assert made[0].init_handler.timeout >= timedelta(hours=12)


def test_the_last_good_checkpoint_is_named_once_no_process_writes(monkeypatch):
    done = []
    monkeypatch.setattr(RunDir, "saved_checkpoints", lambda run: done.append("looked") or [(8, run.checkpoint(8))])
    training = SimpleNamespace(
        writer=SimpleNamespace(settle=lambda: done.append("settled")),
        accelerator=SimpleNamespace(wait_for_everyone=lambda: done.append("met")),
        run=RunDir(Path("run")),
    )
    assert "step-00000008" in last_good(training)
    assert done == ["settled", "met", "looked"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_summed_gradients_move_a_weight_as_its_own_do_in_every_layout(layout):
    gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    moved = []
    for several in (False, True):
        weight = nn.Parameter(torch.ones(8, 4, 3, 3).to(memory_format=layout))
        weight.grad = gradient.to(memory_format=layout)
        if several:
            training = SimpleNamespace(device=torch.device("cpu"), sum_over_processes=lambda tensor: tensor)
            loop._sum_gradients([weight], training, torch.tensor(1.0), StopRequest())
        torch.optim.AdamW([weight], lr=0.1, fused=True).step()
        moved.append(weight.detach())
    assert torch.equal(*moved)


def test_training_reduces_the_loss(tmp_path):
    seen = [
        e.values["loss"]
        for e in events(tmp_path, steps=200, log_every=50, checkpoint_every=200)
        if isinstance(e, Logged)
    ]
    assert seen[-1] < 0.5 * seen[0]


def test_settings_that_only_log_or_save_may_change_on_a_resume(tmp_path):
    list(events(tmp_path / "whole"))
    until(tmp_path / "parts", 8)
    list(events(tmp_path / "parts", log_every=2, checkpoint_every=24, keep_last=1))
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues(tmp_path, signal_number):
    list(events(tmp_path / "whole"))

    def interrupting(step, micro):
        if step == 9 and micro == 1:
            os.kill(os.getpid(), signal_number)
        return batches(step, micro)

    before = signal.getsignal(signal_number)
    with pytest.raises(StoppedBySignal, match="stopped at step 10 of 24") as stopped:
        list(events(tmp_path / "parts", batches=interrupting))
    assert stopped.value.exit_code == 128 + signal_number
    assert signal.getsignal(signal_number) == before
    started, *_ = events(tmp_path / "parts")
    assert started.step == 10
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")


def test_what_was_stopped_after_a_named_checkpoint_is_not_said_to_continue_from_there(tmp_path):
    until(tmp_path / "first", 8)

    def interrupting(step, micro):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(step, micro)

    named = RunDir(tmp_path / "first").checkpoint(8)
    with pytest.raises(StoppedBySignal, match="Run the same command without --resume to continue"):
        list(events(tmp_path / "second", batches=interrupting, resume=named))
    assert next(events(tmp_path / "second")).step == 10


def test_a_second_process_is_refused(tmp_path):
    first = events(tmp_path)
    next(first)
    with pytest.raises(RunError, match="in use by process"):
        next(events(tmp_path))
    first.close()
    assert isinstance(next(events(tmp_path)), Started)


def test_training_works_outside_the_main_thread(tmp_path):
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(events(tmp_path)))
    thread.start()
    thread.join()
    assert isinstance(seen[-1], Finished)


@pytest.mark.parametrize("every", [1, 7, 100])
def test_divergence_is_reported_within_twenty_steps_and_never_saved(tmp_path, every):
    asked = []

    def counted(step, micro):
        asked.append(step)
        return batches(step, micro)

    run = RunDir(tmp_path)
    rates = {"learning_rate": 1e20, "warmup_steps": 0, "steps": 100}
    training = events(tmp_path, batches=counted, log_every=every, checkpoint_every=every, **rates)
    text = r"(loss|gradient|weights) not finite (at|after) step \d+ \(learning rate 1e\+20\)\. .*[Cc]heckpoint"
    with pytest.raises(NumericalError, match=text) as error:
        show(training, run=run, description="diverging", total=100, images_per_step=8)
    assert error.value.exit_code == 3
    assert max(asked) < 20
    for _, path in run.saved_checkpoints():
        snapshot = checkpoint.load(path)
        assert all(torch.isfinite(t).all() for name in checkpoint.TENSORS for t in getattr(snapshot, name).values())
    for line in run.events.read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_the_first_bad_step_is_named_with_the_last_good_checkpoint(tmp_path, kind):
    calls = []

    def poisoned(module, batch):
        calls.append(1)
        output = loss(module, batch)
        bad = len(calls) == 2 * 10
        if bad and kind == "gradient":
            output.loss.register_hook(lambda gradient: gradient * float("nan"))
        return LossOutput(output.loss * float("nan") if bad and kind == "loss" else output.loss)

    with pytest.raises(NumericalError, match=rf"{kind} not finite at step 10 .*step-00000008"):
        list(events(tmp_path, loss=poisoned, log_every=100, checkpoint_every=8))
    assert len(calls) <= 2 * (10 + 20)
    for _, path in RunDir(tmp_path).saved_checkpoints():
        snapshot = checkpoint.load(path)
        assert all(torch.isfinite(t).all() for t in (*snapshot.weights.values(), *snapshot.ema.values()))


def test_frozen_network_and_overlong_checkpoint_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no parameter that requires a gradient"):
        list(events(tmp_path, module=network().requires_grad_(False)))
    list(events(tmp_path, decay="constant"))
    with pytest.raises(ConfigError, match=r"past training\.steps 12"):
        list(events(tmp_path, decay="constant", steps=12))


def test_constant_rate_can_be_extended(tmp_path):
    list(events(tmp_path, decay="constant", steps=12))
    started, *_ = events(tmp_path, decay="constant")
    assert started.step == 12


def test_changed_inputs_are_refused_with_the_difference(tmp_path):
    until(tmp_path, 8)
    with pytest.raises(RunError, match=r"data: aaaaaaaaaaaa… there, bbbbbbbbbbbb… now"):
        list(events(tmp_path, identity={"data": "b" * 64}))
    with pytest.raises(RunError, match=r"learning_rate: 0\.01 there, 0\.02 now\)\. .*--accept-changes"):
        list(events(tmp_path, learning_rate=0.02))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        list(events(tmp_path, module=nn.Sequential(nn.Linear(6, 1))))
    with pytest.raises(RunError, match=r"now\)\. Restore them, or give another --out: its weights do not fit"):
        list(events(tmp_path, module=nn.Sequential(nn.Linear(6, 1)), learning_rate=0.02))


def test_changed_inputs_are_accepted_when_asked_for_with_a_warning_each(tmp_path):
    until(tmp_path, 8)
    other = {"identity": {"data": "b" * 64}, "learning_rate": 0.02}
    started, *_, finished = events(tmp_path, accept_changes=True, **other)
    assert (started.step, finished.step) == (8, 24)
    data, rate = started.warnings
    assert "step-00000008: was made with other inputs and is continued all the same (data: aaaaaaaaaaaa… there" in data
    assert "(learning_rate: 0.01 there, 0.02 now)" in rate
    assert next(events(tmp_path, **other)).warnings == ()
    with pytest.raises(CheckpointError, match="does not fit the network"):
        list(events(tmp_path, module=nn.Sequential(nn.Linear(6, 1)), accept_changes=True, **other))


def test_finished_run_is_finished_at_once(tmp_path):
    first = list(events(tmp_path))[-1]
    again = list(events(tmp_path))
    assert [type(e) for e in again] == [Started, Finished]
    assert all(torch.equal(first.ema[name], again[-1].ema[name]) for name in first.ema)
    assert verify_directory(RunDir(tmp_path).checkpoint(24)) == []


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    list(events(tmp_path / "one"))
    script = Path(__file__).with_name("small_training.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launcher, str(script), str(tmp_path / "two"), "0.0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    one, two = (checkpoint.load(RunDir(tmp_path / name).checkpoint(24)) for name in ("one", "two"))
    assert all(torch.allclose(one.weights[name], two.weights[name], atol=1e-6) for name in one.weights)
    assert all(torch.allclose(one.ema[name], two.ema[name], atol=1e-6) for name in one.ema)
