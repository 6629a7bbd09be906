"""What a reader gives: one row per image set, with its metadata as strings and its checked paths."""

from dataclasses import dataclass, field
from pathlib import Path

from cellbridge.data.planes import Plane


@dataclass(frozen=True)
class ImageRow:
    """One field of view, or one ready-made crop.

    Parameters
    ----------
    metadata : `Metadata_*` → text.
    images : channel → where its pixels lie; for a crop, which holds all channels, the one key "".
    where : table and row, for messages.
    digests : key of `images` → the md5 of the file that the table gives.
    illumination : channel → the .npy file of the illumination function that its counts are to be divided by, where the tables
        name one.
    """

    metadata: dict[str, str]
    images: dict[str, Plane]
    where: str
    digests: dict[str, str] = field(default_factory=dict)
    illumination: dict[str, Path] = field(default_factory=dict)

    @property
    def plate(self) -> str:
        return self.metadata["Metadata_Plate"]

    @property
    def well(self) -> str:
        return self.metadata["Metadata_Well"]

    @property
    def site(self) -> str:
        return self.metadata["Metadata_Site"]

    @property
    def place(self) -> str:
        """`plate 27481 well B02 site 3`, for messages."""
        return f"plate {self.plate} well {self.well} site {self.site}"


def natural(text: str) -> tuple[int, int, str]:
    """Return a sorting key that puts numbers in the order of their values, before other texts."""
    return (0, int(text), text) if text.isdecimal() else (1, 0, text)
