"""What can go wrong, by kind: each prints one line and ends the command with its own exit code."""

import errno
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class CellbridgeError(Exception):
    """A problem that the user can act on; shown as one line, with a traceback only under --debug."""

    exit_code = 2


class ConfigError(CellbridgeError):
    """A configuration key or value that cannot be used."""


class ManifestError(CellbridgeError):
    """A data set description, platemap or table that does not hold together."""


class ImageError(CellbridgeError):
    """An image file that is missing, damaged or not of the expected shape."""


class StoreError(CellbridgeError):
    """A store that is missing, incomplete, damaged or unfit for the request."""


class FetchError(CellbridgeError):
    """A file that cannot be fetched whole and right, or an archive that may not be unpacked."""


class ConditionError(CellbridgeError):
    """A compound or dose that the data does not contain."""


class LeakError(CellbridgeError):
    """The same image, well or plate on both sides of a split."""


class CheckpointError(CellbridgeError):
    """A checkpoint or model directory that is absent, damaged or belongs to another run."""


class ModelError(CellbridgeError):
    """Weights, an adapter or a network that do not fit together."""


class RunError(CellbridgeError):
    """A run directory that is in use, or was made with another configuration."""


class CouplingError(CellbridgeError):
    """Sources and targets, or settings of a coupling between them, that do not fit together."""


class ProblemsFound(CellbridgeError):
    """A plate or store in which `validate` found problems; the summary, which is printed all the same, has every one of them."""

    def __init__(self, message: str, *, summary: Mapping[str, Any]):
        super().__init__(message)
        self.summary = dict(summary)


class NumericalError(CellbridgeError):
    """A loss, gradient or result that is not finite."""

    exit_code = 3


class ResourceError(CellbridgeError):
    """Out of memory or disk."""

    exit_code = 4


class StoppedBySignal(CellbridgeError):
    """Stopped by SIGINT, SIGTERM or SIGHUP after everything was saved."""

    def __init__(self, message: str, *, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


_MOST_LETTERS = 200
_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out: Python's own error, PyTorch's, or one of the many that only say so in words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    by_kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_kind or (isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY_TEXTS))


def in_one_line(error: BaseException) -> str:
    """Return what an error of another library says, in one line of at most 200 letters; its kind where it says nothing."""
    return " ".join(str(error).split())[:_MOST_LETTERS] or type(error).__name__


def did_you_mean(found: str, known: Iterable[str], *, limit: int = 12) -> str:
    """Return '; did you mean "x"? Known: …' for an error message, from the names that exist."""
    names = sorted(set(known))
    by_folded = {name.casefold(): name for name in names}
    close = get_close_matches(found.casefold(), by_folded, n=1, cutoff=0.5)
    hint = f' Did you mean "{by_folded[close[0]]}"?' if close else ""
    shown = ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
    return f"{hint} Known: {shown or 'none'}."
