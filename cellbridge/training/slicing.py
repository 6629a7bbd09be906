"""Some images of a batch, whatever a batch is made of: tensors in dataclasses, tuples, lists and dicts."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

BatchT = TypeVar("BatchT")


def count(batch: Any) -> int:
    """Return how many images a batch holds: the length of its first tensor with a length, 0 where there is none."""
    return next((len(tensor) for tensor in _tensors(batch) if tensor.ndim), 0)


def sliced(batch: BatchT, rows: slice) -> BatchT:
    """Return some of a batch's images as views; what is not as long as the batch (a scalar, a table) stays as it is."""
    part: BatchT = _sliced(batch, rows, count(batch))
    return part


def _sliced(value: Any, rows: slice, length: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == length else value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _sliced(part, rows, length) for name, part in _parts(value)})
    if isinstance(value, Mapping):
        return {name: _sliced(part, rows, length) for name, part in _parts(value)}
    if isinstance(value, tuple | list):
        parts = [_sliced(part, rows, length) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for _, part in _parts(value):
        yield from _tensors(part)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value) if field.init)
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple | list):
        yield from enumerate(value)
