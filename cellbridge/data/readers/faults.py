"""Rows that are wrong: the first ends the reading, or, where faults are listed (`validate`), each is left out and noted."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from cellbridge.errors import ManifestError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Fault:
    """What is wrong with one part of a data set's tables, and of which kind it is (`row`, `platemap`, `duplicate` …)."""

    kind: str
    error: ManifestError


_list: ContextVar[list[Fault] | None] = ContextVar("faults", default=None)


@contextmanager
def listed() -> Iterator[list[Fault]]:
    """Yield the list that faults go to while the block runs, in place of ending it; what is wrong with the whole is still raised."""
    found: list[Fault] = []
    token = _list.set(found)
    try:
        yield found
    finally:
        _list.reset(token)


@contextmanager
def apart(kind: str) -> Iterator[None]:
    """Run a block that concerns one part alone, such as a row: where faults are listed its error is, and the next part's turn comes."""
    try:
        yield
    except ManifestError as error:
        found = _list.get()
        if found is None:
            raise
        found.append(Fault(kind, error))


def each(kind: str, function: Callable[[Item], Item], items: Iterable[Item], *, otherwise_as_it_is: bool) -> list[Item]:
    """Return what a function makes of every item; one that it refuses is a fault, and is left out or stays as it is."""
    made: list[Item] = []
    for item in items:
        count = len(made)
        with apart(kind):
            made.append(function(item))
        if len(made) == count and otherwise_as_it_is:
            made.append(item)
    return made


def refuse(kind: str, lines: Sequence[str], *, summary: str) -> None:
    """Refuse several parts at once: raise their summary, or list every one of them by its own line."""
    found = _list.get()
    if found is None:
        raise ManifestError(summary)
    found.extend(Fault(kind, ManifestError(line)) for line in lines)
