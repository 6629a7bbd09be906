"""HTTP and HTTPS through aiohttp, in fsspec's own loop: a server may ignore Range, cut the connection, or say one length and send another.

fsspec's own reading by ranges takes whatever comes for the range that was asked for, also the whole file; so the answers are read here.

References
----------
RFC 9110, HTTP Semantics: 13.1.5 If-Range, 14.2 Range, 14.4 Content-Range, 10.2.3 Retry-After.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from cellbridge.data.fetch.remotes import Facts, Pause, Remote, Stream, TryAgain, awaited, never_stopped
from cellbridge.errors import FetchError, in_one_line

if TYPE_CHECKING:
    from aiohttp import ClientResponse

Result = TypeVar("Result")

_BLOCK = 1 << 20
_QUEUED = 64
"""How many pieces, of some 100 kB each, wait to be written."""
_NO_HEAD = (400, 401, 403, 405, 500, 501)
"""Answers to HEAD after which the file may yet be had by GET: signed URLs, and servers that know no HEAD."""
_PASSING = (408, 425, 429)
_GONE = (404, 410)
_CLOSED = (401, 403, 407)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class Http(Remote):
    """Files by their URL.

    Parameters
    ----------
    timeout_s : how long a connection may bring nothing.
    pause : raises where the work was stopped.
    """

    def __init__(self, *, timeout_s: float, pause: Pause = never_stopped):
        import aiohttp
        import fsspec

        self._timeout_s, self._pause = timeout_s, pause
        self._files: Any = fsspec.filesystem(
            "https",
            skip_instance_cache=True,
            client_kwargs={
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=min(timeout_s, 30.0), sock_read=timeout_s),
                # What is stored are the file's own bytes: many servers call a .csv.gz "Content-Encoding: gzip".
                "auto_decompress": False,
                "headers": {"Accept-Encoding": "identity", "User-Agent": "cellbridge"},
                "read_bufsize": _BLOCK,
                "trust_env": True,
            },
        )

    def look(self, url: str) -> Facts:
        """Ask by HEAD, or where that is refused by GET for the first byte."""
        return self._wait(url, self._look, url)

    def read(self, url: str, *, start: int, facts: Facts) -> Stream:
        """Ask for the rest of a file that is still the one of `facts`."""
        body, begins = self._wait(url, self._open, url, start, facts)
        return Stream(begins, self._blocks(url, body))

    def files_under(self, url: str) -> dict[str, Facts]:
        """HTTP has no way to list a folder."""
        raise FetchError(f"{url}: HTTP cannot list a folder. Name its files in the manifest, one by one or by a table.")

    def _blocks(self, url: str, body: "_Body | None") -> Generator[bytes, None, None]:
        if body is None:
            return
        try:
            while block := self._wait(url, body.take):
                yield block
        finally:
            awaited(body.close(), self._files.loop, pause=never_stopped)

    async def _look(self, url: str) -> Facts:
        session = await self._files.set_session()
        async with session.head(_address(url), allow_redirects=True) as response:
            if response.status not in _NO_HEAD:
                _require_ok(url, response)
                return _facts(response, size=_length(response))
        async with session.get(_address(url), headers={"Range": "bytes=0-0"}) as response:
            if response.status == 416:  # no first byte: the file is empty
                return _facts(response, size=_total(response))
            _require_ok(url, response)
            return _facts(response, size=_total(response) if response.status == 206 else _length(response))

    async def _open(self, url: str, start: int, facts: Facts) -> "tuple[_Body | None, int]":
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and facts.version is not None and facts.version.startswith('"'):
            headers["If-Range"] = facts.version
        session = await self._files.set_session()
        response = await session.get(_address(url), headers=headers)
        try:
            if start and response.status == 416 and _total(response) == start:  # of unknown size, and all here
                response.close()
                return None, start
            return _Body(response), _begins(url, response, start, facts)
        except BaseException:
            response.close()
            raise

    def _wait(self, url: str, work: Callable[..., Coroutine[Any, Any, Result]], *arguments: Any) -> Result:
        """Run one step in the loop, and tell what will pass from what will not."""
        import aiohttp

        try:
            return awaited(work(*arguments), self._files.loop, pause=self._pause)
        except aiohttp.TooManyRedirects as error:
            times = len(error.history)
            raise FetchError(
                f"{url}: leads nowhere (redirected {times} times). Correct the URL in the manifest."
            ) from None
        except (aiohttp.NonHttpUrlClientError, ValueError) as error:  # of the latter, what is no URL
            raise FetchError(f"{url}: leads nowhere ({in_one_line(error)}). Correct the URL in the manifest.") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise FetchError(
                f"{url}: its certificate is not trusted ({in_one_line(error)}). Ask who runs the server."
            ) from None
        except TimeoutError:
            raise TryAgain(f"brought nothing for {self._timeout_s:g} s, or took no connection") from None
        except (aiohttp.ClientError, OSError) as error:
            raise TryAgain(in_one_line(error)) from None


class _Body:
    """The content of an answer, taken from the connection as it comes: what lies in aiohttp's own buffer is lost when that is cut.

    Made and used in the loop.
    """

    def __init__(self, response: "ClientResponse"):
        self._response = response
        self._pieces: asyncio.Queue[bytes | Exception] = asyncio.Queue(_QUEUED)
        first = response.content.read_nowait()
        if first:
            self._pieces.put_nowait(first)
        self._pump = asyncio.create_task(self._run())

    async def take(self) -> bytes:
        """Return what has come, at least a byte; nothing at the end. Raises what cut the connection, once all that came was taken."""
        taken: list[bytes] = []
        while not taken or (sum(map(len, taken)) < _BLOCK and not self._pieces.empty()):
            piece = await self._pieces.get()
            if isinstance(piece, bytes) and piece:
                taken.append(piece)
                continue
            if taken:
                self._pieces.put_nowait(piece)  # the last piece: the queue stays empty behind it
            elif isinstance(piece, Exception):
                raise piece
            break
        return b"".join(taken)

    async def close(self) -> None:
        """End the connection, unless all was taken and it can serve again."""
        self._pump.cancel()
        self._response.close()
        await asyncio.wait([self._pump])

    async def _run(self) -> None:
        try:
            while piece := await self._response.content.readany():
                await self._pieces.put(piece)
            await self._pieces.put(b"")
        except Exception as error:  # raised where the pieces are taken
            await self._pieces.put(error)


def _begins(url: str, response: "ClientResponse", start: int, facts: Facts) -> int:
    """Return the place of the file that an answer begins at, after checking that it is an answer to the question."""
    if start and response.status == 416:
        raise TryAgain(f"has no byte {start}", from_start=True)
    _require_ok(url, response)
    version = _version(response)
    if start and version != facts.version:
        raise TryAgain(f"changed while it was fetched (from {facts.version} to {version})", from_start=True)
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if match is None or match[1] is None or int(match[1]) != start:
            said = response.headers.get("Content-Range")
            raise TryAgain(f"sent the range {said!r} where bytes from {start} on were asked for", from_start=True)
        total = None if match[3] == "*" else int(match[3])
    else:
        start, total = 0, _length(response)
    if facts.size is not None and total is not None and total != facts.size:
        raise TryAgain(f"says that it has {facts.size} bytes, and then {total}", from_start=True)
    return start


def _require_ok(url: str, response: "ClientResponse") -> None:
    status, said = response.status, f"{response.status} {response.reason or ''}".strip()
    if url.startswith("https:") and response.url.scheme != "https":
        raise FetchError(
            f"{url}: leads to {response.url} without encryption. Give the address that it leads to, if you trust it."
        )
    if status in (200, 206):
        return
    if status in _PASSING or status >= 500:
        raise TryAgain(f"the server answers {said}", wait_s=_retry_after(response))
    if status in _GONE:
        raise FetchError(f"{url}: is not there ({said}). Correct its path or URL in the manifest.")
    if status in _CLOSED:
        raise FetchError(
            f"{url}: may not be read ({said}). It is not public, or its link has expired; download it by hand."
        )
    raise FetchError(f"{url}: the server answers {said}, expected 200. Correct its path or URL in the manifest.")


def _facts(response: "ClientResponse", *, size: int | None) -> Facts:
    return Facts(size=size, version=_version(response))


def _version(response: "ClientResponse") -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _length(response: "ClientResponse") -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _total(response: "ClientResponse") -> int | None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    return int(match[3]) if match is not None and match[3] != "*" else None


def _retry_after(response: "ClientResponse") -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _address(url: str) -> Any:
    """Return the URL as it was written: what is quoted in it stays so, as signatures need it."""
    from yarl import URL

    return URL(url, encoded=url.isascii() and " " not in url)
