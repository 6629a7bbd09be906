"""Checkpoints written beside training, which waits for a copy of its state in memory and for nothing else."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch import Tensor

from cellbridge.errors import is_out_of_memory
from cellbridge.runs import RunDir
from cellbridge.training import checkpoint as checkpoints
from cellbridge.training.checkpoint import TENSORS, Snapshot
from cellbridge.training.events import Saved


class CheckpointWriter:
    """Publishes checkpoints in order, one at a time.

    One background thread writes, syncs, renames, verifies and applies retention. It works on a copy, in buffers that are used
    again for each checkpoint: as much host memory as weights, average and optimiser take (page-locked for an accelerator's
    tensors, so that the copy waits for nothing but the bus).

    Parameters
    ----------
    keep_last : how many checkpoints stay.
    beside : write in the background; otherwise, and from when there is no memory for the copy, `begin` returns when the checkpoint
        is published, and copies nothing.
    """

    def __init__(self, run: RunDir, *, keep_last: int, beside: bool):
        self._run = run
        self._keep_last = keep_last
        self._thread = ThreadPoolExecutor(1, "checkpoint") if beside else None
        if self._thread is not None:
            # What a thread takes of the address space is to be taken before the first step.
            self._thread.submit(bytearray, 1 << 16)
        self._write: Future[Path] | None = None
        self._step = 0
        self._buffers: dict[str, Tensor] = {}

    @property
    def holds_a_copy(self) -> bool:
        """Whether the memory that the copy needs is taken already, or never will be."""
        return self._thread is None or bool(self._buffers)

    def begin(self, snapshot: Snapshot) -> None:
        """Start to write a snapshot, whose tensors may change once this returns; `collect` must have waited for the one before."""
        assert self._write is None
        self._step = snapshot.step
        if self._thread is not None:
            try:
                self._write = self._thread.submit(self._publish, *self._copy(snapshot))
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.close()  # from here on without a copy, while training waits
        self._write = Future()
        self._write.set_result(checkpoints.save(self._run, snapshot, keep_last=self._keep_last))

    def collect(self, *, waiting: bool) -> Saved | None:
        """Return the checkpoint that was published since the last call, if there is one.

        Parameters
        ----------
        waiting : wait for the write in progress; otherwise there is nothing to return until it has ended.

        Raises
        ------
        CheckpointError : what was written does not read back; the earlier checkpoints stay.
        ResourceError : the disk is full; the earlier checkpoints stay and no temporary file does.
        """
        if self._write is None or not (waiting or self._write.done()):
            return None
        write, self._write = self._write, None
        return Saved(self._step, write.result())

    def settle(self) -> None:
        """Wait until nothing is being written; a failure is kept for `collect`."""
        if self._write is not None:
            wait([self._write])

    def close(self) -> None:
        """Wait for the write in progress and end the thread; to be called before the run directory is given up."""
        if self._thread is not None:
            self._thread.shutdown()
        self._thread = None
        self._buffers.clear()

    def _publish(self, snapshot: Snapshot, ready: torch.cuda.Event | None) -> Path:
        if ready is not None:
            ready.synchronize()
        return checkpoints.save(self._run, snapshot, keep_last=self._keep_last)

    def _copy(self, snapshot: Snapshot) -> tuple[Snapshot, torch.cuda.Event | None]:
        """Copy every tensor to host memory, and return the event after which the copies are whole.

        Later work on the accelerator is queued behind the copies, so that not even they have to be waited for here.
        """
        tensors = {kind: self._held(kind, getattr(snapshot, kind)) for kind in TENSORS}
        copied = Snapshot(step=snapshot.step, settings=snapshot.settings, identity=snapshot.identity, **tensors)
        device = next((tensor.device for tensor in snapshot.weights.values() if tensor.is_cuda), None)
        if device is None:
            return copied, None
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))
        return copied, ready

    def _held(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._host_copy(f"{kind}/{name}", tensor.detach()) for name, tensor in tensors.items()}

    def _host_copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=tensor.is_cuda)
