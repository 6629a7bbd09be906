"""Compiling the network for training: as a whole, or block by block, with names, checkpoints and published weights unchanged.

Reference
---------
Ansel et al. 2024, "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph Compilation".
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from cellbridge.errors import ConfigError

Strategy = Literal["none", "default", "reduce-overhead", "max-autotune", "regional"]

_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
_SHAPES_OF_A_BLOCK = 64
"""The most versions of one block's code; PyTorch gives up at 8, and a backbone's blocks differ in width, size and shortcut."""


@contextmanager
def compiled(
    module: nn.Module, strategy: Strategy, *, device: torch.device, backend: str | Callable[..., Any] = "inductor"
) -> Iterator[nn.Module]:
    """Give the network to call in training; what is compiled in place is undone after the block.

    Nothing is compiled before the first call. Evaluation (sample grids, with another batch size) stays eager: the module itself is
    not compiled, and blocks compiled in place are so in training mode only.

    Parameters
    ----------
    strategy : `none`; a mode of `torch.compile` for the whole network; or `regional`, for the blocks whose classes it declares under
        `_repeated_blocks`, as diffusers' networks do.
    backend : a backend of `torch.compile`; only `inductor` needs a compiler.

    Raises
    ------
    ConfigError : no working compiler on this machine, or a network that declares no repeated blocks.
    """
    if strategy != "none" and backend == "inductor":
        _require_compiler(device)
    if strategy == "regional":
        with _compiled_blocks(module, backend):
            yield module
    elif strategy == "none":
        yield module
    else:
        # torch.compile takes modes for inductor only
        mode = None if strategy == "default" or backend != "inductor" else strategy
        network: Any = torch.compile(module, mode=mode, backend=backend)
        yield network


def replays_graphs(strategy: Strategy, device: torch.device) -> bool:
    """Say whether the strategy replays CUDA graphs, whose outputs lie where the next call writes."""
    return strategy in _CUDA_GRAPHS and device.type == "cuda"


@torch.no_grad()
def begin_step(strategy: Strategy, device: torch.device, parameters: Iterable[nn.Parameter]) -> None:
    """Give the weights of a replayed graph gradients of zero to add to.

    The first gradient of an accumulation would otherwise be the graph's own output, which the next micro-batch writes over.
    """
    if replays_graphs(strategy, device):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)


def begin_micro_batch(strategy: Strategy, device: torch.device) -> None:
    """Say that nothing the network returned before is needed any more, so that a replayed graph may write over it."""
    if replays_graphs(strategy, device):
        torch.compiler.cudagraph_mark_step_begin()


@contextmanager
def _compiled_blocks(module: nn.Module, backend: str | Callable[..., Any]) -> Iterator[None]:
    names = {name for part in module.modules() for name in getattr(part, "_repeated_blocks", None) or ()}
    blocks = [block for block in module.modules() if type(block).__name__ in names]
    if not blocks:
        raise ConfigError(
            f"training.compile=regional: {type(module).__name__} declares no repeated blocks. Use training.compile=default."
        )
    with torch._dynamo.config.patch(recompile_limit=_SHAPES_OF_A_BLOCK):
        for block in blocks:
            _compile_in_training(block, backend)
        try:
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None


def _compile_in_training(block: nn.Module, backend: str | Callable[..., Any]) -> None:
    """Do what `Module.compile` does, but for calls that train; `copy.deepcopy` and `state_dict` leave it behind, as they do there."""
    eager = block._call_impl
    fast = torch.compile(eager, dynamic=False, backend=backend)

    def call(*args: Any, **kwargs: Any) -> Any:
        return fast(*args, **kwargs) if block.training and torch.is_grad_enabled() else eager(*args, **kwargs)

    block._compiled_call_impl = call


def _require_compiler(device: torch.device) -> None:
    """Raise ConfigError, saying what to install or set, where inductor could not compile for the device."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigError(
                f"training.compile: no working Triton for {device}. Install the triton that this torch names, "
                "or set training.compile=none."
            )
        if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
            raise ConfigError(
                "training.compile: Triton found no C compiler (cc, gcc or clang). Install one, or set training.compile=none."
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError(
            "training.compile: no working C++ compiler. Install g++ or clang++, set the environment variable CXX to one, "
            "or set training.compile=none."
        ) from None
