"""Recomputed activations (gradient checkpointing): less memory for more arithmetic, and the same numbers.

References
----------
Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from cellbridge.errors import ConfigError


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """Let the backward pass inside the block recompute what the network's blocks would have kept; undone after it.

    The network is asked by the names that diffusers gave this: `enable_gradient_checkpointing` and `disable_gradient_checkpointing`,
    which peft's wrappers pass on. Dropout draws the same masks again.

    Raises
    ------
    ConfigError : the network cannot.
    """
    enable = getattr(module, "enable_gradient_checkpointing", None)
    if enable is None:
        raise ConfigError(
            f"training.gradient_checkpointing: {type(module).__name__} cannot recompute its activations. Set it to false; "
            "a larger training.accumulation saves memory too."
        )
    enable()
    try:
        yield
    finally:
        module.disable_gradient_checkpointing()  # type: ignore[operator]
