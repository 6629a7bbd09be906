"""Where the pixels of one image lie: a file, or a page or a part of an array within one, written `images.zarr/images[0,1]`."""

import re
from dataclasses import dataclass
from pathlib import Path

_INDEX = re.compile(r"(.*[^\[\]])\[\s*([0-9]+(?:\s*,\s*[0-9]+)*)\s*\]", re.DOTALL)


@dataclass(frozen=True)
class Plane:
    """A file or array, and which part of it.

    Parameters
    ----------
    file : a TIFF, PNG, BMP or .npy file, or the folder of a Zarr array.
    index : what is taken of the leading axes, counted from 0: the page of a TIFF (one number), or for an array any of its
        leading axes; empty where the whole is meant.
    """

    file: Path
    index: tuple[int, ...] = ()

    def __str__(self) -> str:
        part = f"[{','.join(map(str, self.index))}]" if self.index else ""
        return f"{self.file}{part}"


def split_index(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the path and the index of `images.zarr/images[0,1]`; a path without brackets has the index ()."""
    match = _INDEX.fullmatch(text.strip())
    if match is None:
        return text, ()
    return match[1], tuple(int(number) for number in match[2].split(","))
