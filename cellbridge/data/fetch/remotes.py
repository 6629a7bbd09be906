"""Where files come from: what a server says of a file, and its bytes from any place on. S3 and local folders through fsspec."""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from cellbridge.errors import ConfigError, FetchError, in_one_line

Result = TypeVar("Result")
Pause = Callable[[float], None]
"""Waits so many seconds; raises where the work was stopped before or meanwhile."""

_BLOCK = 8 << 20
_LOOK_EVERY_S = 0.25
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class TryAgain(Exception):
    """Something that may pass: a lost connection, a busy server, bytes that are not the file's.

    Parameters
    ----------
    wait_s : how long the server asks to wait.
    from_start : whether what has come so far is of no use.
    """

    def __init__(self, text: str, *, wait_s: float | None = None, from_start: bool = False):
        super().__init__(text)
        self.wait_s, self.from_start = wait_s, from_start


@dataclass(frozen=True)
class Facts:
    """What a server says of a file; None for what it does not say.

    Parameters
    ----------
    version : changes when the content does: an ETag, or the time of the last change.
    md5 : S3's ETag, where it is the content's md5.
    """

    size: int | None = None
    version: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Stream:
    """The bytes of a file from `start` on: the place asked for, or 0 where the server sends only the whole."""

    start: int
    blocks: Generator[bytes, None, None]
    """To be closed where it is left before its end: a connection hangs on it."""


class Remote(ABC):
    """A way to reach files; every method may be called from several threads.

    Raises
    ------
    FetchError : what will not pass by waiting: no such file, no right to read it.
    TryAgain : what may.
    """

    @abstractmethod
    def look(self, url: str) -> Facts:
        """Return what the server says of a file, without its bytes."""

    @abstractmethod
    def read(self, url: str, *, start: int, facts: Facts) -> Stream:
        """Return the file's bytes from `start` on; `facts` are what `look` said of it."""

    @abstractmethod
    def files_under(self, url: str) -> dict[str, Facts]:
        """Return every file of a folder, by its path relative to it."""


@dataclass(frozen=True)
class Access:
    """How servers are spoken to.

    Parameters
    ----------
    timeout_s : how long a connection may bring nothing.
    s3_anonymous : whether S3 is asked without credentials, as public buckets allow.
    s3_endpoint : another S3 server than Amazon's.
    """

    timeout_s: float = 60.0
    s3_anonymous: bool = True
    s3_endpoint: str | None = None


def awaited(step: Coroutine[Any, Any, Result], loop: asyncio.AbstractEventLoop, *, pause: Pause) -> Result:
    """Return what a step in the loop of fsspec comes to; once the work is stopped it is not waited for, however slow its server is."""
    running = asyncio.run_coroutine_threadsafe(step, loop)
    try:
        while not wait([running], timeout=_LOOK_EVERY_S).done:
            pause(0.0)
        return running.result()
    finally:
        running.cancel()


def never_stopped(seconds: float) -> None:
    """A `Pause` of work that nothing stops."""


class Remotes:
    """One `Remote` per kind of URL, made when it is first needed.

    Parameters
    ----------
    pause : raises where the work was stopped.
    """

    def __init__(self, access: Access, *, pause: Pause = never_stopped):
        self._access, self._pause = access, pause
        self._made: dict[str, Remote] = {}

    def of(self, url: str) -> Remote:
        """Return what reaches a URL: https and http alike, s3, or else a local path."""
        scheme = url.partition("://")[0] if "://" in url else "file"
        kind = "http" if scheme == "https" else scheme
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def _make(self, kind: str) -> Remote:
        if kind == "http":
            from cellbridge.data.fetch.http import Http

            return Http(timeout_s=self._access.timeout_s, pause=self._pause)
        return _s3(self._access, self._pause) if kind == "s3" else _local()


