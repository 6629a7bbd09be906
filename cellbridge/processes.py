"""Several processes of one command, as torchrun and `accelerate launch` start them: who they are, how they share work and end together.

Every process computes; only the main one (index 0) writes, publishes, prints and shows bars. What is said here of other processes
needs torch.distributed, which is imported only where there are some.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from cellbridge.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cellbridge.config import TrainingConfig

Item = TypeVar("Item")

_LOOK_EVERY_S = 0.2
_GRACE_S = 5.0
"""How long a process may take to end by itself once another has failed."""
LONGEST_WAIT = timedelta(days=1)
"""How long processes may wait for one another: for a grid of samples, the end of a write, a batch of cells. One that failed ends all
(`watched`), so that no shorter time is needed to find it out."""
_ANSWER = timedelta(seconds=30)
"""How long the launcher may take to answer."""


def count() -> int:
    """Return how many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """Return which of all processes this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def local_index() -> int:
    """Return which of this machine's processes this is, from 0."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Say whether this is the process that writes, publishes and prints."""
    return index() == 0


def shared(training: "TrainingConfig") -> "TrainingConfig":
    """Return the settings with as many micro-batches as the processes can share evenly: lcm(accumulation, processes).

    `batch_size` stays the global batch of one step, and a micro-batch grows no larger than the accumulation that was asked for makes
    it.

    Raises
    ------
    ConfigError : the batch cannot be cut into that many equal parts.
    """
    parts = math.lcm(training.accumulation, count())
    if training.batch_size % parts:
        raise ConfigError(
            f"training.batch_size {training.batch_size} cannot be cut into {parts} equal micro-batches, for {count()} processes and "
            f"training.accumulation {training.accumulation}. Set it to a multiple of {parts}, or start another number of processes."
        )
    return training.model_copy(update={"accumulation": parts})


def in_order(items: Sequence[Item], work: "Callable[[Item], tuple[Tensor, ...]]") -> "Iterator[tuple[Tensor, ...]]":
    """Share items over the processes, and yield their results in the order of the items on the main process.

    Of each round of `count()` items every process works on one, so that no process holds more than one result. The other
    processes have to run through the iterator too; for them it is empty. A result is the one that a single process
    would have computed, where `work` depends on its item alone.

    Parameters
    ----------
    items : the same in every process.
    work : item → tensors of any types and shapes on the CPU.
    """
    if count() == 1:
        yield from map(work, items)
        return
    group = _group_on_cpu()
    for first in range(0, len(items), count()):
        mine = first + index()
        result = work(items[mine]) if mine < len(items) else None
        if is_main():
            assert result is not None
            yield result
            for other in range(1, min(count(), len(items) - first)):
                yield _receive(other, group)
        elif result is not None:
            _send(result, group)


def _send(tensors: "Sequence[Tensor]", group: Any) -> None:
    import torch
    from torch import distributed

    shapes = json.dumps([[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]).encode()
    head = torch.frombuffer(bytearray(shapes), dtype=torch.uint8)
    parts = [torch.tensor([len(head)]), head, *(_bytes_of(tensor) for tensor in tensors)]
    for part in parts:
        distributed.send(part, dst=0, group=group)


def _receive(source: int, group: Any) -> "tuple[Tensor, ...]":
    import torch
    from torch import distributed

    length = torch.zeros(1, dtype=torch.int64)
    distributed.recv(length, src=source, group=group)
    head = torch.empty(int(length), dtype=torch.uint8)
    distributed.recv(head, src=source, group=group)
    received = []
    for dtype, shape in json.loads(head.numpy().tobytes()):
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        distributed.recv(_bytes_of(tensor), src=source, group=group)
        received.append(tensor)
    return tuple(received)


def _bytes_of(tensor: "Tensor") -> "Tensor":
    """Return a tensor's memory as bytes, which every backend sends, whatever the type."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


@cache
def _group_on_cpu() -> Any:
    """Return a group of all processes that exchanges tensors in host memory, beside the one that trains on devices."""
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    return distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def fail(code: int) -> tuple[int, bool]:
    """Announce that this process ends with an error, before it does.

    Returns
    -------
    The exit code of the failure that came first, for all to end with, and whether it is this one, which then has to be explained.
    """
    board = _board()
    if board is None:
        return code, True
    try:
        if board.add("failures", 1) == 1:
            board.set("code", str(code))
            return code, True
        return int(board.get("code")), False
    except RuntimeError:  # the launcher itself is gone
        return code, is_main()


def finish() -> int:
    """Announce that the main process is done, or wait until it is; return the exit code for all to end with."""
    board = _board()
    if board is None:
        return 0
    if is_main():
        board.set("done", "1")
        return 0
    while not board.check(["done"]):
        if board.check(["code"]):
            return int(board.get("code"))
        time.sleep(_LOOK_EVERY_S)
    return 0


@contextmanager
def watched() -> Iterator[None]:
    """Inside the block, end this process soon after another has failed, even where it waits for that one and would do so for ever."""
    board, ended = _board(), threading.Event()
    if board is None:
        yield
        return

    def look() -> None:
        try:
            while not board.check(["code"]):
                if ended.wait(_LOOK_EVERY_S):
                    return
            code = int(board.get("code"))
        except RuntimeError:  # the launcher itself is gone
            return
        if not ended.wait(_GRACE_S):
            os._exit(code)

    thread = threading.Thread(target=look, name="other processes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def lost_another(error: BaseException) -> str | None:
    """Return what to say of an error that only tells that another process is gone; None for any other error."""
    text = " ".join(str(error).split())
    if count() == 1 or not any(mark in text for mark in ("gloo", "Connection closed by peer", "NCCL")):
        return None
    return (
        f"another of the {count()} processes ended without a word, as the system's out-of-memory killer does, or cannot be reached. Look "
        f"at what the launcher says of it; the same command again continues from the newest checkpoint. ({text[:200]})"
    )


@cache
def _board() -> "torch.distributed.PrefixStore | None":
    """Return where processes leave each other word: in the launcher, which outlives each of them; None without one."""
    if count() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch import distributed

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_ANSWER)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return distributed.PrefixStore(f"cellbridge/{attempt}", store)
