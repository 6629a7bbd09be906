"""Names of an archive's members: which are plain places beneath the target, and which are refused with the whole archive."""

import re
import unicodedata
from dataclasses import dataclass, field

from cellbridge.errors import FetchError


@dataclass
class Names:
    """The places that members have taken, under every spelling that some file system holds to be the same."""

    what: str
    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)

    def place(self, name: str, *, is_folder: bool = False) -> str:
        """Return a member's path relative to the target, with forward slashes.

        Raises
        ------
        FetchError : the name is no plain relative path, or its place is taken.
        """
        problem = _problem_of(name)
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if problem is None and not parts and not is_folder:
            problem = "names nothing"
        spelt = [unicodedata.normalize("NFC", part).casefold() for part in parts]
        above = {"/".join(spelt[:n]) for n in range(1, len(spelt) + is_folder)}
        key = "/".join(spelt)
        if problem is None and (above & self.files or (not is_folder and key in self.files | self.folders)):
            problem = "takes the place of another member"
        if problem is not None:
            raise refused(self.what, name, problem)
        self.folders |= above
        if not is_folder:
            self.files.add(key)
        return "/".join(parts)


def _problem_of(name: str) -> str | None:
    """Say what is wrong with a member's name; None where it is a plain relative path."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    if "\\" in name:
        return "has a backslash, which is a folder on some systems"
    parts = name.split("/")
    if ".." in parts:
        return "climbs out of its folder"
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name):
        return "has invisible or undecodable letters"
    if any(len(part.encode()) > 255 for part in parts):
        return "is too long"
    return None


def refused(what: str, name: str, problem: str) -> FetchError:
    """Return the error that names a member and what is wrong with it."""
    return FetchError(
        f"{what}: member {ascii(name)[:200]} {problem}; only plain files with plain relative names are unpacked, and nothing of it was "
        "kept. Unpack it by hand if you trust it."
    )
