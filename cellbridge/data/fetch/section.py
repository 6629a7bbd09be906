"""The manifest's section `fetch`: which files make up the data set, where they come from, and how they are told to be right."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator, model_validator

from cellbridge.settings import Section

SCHEMES = ("https", "http", "s3", "file")
"""What a URL may begin with; a text without `://` is a folder of this machine, relative to the manifest."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")]


class RemoteFile(Section):
    """One file, or with a path that ends in "/" one folder."""

    path: Annotated[str, Field(min_length=1)]
    """Where it goes beneath the root; with "/" at the end a whole folder, which S3 and local folders can list."""
    url: str | None = None
    """Where it comes from, whole or relative to the section's `url`; by default `path`, relative to it."""
    sha256: Sha256 | None = None
    md5: Md5 | None = None
    size_bytes: NonNegativeInt | None = None
    """How large it is; checked where given."""
    unpack: str | None = None
    """For a zip or tar archive: the folder beneath the root that its content goes into. The archive itself is not kept."""
    plates: tuple[str, ...] = ()
    """Where plates are asked for, it is fetched only with one of these; empty: always."""

    @model_validator(mode="after")
    def _folders_have_no_sum(self) -> "RemoteFile":
        if self.path.endswith("/") and (
            self.sha256 or self.md5 or self.size_bytes is not None or self.unpack is not None
        ):
            raise ValueError(f'"{self.path}" is a folder, which has no sha256, md5, size_bytes or unpack of its own')
        return self


class FileTable(Section):
    """A table with one row per file; each key but `table` is the name of a column."""

    table: Annotated[str, Field(min_length=1)]
    """The table, relative to the root; itself fetched before where `files` lists it."""
    path: str = "path"
    url: str | None = None
    """Whole URLs, or relative to the section's `url`; without it the paths are."""
    sha256: str | None = None
    md5: str | None = None
    size_bytes: str | None = None
    plate: str | None = None
    well: str | None = None


class Fetch(Section):
    """Where the files of a data set come from."""

    url: str = ""
    """What the files' paths are relative to: https://…, http://…, s3://bucket/…, or a folder relative to the manifest."""
    files: tuple[RemoteFile, ...] = ()
    """Files, folders and archives: first of all the tables and plate maps."""
    tables: tuple[FileTable, ...] = ()
    """Tables that list further files."""
    images: bool = False
    """Whether the images and illumination functions that the manifest's own `tables` list are fetched too: from the URL that `prefixes`
    maps to where they lie, else from their path relative to `url`."""
    max_unpacked_ratio: PositiveFloat = 200.0
    """How many times its own size an archive may become; more is taken for a bomb."""
    max_unpacked_gb: PositiveFloat = 500.0
    """How large an archive's content may be."""

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        scheme, separator, _ = url.partition("://")
        if separator and scheme not in SCHEMES:
            raise ValueError(f'"{scheme}://" is not understood; use one of {", ".join(SCHEMES)}, or a folder')
        if separator and not url.removeprefix(f"{scheme}://").strip("/") and scheme != "file":
            raise ValueError(f'"{url}" names no {"bucket" if scheme == "s3" else "server"}')
        return url

    @model_validator(mode="after")
    def _something_to_fetch(self) -> "Fetch":
        if not (self.files or self.tables or self.images):
            raise ValueError("fetch lists nothing; give files, tables, or images: true")
        return self
