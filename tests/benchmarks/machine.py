"""What a measurement was made on, and the most memory that it took."""

import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch

_PROCESS = Path("/proc/self")


def describe(device: torch.device) -> dict[str, Any]:
    """Return processor, clock, cores, threads, device and versions."""
    described = {
        "cpu": _cpu_entry("model name") or platform.processor() or platform.machine(),
        "clock_mhz": float(clock) if (clock := _cpu_entry("cpu MHz")) else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described | {"summary": one_line(described)}


def one_line(machine: dict[str, Any]) -> str:
    """Return the description as a line that stands under a table."""
    clock = f" at {machine['clock_mhz']:.0f} MHz" if machine["clock_mhz"] else ""
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    return (
        f"{gpu}{machine['cpu']}{clock}, {machine['cores']} cores, {machine['threads']} threads, load {machine['load_1min']} "
        f"before; {machine['system']}, Python {machine['python']}, torch {machine['torch']}"
    )


def forget_peak(device: torch.device) -> bool:
    """Begin to measure the peaks of memory anew; return whether the host's could be (Linux, with the right to)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_gib(device: torch.device) -> dict[str, float]:
    """Return the most memory held, in GiB: by this process on the host, and by its tensors on a CUDA device."""
    peaks = {"host": _host_peak_bytes() / 2**30}
    if device.type == "cuda":
        peaks["device"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peaks


def _host_peak_bytes() -> int:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _cpu_entry(key: str) -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None
