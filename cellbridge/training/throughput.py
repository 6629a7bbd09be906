"""How much of a device's arithmetic a training uses: FLOPs of a step, counted once, over the time it takes and the device's peak.

MFU = FLOPs of the forward and backward pass / (seconds x peak), a multiply-add being two FLOPs and recomputed activations none.

References
----------
Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B (MFU).
NVIDIA's data sheets of the devices, dense rates, bf16 with float32 accumulation.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Peak:
    """The most FLOPs per second that a device computes, by type; tf32 is float32 on its tensor cores."""

    bf16: float
    tf32: float
    fp32: float


_H100_SXM = Peak(989.4e12, 494.7e12, 66.9e12)
_PEAKS = (
    (r"H200 NVL", Peak(835.5e12, 417.5e12, 60e12)),
    (r"H200", _H100_SXM),
    (r"H100 PCIe", Peak(756e12, 378e12, 51.2e12)),
    (r"H100 NVL", Peak(835.5e12, 417.5e12, 60e12)),
    (r"H100( 80GB HBM3)?$", _H100_SXM),
    (r"A100", Peak(312e12, 156e12, 19.5e12)),
    (r"L40S", Peak(362e12, 183e12, 91.6e12)),
    (r"L4", Peak(121e12, 60e12, 30.3e12)),
    (r"A10", Peak(125e12, 62.5e12, 31.2e12)),
    (r"RTX 4090$", Peak(165.2e12, 82.6e12, 82.6e12)),
)
"""By what a CUDA device calls itself, whole words."""


def peak_of(name: str, dtype: torch.dtype, *, tf32: bool) -> float | None:
    """Return the peak of a device in FLOP/s, or None where it is not known.

    Parameters
    ----------
    name : as `torch.cuda.get_device_name` gives it.
    dtype : of the autocast: bfloat16 or float32.
    tf32 : whether float32 runs on tensor cores.
    """
    for pattern, peak in _PEAKS:
        if re.search(rf"\b{pattern}(?![A-Za-z0-9])", name):
            return peak.bf16 if dtype == torch.bfloat16 else peak.tf32 if tf32 else peak.fp32
    return None


def device_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak of a device in FLOP/s, or None where it is not known, as for every CPU.

    PyTorch lets cuDNN convolve float32 on tensor cores unless told otherwise; the peak is then that of tf32.
    """
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), dtype, tf32=torch.backends.cudnn.allow_tf32)


def flops_per_image(module: nn.Module, loss: Callable[[], Tensor], *, images: int) -> float:
    """Return the FLOPs of a forward and backward pass for each image of the batch that `loss` computes on; see `count_flops`."""
    return count_flops(module, loss) / images


def count_flops(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Count the FLOPs of `loss` and of its gradient to the module's trainable parameters, 2 per multiply-add.

    Matrix products, convolutions and attention are counted, as they run without compilation and without recomputed activations.
    Nothing is changed by the count: random state, gradients and buffers are as before.

    Parameters
    ----------
    loss : computes a scalar with the module.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    counter = FlopCounterMode(display=False)
    with (
        torch.random.fork_rng(list(devices)),
        _kept_buffers(module),
        _nothing_recomputed(module),
        torch.compiler.set_stance("force_eager"),
        counter,
    ):
        torch.autograd.grad(loss(), parameters, allow_unused=True)
    return counter.get_total_flops()


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Put back what a forward pass writes into buffers, as batch normalisation does."""
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


@contextmanager
def _nothing_recomputed(module: nn.Module) -> Iterator[None]:
    """Turn off gradient checkpointing in every block that has it on."""
    blocks = [block for block in module.modules() if getattr(block, "gradient_checkpointing", False) is True]
    for block in blocks:
        block.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = True  # type: ignore[assignment]


@dataclass(frozen=True)
class Throughput:
    """FLOPs of an optimiser step, and what its devices could do.

    Parameters
    ----------
    flops_per_step : of the global batch.
    peak : FLOP/s of all devices together.
    """

    flops_per_step: float
    peak: float

    def values(self, seconds_per_step: float) -> dict[str, float]:
        """Return `tflops_per_second` of all devices together, and `mfu`, their share of the peak."""
        rate = self.flops_per_step / seconds_per_step
        return {"tflops_per_second": rate / 1e12, "mfu": rate / self.peak}


def measured(
    module: nn.Module,
    loss: Callable[[], Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
    micro_batches: int,
    processes: int,
) -> Throughput | None:
    """Count what an optimiser step computes, or return None where the device's peak is not known.

    Parameters
    ----------
    loss : of one micro-batch.
    micro_batches : per step, over all processes, each of which has a device of the same kind.
    """
    peak = device_peak(device, dtype)
    if peak is None:
        return None
    return Throughput(count_flops(module, loss) * micro_batches, peak * processes)