class FileSystem(Remote):
    """Files that fsspec reads by ranges: S3, and folders of this machine."""

    def __init__(
        self, filesystem: Any, *, passing: tuple[type[Exception], ...] = (OSError,), pause: Pause = never_stopped
    ):
        self._files, self._passing, self._pause = filesystem, passing, pause

    def look(self, url: str) -> Facts:
        """Return size, version and md5; a folder is no file."""
        with _told(url, self._passing):
            info = self._ask("info", url)
        if info.get("type") == "directory":
            raise FetchError(
                f'{url}: is a folder, expected a file. Write its path with "/" at the end to fetch all of it.'
            )
        return _facts(info)

    def read(self, url: str, *, start: int, facts: Facts) -> Stream:
        """Read range after range; each is a request of its own."""
        return Stream(start, self._blocks(url, start, facts.size or 0))

    def files_under(self, url: str) -> dict[str, Facts]:
        """List a folder and all below it."""
        with _told(url, self._passing):
            folder = self._files._strip_protocol(url).rstrip("/") + "/"
            found = self._ask("find", url, detail=True)
        files = {name.removeprefix(folder): _facts(info) for name, info in found.items() if name.startswith(folder)}
        if not files:
            raise FetchError(f"{url}: holds no file, expected a folder with some. Correct its path in the manifest.")
        return {name: facts for name, facts in files.items() if name}

    def _ask(self, what: str, url: str, **arguments: Any) -> Any:
        """Call a method of the file system, so that a stop need not wait for a range to come where the connection is slow."""
        if not self._files.async_impl:
            return getattr(self._files, what)(url, **arguments)
        return awaited(getattr(self._files, f"_{what}")(url, **arguments), self._files.loop, pause=self._pause)

    def _blocks(self, url: str, start: int, size: int) -> Generator[bytes, None, None]:
        while start < size:
            end = min(start + _BLOCK, size)
            with _told(url, self._passing):
                block = self._ask("cat_file", url, start=start, end=end)
            if len(block) != end - start:
                raise TryAgain(f"sent {len(block)} bytes where {end - start} were asked for (from byte {start})")
            yield block
            start = end


def _facts(info: dict[str, Any]) -> Facts:
    tag = str(info.get("ETag") or "").strip('"')
    changed = info.get("LastModified", info.get("mtime"))
    version = tag or (None if changed is None else str(changed))
    match = _MD5.fullmatch(tag)
    return Facts(size=info.get("size"), version=version, md5=match[1] if match else None)


def _local() -> FileSystem:
    import fsspec

    return FileSystem(fsspec.filesystem("file", skip_instance_cache=True))


def _s3(access: Access, pause: Pause) -> FileSystem:
    try:
        import s3fs
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise ConfigError(
            "s3:// needs the package s3fs, which is not installed. Install it with: pip install 'cellbridge[s3]'."
        ) from None
    seconds = access.timeout_s
    filesystem = s3fs.S3FileSystem(
        anon=access.s3_anonymous,
        endpoint_url=access.s3_endpoint,
        config_kwargs={"connect_timeout": min(seconds, 30.0), "read_timeout": seconds, "retries": {"max_attempts": 0}},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    filesystem.retries = 1  # tried again, and waited for, in one place only: transfer.py
    return FileSystem(filesystem, passing=(OSError, BotoCoreError, ClientError), pause=pause)


@contextmanager
def _told(url: str, passing: tuple[type[Exception], ...]) -> Iterator[None]:
    """Tell what will pass from what will not."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FetchError(f"{url}: is not there. Correct its path or URL in the manifest.") from None
    except IsADirectoryError:
        raise FetchError(f'{url}: is a folder. Write its path with "/" at the end to fetch all of it.') from None
    except PermissionError as error:
        raise FetchError(
            f"{url}: may not be read ({in_one_line(error)}). If it is not public, give credentials by your environment and "
            "--set s3_anonymous=false."
        ) from None
    except ValueError as error:
        raise FetchError(
            f"{url}: cannot be asked for ({in_one_line(error)}). Correct the URL in the manifest."
        ) from None
    except passing as error:
        raise TryAgain(in_one_line(error)) from None
