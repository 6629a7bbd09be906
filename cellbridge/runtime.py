"""Device, precision, and randomness that depends on a seed and a purpose and on nothing else."""

import hashlib
import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Generator, Tensor

from cellbridge import processes
from cellbridge.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Of several processes on one machine, each takes the CUDA device of its own number, or all share the CPU.

    Raises
    ------
    ConfigError : PyTorch or the machine does not have it, or not one for each process.
    """
    if name == "auto":
        alone = processes.count() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if alone and torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'device "{name}" is not known to PyTorch. Use auto, cpu, cuda or cuda:N.') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f'device "{name}": this machine has no usable CUDA device. Use device=cpu or auto.')
    return device if processes.count() == 1 or device.type == "cpu" else _own_device(device)


def _own_device(device: torch.device) -> torch.device:
    if device.type != "cuda" or device.index is not None:
        raise ConfigError(
            f'device "{device}": {processes.count()} processes cannot share it. Use device=cuda, which gives each its own, or cpu.'
        )
    own, here = processes.local_index(), torch.cuda.device_count()
    if own >= here:
        raise ConfigError(
            f"{own + 1} or more processes were started on a machine with {here} CUDA devices. Start one process per device, or use device=cpu."
        )
    return torch.device("cuda", own)


def pick_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype:
    """Return the autocast type; `auto` is bf16 where the hardware computes in it."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return an autocast region, or nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a function of its parts: a purpose, a seed, a step, an image …"""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, *parts: int | str) -> Generator:
    """Return a fresh generator on `device`, seeded by `derive_seed(*parts)`."""
    return Generator(device=device).manual_seed(derive_seed(*parts))


def noise_per_image(seeds: Tensor, shape: tuple[int, ...], *, purpose: str) -> Tensor:
    """Draw standard normal noise of `shape` for each seed, independent of the other images of the batch.

    Parameters
    ----------
    seeds : (batch,), int64, on any device.
    shape : shape of one image.
    purpose : separates the streams that one image needs ("x_T", "eta" …).

    Returns
    -------
    (batch, *shape), float32, drawn on the CPU so that every device gives the same numbers, on the device of `seeds`.
    """
    drawn = [torch.randn(shape, generator=generator("cpu", purpose, int(seed))) for seed in seeds.tolist()]
    return torch.stack(drawn).to(seeds.device) if drawn else torch.empty((0, *shape), device=seeds.device)


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory held so far, in GiB: allocated on a CUDA device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def seed_default_generators(seed: int, device: torch.device) -> None:
    """Seed PyTorch's own generators of the CPU and of `device`, from which dropout draws.

    `torch.manual_seed` does the same, but records a stack trace for each accelerator that is not in use: half a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
