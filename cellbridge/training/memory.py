"""Out of memory: what micro-batch would fit is found out by trying, and named in the error."""

import ctypes
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from cellbridge.errors import ResourceError, in_one_line, is_out_of_memory
from cellbridge.runtime import autocast
from cellbridge.training.slicing import count, sliced
from cellbridge.training.state import Training

_M_MMAP_THRESHOLD = -3
"""From glibc's malloc.h."""

_UNSAID = "could not create a primitive"
"""What oneDNN says where it gets no memory, among other reasons; it was that if a smaller micro-batch passes."""

ResultT = TypeVar("ResultT")


def within_memory(training: Training, work: Callable[[], ResultT]) -> ResultT:
    """Return what `work` returns; where memory runs out in it, try smaller micro-batches of the same step.

    Raises
    ------
    ResourceError : memory ran out; it says which `training.accumulation` was found to fit, and from where training continues.
    """
    try:
        return work()
    except (MemoryError, OSError, RuntimeError) as error:
        certain = is_out_of_memory(error)
        if not certain and _UNSAID not in str(error):
            raise
        cause = in_one_line(error)
        otherwise = None if certain else error.with_traceback(None)
    # Out here the frames that held the activations are gone.
    raise _failure(training, cause, otherwise)


def largest_that_fits(training: Training) -> int | None:
    """Return the most images in a micro-batch with which the step to come passes forward and backward, below those it has now.

    Each divisor of the batch that gives every process as many micro-batches is tried, from above, beside the memory that the
    rest of the step needs. The network's gradients are gone afterwards, and buffers that it updates by itself may have changed.
    """
    config, processes = training.config, training.accelerator.num_processes
    _tidy_the_heap()
    below = range(config.batch_size // config.accumulation - 1, 0, -1)
    for size in below:
        if config.batch_size % size == 0 and config.batch_size // size % processes == 0 and _fits(training, size):
            return size
    return None


def _tidy_the_heap() -> None:
    """Give freed host memory back, and let what follows be mapped apart from the heap, whose gaps no new process would have."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
        libc.malloc_trim(0)


def _fits(training: Training, size: int) -> bool:
    _release(training)
    try:
        _attempt(training, size)
    except Exception:  # whatever goes wrong so near the limit, this is no size to recommend
        return False
    finally:
        _release(training)
    return True


def _attempt(training: Training, size: int) -> None:
    room = _room_for_the_rest(training)
    batch = training.batches(training.step, training.accelerator.process_index)
    if count(batch) < size:
        raise ValueError(f"a micro-batch of {count(batch)} cannot be cut to {size}")
    for _ in range(2):  # the second finds the gradients of the first, as all but the first of a step do
        with _eager(training), autocast(training.device, training.dtype):
            loss = training.loss(training.network, sliced(batch, slice(0, size))).loss
        loss.backward()
    del room


def _eager(training: Training) -> AbstractContextManager[object]:
    """A compiled network would be compiled again for each size; eager, it needs no less memory."""
    return nullcontext() if training.config.compile == "none" else torch.compiler.set_stance("force_eager")


def _room_for_the_rest(training: Training) -> list[Tensor]:
    """Hold the memory that the optimiser's two moments and the copy for a checkpoint will take, where they have not yet."""
    fresh = [p for p in training.parameters.values() if p not in training.optimizer.state]
    copies = 0 if training.writer.holds_a_copy else 4
    moments = [torch.empty_like(p) for p in fresh for _ in range(2)]
    return moments + [torch.empty_like(p, device="cpu") for p in training.parameters.values() for _ in range(copies)]


def _release(training: Training) -> None:
    training.optimizer.zero_grad(set_to_none=True)
    if training.device.type == "cuda":
        torch.cuda.empty_cache()


def _failure(training: Training, cause: str, otherwise: BaseException | None) -> BaseException:
    """Return what to raise; `otherwise` where no smaller micro-batch shows that it was memory."""
    training.writer.settle()
    config = training.config
    micro = config.batch_size // config.accumulation
    fitting = largest_that_fits(training)
    if fitting is None and otherwise is not None:
        return otherwise
    if fitting is None:
        remedy = "" if config.gradient_checkpointing else "--set training.gradient_checkpointing=true, or "
        advice = f"No smaller one fits either: take {remedy}a smaller network or image"
    else:
        saved = training.run.saved_checkpoints()
        then = f"continues from step {saved[-1][0]}" if saved else "starts over, as no checkpoint was saved yet"
        advice = (
            f"{fitting} fit: run {training.again} with --set training.accumulation={config.batch_size // fitting}; "
            f"it {then}, and the numbers stay the same"
        )
    said = f" ({cause})" if cause else ""
    return ResourceError(
        f"out of memory at step {training.step + 1} in a micro-batch of {micro} images. {advice}.{said}"
    )
