"""Running out of memory: the command's change that the error names does fit, and continues."""

import errno
import multiprocessing
import re
import resource
from pathlib import Path

import pytest
import torch
from small_cells import SmallDenoiser, denoising
from torch import Tensor, nn

from cellbridge.config import TrainingConfig
from cellbridge.diffusion.fitting import denoising_loss
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ResourceError, is_out_of_memory
from cellbridge.runs import RunDir
from cellbridge.training import memory
from cellbridge.training.loop import LossOutput, fit

diffusion = denoising_loss(make_schedule("cosine", 1000), "v")


@pytest.fixture
def no_tidying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the heap as it is: tidying it changes how this process allocates, and slows whatever it tests afterwards."""
    monkeypatch.setattr(memory, "_tidy_the_heap", lambda: None)


def hungry(
    most: int,
    *,
    from_call: int = 1,
    error: type[Exception] = torch.OutOfMemoryError,
    text: str = "can't allocate memory: you tried to allocate 12345678 bytes",
):
    """Return a loss that has memory for `most` images, from a call on."""
    calls = []

    def loss(network, noised):
        calls.append(1)
        if len(noised.batch.images) > most and len(calls) >= from_call:
            raise error(text)
        return diffusion(network, noised)

    return loss


@pytest.mark.usefixtures("no_tidying")
@pytest.mark.parametrize(("most", "accumulation"), [(12, 2), (11, 3), (7, 4), (1, 24)])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_the_largest_micro_batch_that_fits_is_found(tmp_path, most, accumulation, error):
    text = rf"step 1 in a micro-batch of 24 images\. .* --set training\.accumulation={accumulation}; it starts over"
    with pytest.raises(ResourceError, match=text) as failure:
        list(denoising(tmp_path, batch_size=24, loss=hungry(most, error=error)))
    assert failure.value.exit_code == 4
    assert RunDir(tmp_path).saved_checkpoints() == []


@pytest.mark.usefixtures("no_tidying")
def test_following_the_advice_continues_to_the_same_weights(tmp_path):
    weights = SmallDenoiser()
    list(denoising(tmp_path / "roomy", module=weights))
    with pytest.raises(
        ResourceError, match=r"at step 10 .*4 fit: .*accumulation=2; it continues from step 6"
    ) as failure:
        list(denoising(tmp_path / "tight", loss=hungry(4, from_call=10)))
    found = re.search(r"training\.accumulation=(\d+)", str(failure.value))
    assert found is not None
    module = SmallDenoiser()
    started, *_ = denoising(tmp_path / "tight", module=module, loss=hungry(4), accumulation=int(found[1]))
    assert started.step == 6
    torch.testing.assert_close(module.state_dict(), weights.state_dict(), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("no_tidying")
def test_an_error_that_does_not_say_memory_is_one_of_memory_only_where_less_passes(tmp_path):
    text = "could not create a primitive"
    with pytest.raises(ResourceError, match=rf"4 fit: .*accumulation=2.*{text}"):
        list(denoising(tmp_path / "less", loss=hungry(4, error=RuntimeError, text=text)))
    with pytest.raises(RuntimeError, match=rf"^{text}$"):
        list(denoising(tmp_path / "none", loss=hungry(0, error=RuntimeError, text=text)))


@pytest.mark.usefixtures("no_tidying")
@pytest.mark.parametrize("recomputing", [False, True])
def test_where_nothing_fits_it_says_so(tmp_path, recomputing):
    class Recomputing(SmallDenoiser):
        def enable_gradient_checkpointing(self) -> None:
            pass

        def disable_gradient_checkpointing(self) -> None:
            pass

    with pytest.raises(ResourceError, match="No smaller one fits either: take") as failure:
        list(denoising(tmp_path, module=Recomputing(), loss=hungry(0), gradient_checkpointing=recomputing))
    assert ("--set training.gradient_checkpointing=true" in str(failure.value)) is not recomputing


def test_other_errors_pass_unchanged(tmp_path):
    def broken(network, noised):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(denoising(tmp_path, loss=broken))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("expected scalar type Float"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_no_memory_are_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected


def _deep(run: Path, accumulation: int):
    """Return a training of 24 images a step, each of which keeps 20 MiB for the backward pass."""

    def loss(network: nn.Module, images: Tensor) -> LossOutput:
        return LossOutput(network(images).square().mean())

    layers = [layer for _ in range(10) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())]
    config = TrainingConfig(
        steps=6, batch_size=24, accumulation=accumulation, checkpoint_every=2, log_every=2, precision="fp32"
    )
    return fit(
        nn.Sequential(*layers),
        loss,
        lambda step, micro: torch.ones(24 // accumulation, 16, 128, 128),
        config=config,
        run=RunDir(run),
        identity={},
        device=torch.device("cpu"),
    )


def _limited(run: Path, accumulation: int, answer: Path) -> None:
    """Train in 420 MiB more than this process has, and write down the last step, or the error.

    24 images at once need 480 MiB, 12 need 240; a thread that starts may reserve 128 MiB of addresses, which count here.
    """
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 420 * 2**20,) * 2)
    try:
        answer.write_text(str(list(_deep(run, accumulation))[-1].step))
    except ResourceError as error:
        answer.write_text(str(error))


def in_little_memory(directory: Path, accumulation: int) -> str:
    answer = directory / "answer"
    arguments = (directory / "run", accumulation, answer)
    process = multiprocessing.get_context("fork").Process(target=_limited, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return answer.read_text()


@pytest.mark.slow
def test_the_advice_holds_where_memory_really_ends(tmp_path):
    said = in_little_memory(tmp_path, 1)
    found = re.search(r"micro-batch of 24 images\. \d+ fit: .*training\.accumulation=(\d+);.*allocate", said)
    assert found, said
    assert in_little_memory(tmp_path, int(found[1])) == "6"
