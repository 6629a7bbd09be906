"""What the host learns of the device, when, and that it asks for nothing in between."""

from collections import Counter
from dataclasses import fields

import pytest
import torch
from small_cells import CELLS, SmallDenoiser, cells, denoising, source
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cellbridge.config import TrainingConfig
from cellbridge.data.dataset import BatchSource
from cellbridge.data.held import InMemory
from cellbridge.diffusion.fitting import ImportanceLoss, denoising_loss, noised_batches, variational
from cellbridge.diffusion.importance import ImportanceTimes
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.runs import RunDir
from cellbridge.training.loop import fit
from cellbridge.training.watch import EVERY, Watch

_READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "allclose", "masked_select", "unique", "_unique2")


class HostReads(TorchDispatchMode):
    """Counts what would make the host wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in _READS or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """Yield the counter, which also counts the methods of a tensor that copy it to the host."""
    counter = HostReads()
    for name in ("tolist", "item", "cpu", "numpy"):
        method = getattr(Tensor, name)

        def counted(tensor, *arguments, name=name, method=method, **options):
            counter.found[name] += 1
            return method(tensor, *arguments, **options)

        monkeypatch.setattr(Tensor, name, counted)
    with counter:
        yield counter


def test_the_counter_sees_every_way_to_read(reads):
    one = torch.ones(())
    for read in (float, bool, int, Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy, lambda t: [0][t.long() - 1]):
        before = reads.found.total()
        read(one)
        assert reads.found.total() > before
    before = reads.found.total()
    torch.ones(3)[torch.ones(3) > 0]
    assert reads.found.total() > before


@pytest.mark.parametrize("sampling", [None, torch.arange(float(CELLS))])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_host_reads_nothing_between_log_steps(tmp_path, reads, sampling, accumulation):
    diffusion, seen = denoising_loss(make_schedule("cosine", 1000), "v"), []

    def loss(network, noised):
        output = diffusion(network, noised)
        seen.append(reads.found.total())
        return output

    settings = {"steps": 50, "log_every": 50, "checkpoint_every": 50, "accumulation": accumulation}
    list(denoising(tmp_path, loss=loss, sampling=sampling, **settings))
    assert len(seen) == 50 * accumulation
    assert seen[-1] == seen[0]


def test_the_host_reads_nothing_of_a_bound_with_times_by_importance_and_averages(tmp_path, reads):
    config = TrainingConfig(
        steps=22,
        log_every=22,
        checkpoint_every=22,
        batch_size=8,
        accumulation=2,
        precision="fp32",
        power_ema={"sigma_rel": [0.1]},
    )
    held, schedule, seen = source(config, weights=torch.rand(CELLS)), make_schedule("cosine", 10), []
    times = ImportanceTimes(schedule.steps)
    options = {"objective": "hybrid", "bins": held.data.bin_edges, "learned_range": False, "min_snr_gamma": 5.0}
    bound = variational(schedule, "v", **options)

    def noted(network, noised):
        seen.append(reads.found.total())
        return bound(network, noised)

    batches = noised_batches(
        held,
        steps=schedule.steps,
        seed=0,
        condition_dropout=0.2,
        device=torch.device("cpu"),
        accumulation=2,
        times=times,
    )
    training = fit(
        SmallDenoiser(),
        ImportanceLoss(noted, times),
        batches,
        config=config,
        run=RunDir(tmp_path),
        identity={},
        device=torch.device("cpu"),
    )
    list(training)
    assert len(seen) == 44
    assert seen[-1] == seen[0]


def test_what_a_step_needs_of_the_data_lies_on_their_device():
    """A copy from pageable host memory would wait for the device, and no test on a CPU would see it."""
    held = cells()
    held.device = torch.device("meta")
    for name in ("labels", "_plate"):
        setattr(held, name, getattr(held, name).to("meta"))
    held._held = InMemory(held._held.gather(torch.arange(len(held))), device="meta")
    held._terms = held._terms.to("meta", torch.float32)
    batch = BatchSource(held, batch_size=8, accumulation=2, seed=0, augment=False)(3, 1)
    for field in fields(batch):
        assert getattr(batch, field.name).device.type == "meta", field.name
    assert held.bin_edges(batch.images, batch.rows)[0].device.type == "meta"


@pytest.mark.parametrize("bad", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [1, 10, 11, 20])
def test_what_is_not_finite_is_known_within_twenty_steps_and_for_good(bad, value, step):
    watch, known = Watch(torch.device("cpu")), []
    for k in range(1, 61):
        signs = {"loss": torch.tensor(1.0), "gradient_norm": torch.tensor(1e30)}
        if k == step:
            signs[bad] = torch.tensor(value)
        watch.note(**signs)
        if not watch.look(k).finite:
            known.append(k)
    assert step <= known[0] < step + 2 * EVERY
    assert known == [*range(known[0], 61, EVERY)]
    assert not watch.look_now().finite


def test_a_stop_is_seen_by_all_who_noted_it_and_huge_numbers_are_finite():
    watch, huge = Watch(torch.device("cpu")), torch.tensor(3e38)
    watch.note(huge, huge)
    assert (watch.look_now().finite, watch.look_now().stop) == (True, False)
    watch.note(huge, huge, stops=torch.tensor(1.0))
    assert (watch.look_now().finite, watch.look_now().stop) == (True, True)
