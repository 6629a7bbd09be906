"""A look inside a few training steps: a trace for TensorBoard or Perfetto, and a table of what took the time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from cellbridge.errors import ResourceError
from cellbridge.runs import write_text

_WAIT, _WARMUP, _ACTIVE = 10, 2, 3
"""Steps before tracing (caches, compilation), steps traced and thrown away, and steps kept."""
_ROWS = 60


class Profiler:
    """Traces three steps of a training, once it runs steadily; opened by `profiling`."""

    def __init__(self, directory: Path, device: torch.device, *, step: int, steps: int):
        self._directory, self._device, self._step = directory, device, step
        self._written: Path | None = None
        left = steps - step
        warmup = min(_WARMUP, left - 1)
        active = min(_ACTIVE, left - warmup)
        wait = min(_WAIT, left - warmup - active)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        plan = schedule(wait=wait, warmup=warmup, active=active, repeat=1)
        self.trace = profile(activities=activities, schedule=plan, on_trace_ready=self._write)

    def region(self, name: str) -> AbstractContextManager[object]:
        """Name what happens in a block, while steps are traced."""
        traced = self.trace.current_action.name.startswith("RECORD")
        return record_function(name) if traced else nullcontext()

    def end_step(self) -> Path | None:
        """Count an optimiser step, and return the trace where this was the last one traced."""
        self._step += 1
        self.trace.step()
        written, self._written = self._written, None
        return written

    def _write(self, trace: Any) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"step-{self._step:08d}.pt.trace.json"  # the ending that TensorBoard looks for
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            trace.export_chrome_trace(str(temporary))
            if not temporary.is_file():  # PyTorch's writer only logs that it failed
                free = shutil.disk_usage(self._directory).free
                raise ResourceError(
                    f"{path}: the trace cannot be written ({free} bytes free). Free some space, or train without --profile."
                )
            os.replace(temporary, path)
        finally:
            for left in (temporary, temporary.with_name(f"{temporary.name}.tmp")):  # the second is the writer's own
                left.unlink(missing_ok=True)
        order = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = trace.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=80)
        write_text(self._directory / "kernels.txt", table + "\n")
        self._written = path


@contextmanager
def profiling(directory: Path, device: torch.device, *, step: int, steps: int) -> Iterator[Profiler]:
    """Trace steps of a training: `step-….pt.trace.json`, with regions, and `kernels.txt`, sorted by each kernel's own time.

    A training that is stopped while it is traced leaves the steps it has.

    Parameters
    ----------
    directory : where both are written.
    step, steps : done so far, and in all; fewer steps are traced where fewer than fifteen are left.
    """
    profiler = Profiler(directory, device, step=step, steps=steps)
    with profiler.trace:
        yield profiler
